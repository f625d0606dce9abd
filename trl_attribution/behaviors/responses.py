"""The prompts of behaviors and the responses to them: read, sampled, kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import TypeAdapter

from trl_attribution.behaviors import (
    BehaviorPrompt,
    Prompt,
    Prompts,
    SampledPrompt,
    SamplingConfig,
    behavior_prompt,
    sample_responses,
)
from trl_attribution.behaviors.encoding import PromptFormat, encode_responses
from trl_attribution.behaviors.examples import Source
from trl_attribution.behaviors.judging import OnProgress, shifted
from trl_attribution.behaviors.names import check_name
from trl_attribution.behaviors.sampling import plain_of
from trl_attribution.errors import DataError, ProbeError, SettingsError, describe_difference
from trl_attribution.pairs import Encoding
from trl_attribution.pairs.rows import Row, open_rows
from trl_attribution.pairs.rows.files import file_kind
from trl_attribution.utils.atomic import write_json
from trl_attribution.utils.distributed import ALONE, Ranks
from trl_attribution.utils.json_file import checked_json, read_json, validated
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trl_attribution.activations import PromptGroup
    from trl_attribution.models import LoadedModel

Generate = Callable[[Sequence[Prompt]], list[tuple[str, ...]]]
"""A model's responses to each prompt, in order, at least one a prompt."""
FORMAT = "trl-attribution responses"
VERSION = 1
_UNNAMED = "behavior"


@dataclass(frozen=True)
class Behavior:
    """A named thing that a model may do, with the prompts that are tried."""

    name: str
    prompts: Prompts
    judge: str = ""
    """The rule that says which responses show it; empty leaves that to the caller."""


@dataclass(frozen=True)
class BehaviorResponses:
    """One model's responses to one behavior's prompts, in their order."""

    prompts_sha256: str
    texts: tuple[tuple[str, ...], ...]
    """``[M]``, each prompt's responses."""
    plain: tuple[tuple[str, ...], ...] = ()
    """``[M]``, responses to the plain variants; empty if they were not asked for."""

    def fits(self, behavior: Behavior, with_plain: bool = False) -> bool:
        """Whether these are responses to the prompts of ``behavior``, and to the plain ones where asked for."""
        return self.prompts_sha256 == behavior.prompts.digest and (bool(self.plain) or not with_plain)


@dataclass(frozen=True)
class _Stored:
    made_with: dict[str, Any]
    behaviors: dict[str, BehaviorResponses]


_STORED = TypeAdapter(_Stored)


