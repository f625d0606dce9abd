"""What the paths of a command line stand for: looked for before a verb starts, while nothing heavy is loaded.

A verb says it once, where it declares the option: ``Annotated[Path, typer.Option(...), Given("manifest")]``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from trl_attribution.errors import (
    AttributionError,
    DataError,
    ManifestError,
    ModelError,
    ProbeError,
    SettingsError,
    StoreError,
)
from trl_attribution.pairs.rows.files import file_kind
from trl_attribution.utils.paths import is_there, local_path, what_to_check
from trl_attribution.utils.text import is_hub_id, printable


@dataclass(frozen=True)
class Given:
    """An input: it has to be there."""

    what: str
    """What messages call it: ``manifest``."""
    error: type[AttributionError] = SettingsError
    hub: Literal["model", "dataset"] | None = None
    """What it is on the Hub, where a Hub id can be given in its place."""
    folder: bool | None = None
    """Whether it has to be a folder, or has to be a file; None where it may be either."""
    holds: str = ""
    """A file that makes a folder one."""
    lacking: str = "cannot read the {what} {path}: no such file or folder"
    """What is said where nothing is there."""
    hint: str = ""
    """How to come by one."""

    def check(self, _option: str, value: str | Path) -> None:
        """Raise ``error`` unless it is there, or is a Hub id that may be."""
        path = local_path(value, self.error)
        shown = printable(value, 300)
        if not is_there(path):
            nor_hub = "" if self.hub is None else self._why_not_on_hub(str(value), path)
            if nor_hub is None:
                return
            said = self.lacking.format(what=self.what, path=shown) + nor_hub
            raise self.error(f"{said}. {what_to_check(path)}{self.hint and ' ' + self.hint}")
        if self.folder is not None and path.is_dir() != self.folder:
            kinds = ("folder", "file") if path.is_dir() else ("file", "folder")
            raise self.error(
                f"cannot read the {self.what} {shown}: it is a {kinds[0]}, and a {self.what} is a {kinds[1]}."
                f"{self.hint and ' ' + self.hint}"
            )
        if self.holds and not is_there(path / self.holds):
            said = self.lacking.partition(":")[0].format(what=self.what, path=shown)
            raise self.error(f"{said}: it has no {self.holds}. {self.hint}")
        if not os.access(path, os.R_OK):
            raise self.error(f"cannot read the {self.what} {shown}: permission denied. Check its permissions.")

    def _why_not_on_hub(self, name: str, path: Path) -> str | None:
        """Why it cannot be on the Hub; None where it may be, or is in the cache."""
        if not is_hub_id(name) or file_kind(path) is not None or path.suffix.lower() in (".gz", ".gguf"):
            return ", and not a Hub id (owner/name)"
        from huggingface_hub import constants

        if not constants.HF_HUB_OFFLINE:
            return None
        prepared = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")
        kept = (
            Path(constants.HF_HUB_CACHE, f"{self.hub}s--{name.replace('/', '--')}"),
            Path(prepared, name.replace("/", "___").lower()),
        )
        if any(map(is_there, kept)):
            return None
        return " here; the Hub is switched off (HF_HUB_OFFLINE=1) and it is not in the cache"


@dataclass(frozen=True)
class GivenModel(Given):
    """A model: loading it would tell too that it is none, after the libraries."""

    def check(self, option: str, value: str | Path) -> None:
        """As for any input, and files that are no model are refused; a dataset in its place is told by its kind."""
        super().check(option, value)
        path = local_path(value, self.error)
        shown = printable(value, 300)
        if path.is_file() and path.suffix != ".gguf" and file_kind(path) is None:
            raise self.error(f"{shown} is a file, not a model; give a folder, a .gguf file or a Hub id")
        if path.is_dir() and not any(is_there(path / name) for name in ("config.json", "adapter_config.json")):
            raise self.error(f"{shown}: no config.json in this folder; give the folder that holds the model's files")


@dataclass(frozen=True)
class GivenPart(Given):
    """An input that a Hub id may name with a folder behind a colon: ``owner/name:folder``."""

    def check(self, option: str, value: str | Path) -> None:
        """As for any input; what a repository holds is seen when it is fetched."""
        repository, _, folder = str(value).partition(":")
        super().check(option, repository if folder and not is_there(local_path(value, self.error)) else value)


@dataclass(frozen=True)
class Made:
    """An output: it has to be possible."""

    folder: bool | None = None
    """Whether it is a folder, or a file; None where its name decides."""
    replaces: str = ""
    """The format that a file's first line names, where only such a file may be replaced."""

    def check(self, option: str, value: str | Path) -> None:
        """Raise ``SettingsError`` where nothing can be written there."""
        path = local_path(value)
        shown = printable(value, 300)
        if is_there(path):
            if self.folder is not None and path.is_dir() != self.folder:
                wanted = "name a folder" if self.folder else "name a file in it"
                raise SettingsError(f"{option}: {shown} is a {'file' if self.folder else 'folder'}; {wanted}")
            if self.replaces and not _begins_with(path, self.replaces):
                kind = self.replaces.removeprefix("trl-attribution ")
                raise SettingsError(f"{option}: {shown} is there already and is no {kind}; choose another file")
            nearest = path
        else:
            nearest = next(parent for parent in path.absolute().parents if is_there(parent))
            if not nearest.is_dir():
                raise SettingsError(f"{option}: {shown}: {printable(nearest)} is a file, so nothing fits below it")
        if not os.access(nearest, os.W_OK):
            raise SettingsError(f"{option}: {shown}: {printable(nearest)} cannot be written; choose another place")


