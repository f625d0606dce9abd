"""One dataset row in any preference format -> one pair, or a fault that says what to mend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trl_attribution.errors import SettingsError
from trl_attribution.pairs import anthropic
from trl_attribution.pairs.encoded import EncodedResponse
from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.fields import source_of, template_kwargs_of, tools_of
from trl_attribution.pairs.identity import content_ids, same_content
from trl_attribution.pairs.images import PairImage, has_images, images_of
from trl_attribution.pairs.implicit import split_prompt
from trl_attribution.pairs.messages import (
    Messages,
    check_response,
    checked_messages,
    looks_like_messages,
    with_places_shown,
)
from trl_attribution.utils.kinds import Kind
from trl_attribution.utils.text import printable

LAYOUTS = ("sharegpt", "alpaca", "rated")
"""Formats of pairs that other frameworks write (:mod:`trl_attribution.pairs.layouts`)."""
FORMATS = ("auto", "trl", "anthropic", *LAYOUTS, "kto", "sft", "rollouts")
KINDS: dict[str, Kind] = {"kto": "kto", "sft": "sft", "rollouts": "rollouts"}
"""Formats whose examples are no pairs, and the kind of example; all others hold pairs."""
OWN_SHOWN = "(M0's own responses)"
ROLES = (
    *("completion", "label", "messages", "reward", "advantage", "step", "group"),
    *("preference", "system", "input", "history"),
)
"""What columns hold beside those of a pair, and what they are called unless :attr:`Reading.columns` says so."""
BAD_ROW_RULES = ("error", "skip")


@dataclass(frozen=True)
class Reading:
    """How the columns of a dataset become pairs. Stored with everything made from it."""

    prompt_column: str = "prompt"
    """Column with the prompt; where the dataset lacks it, or the name is "", the prompt is inside both responses."""
    chosen_column: str = "chosen"
    """Column with the preferred response."""
    rejected_column: str = "rejected"
    """Column with the other response."""
    source_column: str = "source"
    """Column that says where a pair comes from; without it every pair's source is "all"."""
    format: str = "auto"
    """``trl`` as DPOTrainer reads pairs, ``anthropic`` for raw transcripts, ``sharegpt``, ``alpaca`` or ``rated`` for
    pairs as other frameworks write them, ``kto``, ``sft`` or ``rollouts`` for other kinds of examples, ``auto`` to
    decide on the columns and the first row."""
    columns: str = ""
    """Other columns: ROLE=COLUMN, comma-separated; roles: completion, label, messages, reward, advantage, step, group
    of KTO, SFT and rollout rows; preference, system, input, history of pairs that other frameworks write."""
    split: str | None = None
    """Which split to read where the dataset has several: SPLIT, or CONFIGURATION/SPLIT."""
    on_bad_row: str = "error"
    """``error`` refuses a dataset with bad rows, ``skip`` leaves them out and lists them."""
    eos_token: str | None = field(default=None, metadata={"option": None})
    """The model's end of text. A plain response may end with it or not, TRL makes the same of both: one at its very end
    does not count. Known once there is a tokenizer (:meth:`PairReader.ending_with`)."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("format", self.format, FORMATS),
            ("on_bad_row", self.on_bad_row, BAD_ROW_RULES),
        ):
            if value not in known:
                raise SettingsError(f"unknown {name} '{value}'. Choose one of: {', '.join(known)}.")
        if isinstance(self.columns, str):
            self._named()

    def column(self, role: str) -> str:
        """The column that holds ``role``, one of :data:`ROLES`."""
        return self._named().get(role, role)

    @property
    def kind(self) -> Kind:
        """The kind of example: ``pair``, ``kto``, ``sft`` or ``rollouts``; of ``auto`` that is not known yet."""
        return KINDS.get(self.format, "pair")

    def naming(self, role: str, column: str) -> Reading:
        """The same with ``column`` for ``role``, unless that is how it is called anyway; "" changes nothing."""
        if not column or self.column(role) == column:
            return self
        return replace(self, columns=",".join(filter(None, (self.columns, f"{role}={column}"))))

    def _named(self) -> dict[str, str]:
        found = {}
        for part in filter(None, self.columns.split(",")):
            role, _, column = part.partition("=")
            if role.strip() not in ROLES or not column.strip():
                raise SettingsError(
                    f"columns: '{printable(part, 60)}' is not ROLE=COLUMN. Roles: {', '.join(ROLES)}; such as "
                    "--columns completion=answer,label=liked."
                )
            found[role.strip()] = column.strip()
        return found


@dataclass(frozen=True, slots=True)
class Response:
    """A response of a contrast beyond the two that a pair has."""

    prompt: str | Messages
    text: str | Messages


@dataclass(frozen=True, slots=True)
class Pair:
    """One training example as a contrast: responses with weights that sum to zero, their prompt apart.

    A preference pair is its chosen response less its rejected one. Of any other kind of example, ``chosen`` and
    ``rejected`` are the responses that training raises and lowers most, by which people know it, and ``further`` are
    the others.
    """

    pair_id: str
    """32 hex characters, from content alone."""
    flipped_id: str
    """``pair_id`` of the same pair with chosen and rejected swapped."""
    row: int
    """Its row in the dataset, from 0."""
    location: str
    """Where that row stands, for messages."""
    source: str
    """Where the pair comes from."""
    prompt: str | Messages
    """Text (may be empty) or messages; all three fields are of the same type."""
    chosen: str | Messages
    """The preferred response."""
    rejected: str | Messages
    """The other response."""
    tools: list[dict[str, Any]] | None
    """Tool schemas that the chat template gets."""
    chat_template_kwargs: dict[str, Any]
    """Further arguments that the chat template gets."""
    kind: Kind = "pair"
    """What it is an example of: ``pair``, ``kto``, ``sft`` or ``rollouts``."""
    further: tuple[Response, ...] = ()
    weights: tuple[float, ...] = (1.0, -1.0)
    """Of chosen, of rejected, and of each of ``further``; their absolute values sum to 2."""
    rows: tuple[int, ...] = ()
    """The rows that it is made of, where that is not ``row`` alone."""
    lacks_own: bool = False
    """M0's own responses to the prompt are the other side, and are not at hand: one of the two sides is empty."""
    tokens: tuple[EncodedResponse, ...] = ()
    """The responses' token ids in the order of ``weights``, where the rows bring them; texts are not tokenized then."""
    images: tuple[PairImage, ...] | None = None
    """What the prompt shows, none or several; None where the dataset has no column of images."""

    @property
    def shown(self) -> tuple[str | Messages, str | Messages, str | Messages]:
        """Prompt, chosen and rejected for people: images and M0's own responses that are not at hand by name."""
        if not self.lacks_own:
            return with_places_shown(self.prompt, len(self.images or ())), self.chosen, self.rejected
        own: Any = [{"role": "assistant", "content": OWN_SHOWN}] if self.conversational else OWN_SHOWN
        return self.prompt, self.chosen or own, self.rejected or own

    @property
    def all_rows(self) -> tuple[int, ...]:
        """Every row that it is made of."""
        return self.rows or (self.row,)

    @property
    def conversational(self) -> bool:
        """Whether prompt and responses are messages."""
        return isinstance(self.prompt, list)