@dataclass(frozen=True)
class Responses:
    """One model's responses to the prompts of several behaviors."""

    by_behavior: Mapping[str, BehaviorResponses]
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """What the caller wants to know of the model and the sampling later; plain values."""

    def of(self, behavior: Behavior, with_plain: bool = False) -> BehaviorResponses:
        """The responses to the prompts of ``behavior``.

        Raises:
            SettingsError: there are none, or they answer other prompts.
        """
        found = self.by_behavior.get(behavior.name)
        if found is None or not found.fits(behavior, with_plain):
            what = "none" if found is None else "those of other prompts"
            if found is not None and found.fits(behavior):
                what = "none to its plain prompts, which the four-condition filter needs"
            raise SettingsError(
                f"responses to behavior {printable(behavior.name, 80)!r} are missing: there are {what}. Sample again."
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which ``from_json`` makes the same responses."""
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "made_with": dict(self.made_with),
            "behaviors": {name: asdict(one) for name, one in self.by_behavior.items()},
        }

    @classmethod
    def from_json(cls, values: object, where: str = "the responses") -> Self:
        """The responses that ``to_json`` described.

        Raises:
            DataError: ``values`` are something else, or of a newer version.
        """
        found = checked_json(values, FORMAT, VERSION, where, DataError, "Sample again.")
        stored = validated(_STORED, found, where, DataError, "Remove it and sample again.")
        return cls(stored.behaviors, stored.made_with)

    def save(self, path: str | Path) -> None:
        """Write the responses as JSON, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing, broken, foreign, or of a newer version.
        """
        return cls.from_json(read_json(path, FORMAT, VERSION, DataError, "Sample again."), printable(path))


def read_behaviors(source: Source) -> tuple[Behavior, ...]:
    """Read rows of ``prompt`` with optional ``plain``, ``behavior`` and ``judge``; from a file, a folder, or a list.

    A row without ``behavior`` belongs to the one named like its file (a list's to ``behavior``). ``judge`` is a rule
    (see ``parse_rule``), the same in all rows of a behavior that give one. A prompt that occurs again counts once.
    Other fields, such as the responses of a behavior file, are left alone.

    Raises:
        DataError: a file is not there or a line is not JSON.
        ProbeError: a field is missing, empty or of the wrong type, a behavior's name cannot be a probe's, or its rows
            name different judges; the message names the file, line and field.
    """
    prompts: dict[str, dict[str, BehaviorPrompt]] = {}
    judges: dict[str, tuple[str, str]] = {}
    for default, row in _rows(source):
        name = _text(row, "behavior") or default
        try:
            check_name(name)
        except ProbeError as error:
            raise ProbeError(
                f"{row.location}: a behavior is named by the field `behavior`, or like its file: {error}"
            ) from error
        one = behavior_prompt(row)
        prompts.setdefault(name, {}).setdefault(json.dumps([one.prompt, one.plain], sort_keys=True), one)
        rule = _text(row, "judge")
        first, where = judges.setdefault(name, (rule, row.location)) if rule else ("", "")
        if rule != first:
            raise ProbeError(
                f"{row.location}: field `judge`: {printable(rule, 80)!r}, but {where} says {printable(first, 80)!r} "
                f"for the same behavior {name!r}. Give a behavior one judge."
            )
    if not prompts:
        raise ProbeError(f"{_named(source)} holds no prompts; a behavior needs at least one row")
    return tuple(
        Behavior(name, Prompts(_named(source), tuple(rows.values())), judges.get(name, ("", ""))[0])
        for name, rows in prompts.items()
    )


def sample_behaviors(
    behaviors: Sequence[Behavior],
    generate: Generate,
    with_plain: bool = False,
    *,
    made_with: Mapping[str, Any] | None = None,
    known: Responses | None = None,
    on_sampled: Callable[[Responses], None] | None = None,
) -> Responses:
    """A model's responses to every prompt of every behavior, by ``generate``: called once a behavior.

    Args:
        behaviors: whose prompts to ask.
        generate: asks the model.
        with_plain: ask the plain prompts too, as the four-condition filter needs it.
        made_with: stored with the responses.
        known: responses of the same model and settings; what they hold is not sampled again, and stays with the rest.
        on_sampled: called with all responses so far after each behavior, such as to save them.

    Raises:
        ProbeError: a plain prompt is missing.
        ValueError: ``generate`` gives no response to some prompt.
    """
    plain = {one.name: [plain_of(row) for row in one.prompts.prompts] for one in behaviors} if with_plain else {}
    found = {} if known is None else dict(known.by_behavior)
    for one in behaviors:
        if one.name in found and found[one.name].fits(one, with_plain):
            continue
        asked: list[Prompt] = [row.prompt for row in one.prompts.prompts]
        count = len(asked)
        asked += plain.get(one.name, [])
        texts = tuple(generate(asked))
        if len(texts) != len(asked) or not all(texts):
            raise ValueError(f"behavior {one.name!r}: generate must give at least one response to each prompt")
        found[one.name] = BehaviorResponses(one.prompts.digest, texts[:count], texts[count:])
        if on_sampled is not None:
            on_sampled(Responses(dict(found), made_with or {}))
    return Responses(found, made_with or {})


def kept_responses(
    path: str | Path | None,
    behaviors: Sequence[Behavior],
    loaded: LoadedModel,
    sampling: SamplingConfig,
    prompt_format: PromptFormat = "auto",
    with_plain: bool = False,
    on_progress: OnProgress | None = None,
    ranks: Ranks = ALONE,
) -> Responses:
    """The model's responses in ``path``; those that are not there yet are sampled, and saved behavior by behavior.

    Without a path they are sampled and not saved.

    ``ranks`` that share the model all call this; the main one writes.

    Raises:
        SettingsError: the file was sampled from another model or in another way; the difference is printed.
        DataError: the file is not one of responses.
        ProbeError: a prompt does not fit the prompt format, or has no plain variant though one is needed.
    """
    made_with = {
        "model": loaded.fingerprint.digest,
        "sampling": asdict(sampling),
        "prompt_format": prompt_format,
    }
    path = None if path is None else Path(path)
    known = Responses.load(path) if path is not None and path.exists() else None
    if known is not None and known.made_with != made_with:
        raise SettingsError(
            f"{path} holds responses that were sampled otherwise:\n"
            f"{describe_difference(dict(known.made_with), dict(made_with))}\nGive another file, or remove this one."
        )
    places = {
        json.dumps(prompt): f"{row.location}: field `{name}`"
        for one in behaviors
        for row in one.prompts.prompts
        for name, prompt in (("plain", row.plain), ("prompt", row.prompt))
    }

    def generate(asked: Sequence[Prompt]) -> list[tuple[str, ...]]:
        where = [places[json.dumps(prompt)] for prompt in asked]
        return sample_responses(loaded, asked, sampling, prompt_format, on_progress, where)

    return sample_behaviors(
        behaviors,
        generate,
        with_plain,
        made_with=made_with,
        known=known,
        on_sampled=None if path is None else lambda found: save_on_main(found, path, ranks),
    )


def both_responses(
    folder: str | Path | None,
    behaviors: Sequence[Behavior],
    m0: LoadedModel,
    m1: LoadedModel,
    sampling: SamplingConfig,
    prompt_format: PromptFormat = "auto",
    with_plain: bool = False,
    on_progress: OnProgress | None = None,
) -> tuple[Responses, Responses]:
    """The responses of M0 and M1, kept in ``folder`` as ``before.json`` and ``after.json``; see ``kept_responses``."""
    count = sum(len(one.prompts.prompts) for one in behaviors) * (2 if with_plain else 1)
    before, after = (
        kept_responses(
            None if folder is None else Path(folder, f"{when}.json"),
            behaviors,
            model,
            sampling,
            prompt_format,
            with_plain,
            shifted(on_progress, done, 2 * count),
        )
        for when, model, done in (("before", m0, 0), ("after", m1, count))
    )
    return before, after


def save_on_main(responses: Responses, path: Path, ranks: Ranks) -> None:
    """Save ``responses``, which all ``ranks`` have, by the main one.

    Raises:
        AttributionError: the file cannot be written; on all ranks.
    """
    with ranks.together():
        if ranks.is_main:
            responses.save(path)


def paired_responses(
    behavior: Behavior, before: Responses, after: Responses, with_plain: bool = False
) -> list[SampledPrompt]:
    """M0's and M1's responses to each prompt of ``behavior``.

    Raises:
        SettingsError: some are missing, or answer other prompts.
    """
    m0, m1 = before.of(behavior, with_plain), after.of(behavior, with_plain)
    unasked: Sequence[tuple[str, ...]] = [()] * len(behavior.prompts.prompts)
    plain = (m0.plain, m1.plain) if with_plain else (unasked, unasked)
    rows = zip(behavior.prompts.prompts, m0.texts, m1.texts, *plain, strict=True)
    return [SampledPrompt(*row) for row in rows]


def response_groups(
    behaviors: Sequence[Behavior],
    responses: Responses,
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding,
    prompt_format: PromptFormat = "auto",
) -> list[PromptGroup]:
    """Token ids of all responses that have any text, for reading them with a model.

    Raises:
        SettingsError: responses are missing.
        ProbeError: a prompt leaves no room for a response, or does not fit the prompt format.
    """
    groups: list[PromptGroup] = []
    for one in behaviors:
        for row, texts in zip(one.prompts.prompts, responses.of(one).texts, strict=True):
            written = [text for text in texts if text.strip()]
            where = f"{row.location}: field `prompt`"
            if written:
                groups += encode_responses(row.prompt, written, tokenizer, encoding, prompt_format, where)
    return groups


def _rows(source: Source) -> Iterator[tuple[str, Row]]:
    """Each row with the name of the behavior that it belongs to if it names none."""
    if not isinstance(source, str | Path):
        yield from ((_UNNAMED, row) for row in open_rows(source))
        return
    path = local_path(source)
    if not path.is_dir():
        yield from ((_stem(path), row) for row in open_rows(source))
        return
    files = [file for file in sorted(path.iterdir()) if file.is_file() and file_kind(file) == "jsonl"]
    if not files:
        raise DataError(f"{printable(path)}: no JSONL files in this folder. Give each behavior one.")
    for file in files:
        yield from ((_stem(file), row) for row in open_rows(file))


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


def _text(row: Row, name: str) -> str:
    value = row.values.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or not value.strip():
        raise ProbeError(f"{row.location}: field `{name}` must be a text that is not empty; correct it or leave it out")
    return value


def _named(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "the list in memory"