MODEL = GivenModel("model", ModelError, hub="model")
DATASET = Given("dataset", DataError, hub="dataset")
PROMPTS = Given("prompts", DataError, hub="dataset")
MANIFEST = Given(
    "manifest", ManifestError, folder=False, hint="An audit writes manifest.filter.jsonl and manifest.flip.jsonl."
)
AUDIT = Given(
    "audit",
    StoreError,
    folder=True,
    holds="audit.json",
    lacking="there is no finished audit at {path}: no such file or folder",
    hint="Give the folder that `trl-attribution audit -o` wrote.",
)
REGISTRY = Given(
    "probe registry",
    ProbeError,
    folder=True,
    lacking="no probe registry at {path}: no such folder",
    hint="`trl-attribution probe build NAME --probes FOLDER` makes one.",
)
SAE = GivenPart("sparse autoencoder", ModelError, hub="model")
ORACLE = Given(
    "oracle", ModelError, hub="model", folder=True, hint="It is the folder of a LoRA adapter, as PEFT saves it."
)
DISCOVERY = Given("discovery", StoreError, folder=True, lacking="there is no discovery in {path}: no such folder")
DECISIONS = Given("decisions", ManifestError, folder=False, hint="`trl-attribution review` writes them.")
SOURCES = Given("sources", DataError, hub="dataset")
VECTORS = Given("vectors", StoreError, folder=True, hint="Give an audit's folder, or a store (`audit --vectors`).")
POLICY = Given("policy", folder=False, hint="`trl-attribution gate init` writes one.")
PLAN = Given("plan", folder=False)
RESULTS = Given("results", DataError, folder=True)
VECTOR = Given("direction", ProbeError, folder=False, lacking="no file {path} to import a probe from")
A_FILE = Made(folder=False)
A_FOLDER = Made(folder=True)
A_MANIFEST = Made(folder=False, replaces="trl-attribution manifest")


def check_paths(command: Callable[..., object], given: Mapping[str, Any]) -> None:
    """Look for every path of ``command``'s arguments.

    Raises:
        AttributionError: one is not there, is another kind of thing, or cannot be written; of the class its input has.
    """
    asked = list(_marked(command, given))
    for mark, name, value in asked:
        mark.check(f"--{name.strip('_').replace('_', '-')}", value)
    _refuse_swapped([(mark, local_path(value)) for mark, _, value in asked if isinstance(mark, Given)])


def check_rows(top_k: int | None, dataset: str) -> None:
    """Refuse a ``top_k`` above the rows of a JSONL file, which are soon counted, before anything is loaded.

    Raises:
        SettingsError: there are not as many.
    """
    path = local_path(dataset)
    if top_k is None or path.suffix.lower() != ".jsonl" or not path.is_file():
        return
    with path.open("rb") as file:
        rows = sum(1 for line in file if line.strip())
    if top_k > rows:
        raise SettingsError(f"top_k {top_k} asks for more pairs than there are ({rows}): choose fewer")


def _marked(command: Callable[..., object], given: Mapping[str, Any]) -> Iterator[tuple[Given | Made, str, str | Path]]:
    for name, kind in get_type_hints(command, include_extras=True).items():
        value: Any = given.get(name)
        marks = [mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Given | Made)]
        for mark in marks if value is not None else ():
            yield from ((mark, name, one) for one in (value if isinstance(value, list | tuple) else [value]))


def _refuse_swapped(inputs: list[tuple[Given, Path]]) -> None:
    """Say it where a model stands in the place of a dataset, and a dataset in that of a model."""
    for mark, path in inputs:
        if mark.hub == "model" and file_kind(path) is not None and path.is_file():
            other = next((other for kind, other in inputs if kind.hub == "dataset" and _is_model(other)), None)
            then = f" {printable(other)} is a model: the two are swapped." if other is not None else ""
            raise ModelError(f"{printable(path)} is a dataset, where a model has to be given.{then}")
        if mark.hub == "dataset" and _is_model(path):
            raise DataError(f"{printable(path)} is a model, where a {mark.what} has to be given.")


def _begins_with(path: Path, name: str) -> bool:
    """Whether the first line names the format; nothing is lost with an empty file."""
    try:
        with path.open("rb") as handle:
            first = handle.readline(2**16)
    except OSError:
        return False
    return not first or name.encode() in first


def _is_model(path: Path) -> bool:
    if path.suffix.lower() == ".gguf":
        return True
    try:
        return b'"model_type"' in (path / "config.json").read_bytes()
    except OSError:
        return False
