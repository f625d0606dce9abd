"""What a trait is, and where traits are read from: those of the package, a file, a folder, or the persona format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from trl_attribution.behaviors.names import check_name
from trl_attribution.discovery.traits.measures import MEASURES
from trl_attribution.errors import ProbeError, SettingsError
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import printable

Text = Annotated[str, Field(min_length=1, max_length=20_000)]
PACKAGED = ("harm", "style", "text")
_KINDS = (".yaml", ".yml", ".json")
_MOST_BYTES = 16 * 2**20
_FEWEST = 4
HINT = (
    "A trait has `towards`, and `examples` (at least 4, each with prompt, positive and negative), or `instruction` "
    "(each with pos and neg) and `questions`, or a `measure`; see docs/how-to/scan.md."
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Contrast(_Strict):
    """One prompt with a response that shows the trait and one that does not."""

    prompt: Text
    positive: Text
    negative: Text


class Instruction(_Strict):
    """System prompts that ask for the trait and for its opposite."""

    pos: Text
    neg: Text


class Trait(BaseModel):
    """A behavior that a dataset may teach, as data. Fields of the persona format that say nothing here are passed over.

    Its direction comes from ``examples``; without them, the reference model answers ``questions`` under each
    ``instruction``. With ``measure`` it is counted on the text, and a direction only checks the model.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = ""
    towards: Text
    """What a dataset teaches that pushes towards it: "flatters the user"."""
    away: str = ""
    """What one teaches that pushes away from it."""
    harmful: bool = False
    """Whether teaching it is what a release has to be kept from."""
    only_on_prompts: bool = False
    """Whether it exists on prompts like its own only: to comply is harmful where the request is."""
    measure: str = ""
    """What is counted on the text in its place."""
    instruction: tuple[Instruction, ...] = ()
    questions: tuple[Text, ...] = ()
    examples: tuple[Contrast, ...] = ()
    own_prompts: tuple[Text, ...] = ()
    """Those prompts, if they are not those of its examples."""
    controls: tuple[Text, ...] = ()
    """Prompts that look alike and are not its own."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.measure and self.measure not in MEASURES:
            raise ValueError(f"measure: {printable(self.measure, 40)!r} is unknown; choose {', '.join(MEASURES)}")
        sampled = self.instruction and self.questions
        if not (self.measure or self.examples or sampled):
            raise ValueError("there is nothing to tell it by")
        if len(self.examples) < _FEWEST and not sampled and not self.measure:
            raise ValueError(f"examples: {len(self.examples)} are too few, give at least {_FEWEST}")
        return self

    @property
    def opposite(self) -> str:
        """What a dataset teaches that pushes away from it."""
        return self.away or f"the opposite of: {self.towards}"


class _Traits(RootModel[dict[str, Trait]]):
    """A file of traits by name."""


def packaged_traits() -> tuple[Trait, ...]:
    """The traits that ship with the package."""
    found: list[Trait] = []
    for stem in PACKAGED:
        text = (files("trl_attribution.discovery.traits") / f"{stem}.yaml").read_text(encoding="utf-8")
        own = _traits_in(yaml.safe_load(text), stem, f"{stem}.yaml")
        found += [one.model_copy(update={"harmful": stem == "harm"}) for one in own]
    return tuple(found)


def read_traits(asked: str | Path | None) -> tuple[Trait, ...]:
    """The traits ``asked`` for: None or ``all`` for the package's, their names with commas, a file, or a folder.

    A file is YAML with traits by name, or JSON of one trait in the persona format (``instruction`` with ``pos`` and
    ``neg``, ``questions``), which is named by its file.

    Raises:
        SettingsError: there is no such trait, file or folder, or it is not of this kind; the message says where.
        ProbeError: a name cannot be a trait's.
    """
    packaged = packaged_traits()
    if asked is None or asked == "all":
        return packaged
    known = {one.name: one for one in packaged}
    names = [name.strip() for name in str(asked).split(",")]
    if all(name in known for name in names):
        return tuple(known[name] for name in dict.fromkeys(names))
    path = local_path(asked)
    if not path.exists():
        raise SettingsError(
            f"--traits: {printable(asked, 200)!r} is neither a file or folder nor names of traits; those of the "
            f"package are {', '.join(known)}."
        )
    found = [one for file in _files(path) for one in _file_traits(file)]
    twice = sorted({one.name for one in found if sum(other.name == one.name for other in found) > 1})
    if twice:
        raise SettingsError(
            f"{printable(path)}: the trait {printable(twice[0], 60)!r} comes twice. Rename one of them."
        )
    return tuple(found)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in _KINDS and file.is_file())
    if not found:
        raise SettingsError(f"{printable(path)}: no YAML or JSON files in this folder. {HINT}")
    return found


def _file_traits(path: Path) -> list[Trait]:
    place = printable(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise SettingsError(f"{place}: larger than {_MOST_BYTES // 2**20} MiB, which no file of traits is")
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"cannot read the traits {place}: {printable(error, 120)}. {HINT}") from error
    return list(_traits_in(values, path.stem, place))


def _traits_in(values: object, stem: str, place: str) -> Iterator[Trait]:
    if isinstance(values, Mapping) and "instruction" in values and "questions" in values:
        values = {stem.replace("_", "-"): {"towards": stem.replace("_", " "), **values}}
    if not isinstance(values, Mapping) or not values:
        raise SettingsError(f"{place}: holds no traits by name. {HINT}")
    try:
        found = _Traits.model_validate(values).root
    except ValidationError as error:
        raise SettingsError(f"{place}: {_fault(error.errors())} {HINT}") from error
    for name, one in found.items():
        try:
            check_name(name)
        except ProbeError as error:
            raise ProbeError(f"{place}: {error}") from error
        yield one.model_copy(update={"name": name})


def _fault(errors: Sequence[Any]) -> str:
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{printable(where, 120)}: {printable(first['msg'], 160)}."
