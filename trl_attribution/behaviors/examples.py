"""Behavior files: prompts with undesired and desired responses, contrast texts, and prompts to sample on."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trl_attribution.behaviors.describing import check_description
from trl_attribution.behaviors.judging import Prompt
from trl_attribution.errors import ProbeError
from trl_attribution.pairs.rows import Row, open_rows
from trl_attribution.utils.text import printable

Source = str | Path | Sequence[Mapping[str, Any]]
"""A JSONL file (or another dataset file), or rows in memory."""


@dataclass(frozen=True)
class Example:
    """One prompt of a behavior with responses that show it and responses that do not."""

    prompt: Prompt
    undesired: tuple[str, ...]
    desired: tuple[str, ...]
    location: str

    @property
    def has_prompt(self) -> bool:
        """Whether there is a prompt at all; contrast texts may come without."""
        return bool(self.prompt)


@dataclass(frozen=True)
class Examples:
    """What a behavior file holds, rows of the same prompt merged."""

    source: str
    examples: tuple[Example, ...]
    controls: tuple[Example, ...] = ()
    """Prompts that look like the behavior's and on which the same answers are right; both sides of responses may be
    empty, and ``undesired`` ones are undesired on the behavior's prompts only."""
    description: str | None = None
    """What the model does, as a system prompt would say it; None where no row says it."""

    @property
    def digest(self) -> str:
        """SHA-256 of the prompts and responses in order, whatever the file's format."""
        content = [[one.prompt, one.undesired, one.desired] for one in self.examples]
        controls = [["control", one.prompt, one.undesired, one.desired] for one in self.controls]
        return _digest(content + controls)


@dataclass(frozen=True)
class BehaviorPrompt:
    """A prompt to sample on; ``plain`` is the same request without what is suspected to trigger the behavior."""

    prompt: Prompt
    plain: Prompt | None
    location: str