@dataclass(frozen=True)
class Form:
    """The shape that all rows of a dataset must share: TRL decides it on the first row."""

    explicit: bool
    """The prompt has a column of its own."""
    conversational: bool
    """Messages, not text."""
    anthropic: bool
    """Raw transcripts."""
    kind: Kind = "pair"
    """What the rows are examples of."""

    def __str__(self) -> str:
        if self.anthropic:
            return "Human/Assistant transcripts"
        return f"{'messages' if self.conversational else 'text'}, {'with' if self.explicit else 'without'} a prompt"


def pair_id(example: Mapping[str, Any], reading: Reading | None = None) -> str:
    """The id of one dataset row: 32 hex characters that depend on prompt, responses, images and template input alone.

    Args:
        example: a row in any format that can be audited.
        reading: how its columns are named and read; by default as TRL names them, transcripts recognized.

    Raises:
        RowFault: the row is no preference pair or other example; a ``DataError`` that names the field and the fix.
    """
    from trl_attribution.pairs.examples import read_single
    from trl_attribution.pairs.layouts import in_trl_form, recognized

    reading = recognized(reading or Reading(), example.keys(), example, "the row")
    other = read_single(example, reading)
    return read_pair(in_trl_form(dict(example), reading), reading).pair_id if other is None else other.pair_id