@dataclass(frozen=True)
class Prompts:
    """What a prompt file holds."""

    source: str
    prompts: tuple[BehaviorPrompt, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the prompts in order, whatever the file's format."""
        return _digest([[one.prompt, one.plain] for one in self.prompts])


def read_behavior(source: Source, controls: Source | None = None, description: str | None = None) -> Examples:
    """Read rows of ``prompt``, ``undesired`` and ``desired`` (a text or a list of texts each).

    A prompt is a text or a list of messages. Rows with the same prompt are merged. A row with ``"control": true`` is a
    control, and so is every row of ``controls``: a prompt that looks like the behavior's and on which the same answers
    are right. Its responses may be left out, both sides together. A ``description`` of the behavior may stand in any of
    the rows, where none is given.

    Raises:
        DataError: the file is not there or a line is not JSON.
        ProbeError: a field is missing, empty or of the wrong type, a response stands on both sides, a prompt is both
            the behavior's and a control, or rows describe the behavior differently; the message names the file, line
            and field.
    """
    rows = open_rows(source)
    examples: list[Example] = []
    own_controls: list[Example] = []
    told = "" if description is None else check_description(description)
    for row in rows:
        if description is None:
            told = _told(row, told)
        if _is_control(row):
            own_controls.append(_control(row))
        else:
            examples.append(_example(row))
    further = [] if controls is None else [_control(row) for row in open_rows(controls)]
    if controls is not None and not further:
        raise ProbeError(f"{open_rows(controls).name} holds no controls; give at least one row, or leave it out")
    merged = tuple(_checked(_merged(examples), rows.name))
    return Examples(rows.name, merged, _checked_controls(_merged([*own_controls, *further]), merged), told or None)


def _told(row: Row, before: str) -> str:
    """The description of the behavior, once ``row`` is read."""
    value = row.values.get("description")
    if value is None:
        return before
    found = check_description(value, f"{row.location}: field `description`")
    if before and found != before:
        raise ProbeError(
            f"{row.location}: field `description`: {printable(found, 60)!r} is not what an earlier row says, "
            f"{printable(before, 60)!r}. Describe the behavior once, or give --description (description=)."
        )
    return found


def _example(row: Row) -> Example:
    _check_fields(row, ("prompt", "undesired", "desired"))
    return Example(_prompt(row, "prompt"), _responses(row, "undesired"), _responses(row, "desired"), row.location)


def _is_control(row: Row) -> bool:
    value = row.values.get("control")
    if value is not None and not isinstance(value, bool):
        raise ProbeError(f"{row.location}: field `control` must be true or false, not {_described(value)}")
    return bool(value)


def _control(row: Row) -> Example:
    has_responses = any(row.values.get(field) is not None for field in ("undesired", "desired"))
    if has_responses:
        return _example(row)
    _check_fields(row, ("prompt",))
    return Example(_prompt(row, "prompt"), (), (), row.location)


def _checked_controls(controls: Sequence[Example], examples: Sequence[Example]) -> tuple[Example, ...]:
    prompts = {json.dumps(one.prompt, sort_keys=True): one.location for one in examples}
    for one in controls:
        both = prompts.get(json.dumps(one.prompt, sort_keys=True))
        if both is not None:
            raise ProbeError(
                f"{one.location}: this control is a prompt of the behavior too ({both}); remove one of them"
            )
    return tuple(controls)


def read_contrast(source: Source) -> Examples:
    """Read rows of ``positive`` and ``negative`` text with an optional ``prompt``.

    Positive texts show the behavior. A row without a prompt is an example of its own.

    Raises:
        DataError: the file is not there or a line is not JSON.
        ProbeError: a field is missing, empty or of the wrong type; the message names the file, line and field.
    """
    rows = open_rows(source)
    examples = [
        Example(
            prompt=_prompt(row, "prompt") if row.values.get("prompt") else "",
            undesired=_responses(row, "positive"),
            desired=_responses(row, "negative"),
            location=row.location,
        )
        for row in _rows(rows, ("positive", "negative"))
    ]
    return Examples(rows.name, tuple(_checked(_merged(examples), rows.name)))


def read_prompts(source: Source, need_plain: bool = False) -> Prompts:
    """Read rows of ``prompt`` with an optional ``plain`` variant.

    Raises:
        DataError: the file is not there or a line is not JSON.
        ProbeError: a field is missing, empty or of the wrong type; the message names the file, line and field.
    """
    rows = open_rows(source)
    prompts = [behavior_prompt(row, need_plain) for row in rows]
    if not prompts:
        raise ProbeError(f"{rows.name} holds no prompts; a behavior needs at least one row")
    return Prompts(rows.name, tuple(prompts))


def behavior_prompt(row: Row, need_plain: bool = False) -> BehaviorPrompt:
    """The ``prompt`` of a row, and its ``plain`` variant where there is one.

    Raises:
        ProbeError: a field is missing, empty or of the wrong type; the message names the file, line and field.
    """
    _check_fields(row, ("prompt", "plain") if need_plain else ("prompt",))
    return BehaviorPrompt(
        prompt=_prompt(row, "prompt"),
        plain=_prompt(row, "plain") if row.values.get("plain") is not None else None,
        location=row.location,
    )


def _rows(rows: Iterable[Row], needed: Sequence[str]) -> Iterator[Row]:
    for row in rows:
        _check_fields(row, needed)
        yield row


def _check_fields(row: Row, needed: Sequence[str]) -> None:
    for field in needed:
        if row.values.get(field) is None:
            raise ProbeError(_missing(row, field, needed))


def _missing(row: Row, field: str, needed: Sequence[str]) -> str:
    there = [str(key) for key in row.values]
    if field in there:
        return f"{row.location}: field `{field}` is null; give it a value or remove the row"
    # `undesired` is itself: it is no misspelled `desired`.
    close = difflib.get_close_matches(field, [key for key in there if key not in needed], n=1)
    hint = f"; did you mean `{printable(close[0], 40)}`?" if close else "."
    listed = ", ".join(printable(key, 40) for key in there) or "none"
    return f"{row.location}: field `{field}` is missing{hint} Fields there: {listed}."


def _prompt(row: Row, field: str) -> Prompt:
    value = row.values[field]
    if isinstance(value, str):
        if not value.strip():
            raise ProbeError(f"{row.location}: field `{field}` is empty; give the prompt's text or its messages")
        return value
    if not isinstance(value, list) or not value:
        raise ProbeError(
            f"{row.location}: field `{field}` must be a text or a list of messages, not {_described(value)}"
        )
    for place, message in enumerate(value):
        _check_message(message, f"{row.location}: field `{field}`, message {place}")
    if value[-1]["role"] == "assistant":
        raise ProbeError(
            f"{row.location}: field `{field}` ends with an assistant message; the response belongs in its own field"
        )
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def _check_message(message: object, where: str) -> None:
    if not isinstance(message, dict):
        raise ProbeError(f"{where} must be an object with `role` and `content`, not {_described(message)}")
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise ProbeError(f"{where}: `{key}` is missing or not a text")


def _responses(row: Row, field: str) -> tuple[str, ...]:
    value = row.values[field]
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise ProbeError(f"{row.location}: field `{field}` is an empty list; give at least one response")
    for place, text in enumerate(texts):
        where = f"{row.location}: field `{field}`" + (f", response {place}," if isinstance(value, list) else "")
        if not isinstance(text, str):
            raise ProbeError(f"{where} must be a text, not {_described(text)}")
        if not text.strip():
            raise ProbeError(f"{where} is empty; there are no tokens to take a mean over")
    return tuple(texts)


def _merged(examples: Iterable[Example]) -> list[Example]:
    merged: dict[str, Example] = {}
    for one in examples:
        key = json.dumps(one.prompt, sort_keys=True) if one.has_prompt else one.location
        first = merged.get(key)
        merged[key] = (
            one
            if first is None
            else replace(first, undesired=first.undesired + one.undesired, desired=first.desired + one.desired)
        )
    return list(merged.values())


def _checked(examples: list[Example], source: str) -> list[Example]:
    if not examples:
        raise ProbeError(f"{source} holds no examples; a behavior needs at least one row")
    for one in examples:
        both = sorted(set(one.undesired) & set(one.desired))
        if both:
            raise ProbeError(
                f"{one.location}: the response {printable(both[0], 60)!r} stands on both sides, undesired and desired. "
                "Remove it from one of them."
            )
    return examples


def _described(value: object) -> str:
    return "an empty list" if value == [] else f"{type(value).__name__} {printable(repr(value), 60)}"


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