def read_pair(
    values: Mapping[str, Any],
    reading: Reading,
    form: Form | None = None,
    row: int = 0,
    location: str = "row 0",
    default_source: str = "all",
    file: Path | None = None,
) -> Pair:
    """One row as a pair.

    Args:
        values: the row, column name to value.
        reading: names and format.
        form: the form that the row must have, None for any.
        row: its place in the dataset.
        location: the same for messages.
        default_source: source of a row that names none.
        file: that it is from, which paths of images go out from.

    Raises:
        RowFault: the row is no preference pair, or has another form.
    """
    own = form_of(values, reading)
    if form is not None and own != form:
        raise RowFault(
            "mixed_formats",
            reading.chosen_column,
            f"the row holds {own}, the dataset's first row {form}. TRL reads all rows like the first: bring them into "
            "one format.",
        )
    prompt, chosen, rejected = _parts(values, reading, own)
    tools, extra = tools_of(values.get("tools")), template_kwargs_of(values.get("chat_template_kwargs"))
    images = images_of(values, file)
    try:
        ids = content_ids(prompt, chosen, rejected, tools, extra, [image.digest for image in images or ()])
    except RowFault as fault:
        columns = {"chosen": reading.chosen_column, "rejected": reading.rejected_column}
        columns |= {"prompt": reading.prompt_column} if own.explicit else {}
        raise RowFault(fault.reason, columns.get(fault.field, fault.field), fault.detail) from fault
    return Pair(
        pair_id=ids.own,
        flipped_id=ids.flipped,
        row=row,
        location=location,
        source=source_of(values, reading.source_column, default_source),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tools=tools,
        chat_template_kwargs=extra,
        images=images,
    )


def form_of(values: Mapping[str, Any], reading: Reading) -> Form:
    """The form of one row.

    Raises:
        RowFault: a column is missing or holds neither text nor messages, or text and messages are mixed.
    """
    chosen = _field(values, reading.chosen_column)
    rejected = _field(values, reading.rejected_column)
    explicit = reading.prompt_column != "" and reading.prompt_column in values
    raw = isinstance(chosen, str) and chosen.startswith(anthropic.START)
    if reading.format == "anthropic" or (reading.format == "auto" and raw and not explicit):
        for name in (reading.chosen_column, reading.rejected_column):
            if not isinstance(values[name], str):
                raise RowFault("mixed_formats", name, "holds messages, not a transcript. Read it with --format trl.")
        return Form(explicit=False, conversational=False, anthropic=True)
    prompt = _field(values, reading.prompt_column) if explicit else chosen
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowFault(
            "mixed_formats",
            reading.rejected_column,
            f"holds {_kind(rejected)} where {reading.chosen_column} holds {_kind(chosen)}. Write both in one format.",
        )
    if isinstance(prompt, str) != isinstance(chosen, str):
        raise RowFault(
            "mixed_formats",
            reading.prompt_column,
            f"holds {_kind(prompt)} where {reading.chosen_column} holds {_kind(chosen)}. Write all in one format; if "
            "the responses contain the prompt, leave its column out (--prompt-column '').",
        )
    return Form(explicit=explicit, conversational=isinstance(chosen, list), anthropic=False)


def _kind(value: str | list[Any]) -> str:
    return "text" if isinstance(value, str) else "messages"


def _field(values: Mapping[str, Any], name: str) -> str | list[Any]:
    if name not in values:
        columns = printable(", ".join(map(str, values)))
        raise RowFault(
            "missing_column", name, f"the row has no such column (its columns: {columns}). Add or rename it."
        )
    value = values[name]
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value:
        return list(value)
    if isinstance(value, list | tuple):
        raise RowFault("not_text", name, "the list of messages is empty. Add the messages or drop the row.")
    what = "None (an empty value)" if value is None else f"a {type(value).__name__} ({printable(value, 40)})"
    raise RowFault("not_text", name, f"is {what}, not text or messages. Write text there, or drop the row.")


def _parts(values: Mapping[str, Any], reading: Reading, form: Form) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected, checked, all text or all messages."""
    names = reading.chosen_column, reading.rejected_column
    chosen, rejected = (values[name] for name in names)
    if form.anthropic:
        return _transcripts(chosen, rejected, names)
    prompt = values[reading.prompt_column] if form.explicit else None
    if not form.conversational:
        return _text(prompt, chosen, rejected, names, reading.eos_token)
    shared = None if prompt is None else checked_messages(prompt, reading.prompt_column, images=has_images(values))
    return _conversation(shared, checked_messages(chosen, names[0]), checked_messages(rejected, names[1]), names)


def _transcripts(chosen: str, rejected: str, names: tuple[str, str]) -> tuple[Messages, Messages, Messages]:
    turns = anthropic.parse_transcript(chosen, names[0]), anthropic.parse_transcript(rejected, names[1])
    _check_different(*turns, names)
    prompt, *responses = anthropic.split_transcripts(*turns, names[1])
    for name, response in zip(names, responses, strict=True):
        check_response(response, name, prompt)
    return prompt, responses[0], responses[1]


def _conversation(
    prompt: Messages | None, chosen: Messages, rejected: Messages, names: tuple[str, str]
) -> tuple[Messages, Messages, Messages]:
    _check_different(chosen, rejected, names)
    if prompt is None:
        prompt, chosen, rejected = split_prompt(chosen, rejected)
        if not prompt:
            raise RowFault(
                "no_shared_prompt",
                names[1],
                f"shares no first message with {names[0]}, and there is no prompt column. Add a prompt column, or "
                "start both with the same messages.",
            )
    for name, response in zip(names, (chosen, rejected), strict=True):
        check_response(response, name, prompt)
    return prompt, chosen, rejected


def _text(
    prompt: str | None, chosen: str, rejected: str, names: tuple[str, str], eos: str | None
) -> tuple[str, str, str]:
    if looks_like_messages(chosen) and looks_like_messages(rejected):
        raise RowFault(
            "messages_as_text",
            names[0],
            "holds messages written out as text, which TRL would train on letter by letter. Store the dataset as JSONL "
            "or Parquet, with real lists of messages.",
        )
    for name, response in zip(names, (chosen, rejected), strict=True):
        _check_text(response, name)
    _check_different(chosen, rejected, names)
    if prompt is None:
        prompt, chosen, rejected = _implicit(chosen, rejected, names)
    chosen, rejected = without_eos(chosen, eos), without_eos(rejected, eos)
    for name, response in zip(names, (chosen, rejected), strict=True):
        _check_text(response, name)
    _check_different(chosen, rejected, names)
    return prompt, chosen, rejected


def _implicit(chosen: str, rejected: str, names: tuple[str, str]) -> tuple[str, str, str]:
    if chosen[0] != rejected[0] and (chosen.endswith(" ") or rejected.endswith(" ")):
        raise RowFault(
            "no_shared_prompt",
            names[1],
            f"shares no prompt with {names[0]}, and TRL splits such a row wrongly where a response ends in a space. "
            "Strip the space, or add a prompt column.",
        )
    return split_prompt(chosen, rejected)


def without_eos(text: str, eos: str | None) -> str:
    """``text`` without the one EOS token at its end that TRL would put there; several are its own and stay.

    >>> without_eos("Paris.</s>", "</s>"), without_eos("Paris.</s></s>", "</s>"), without_eos("Paris.</s>", None)
    ('Paris.', 'Paris.</s></s>', 'Paris.</s>')
    """
    return text if not eos or text.endswith(eos + eos) else text.removesuffix(eos)


def _check_text(response: str, name: str) -> None:
    if not response.strip():
        raise RowFault("empty_response", name, "the response is empty. Add its text or drop the row.")


def _check_different(chosen: Any, rejected: Any, names: tuple[str, str]) -> None:
    if same_content(chosen, rejected):
        raise RowFault(
            "identical_responses",
            names[1],
            f"is the same as {names[0]}, so the pair prefers nothing. Drop the row or mend one response.",
        )
