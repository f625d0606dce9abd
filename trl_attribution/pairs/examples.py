"""KTO rows, SFT rows and rollout groups as contrasts: responses to one prompt with weights that sum to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from trl_attribution.pairs.columns import (
    column_of,
    format_of,
    has_column,
    in_messages,
    label_of,
    number_of,
    said_in,
    tokens_of,
)
from trl_attribution.pairs.encoded import EncodedResponse
from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.fields import source_of, template_kwargs_of, tools_of
from trl_attribution.pairs.formats import KINDS, Form, Pair, Reading, Response, without_eos
from trl_attribution.pairs.identity import contrast_ids, prompt_key
from trl_attribution.pairs.messages import Messages, check_response, checked_messages
from trl_attribution.pairs.rows import Row
from trl_attribution.utils.kinds import Kind

_LEAST = 1e-6
"""Advantages of a group that differ by less, relative to their size, say nothing."""


class OwnResponses(Protocol):
    """M0's own responses by prompt."""

    def of(self, key: bytes) -> Sequence[str] | None:
        """The responses to the prompt with this key, None where there are none."""


@dataclass(frozen=True)
class _Said:
    """One row's prompt and completion, checked."""

    prompt: str | Messages
    completion: str | Messages

    @property
    def conversational(self) -> bool:
        return isinstance(self.prompt, list)


@dataclass(frozen=True)
class Question:
    """A prompt that M0's own responses are asked for."""

    key: bytes
    prompt: str | Messages
    tools: list[dict[str, Any]] | None
    chat_template_kwargs: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """What stands in a file of own responses."""
        values = {"prompt": self.prompt, "tools": self.tools, "chat_template_kwargs": self.chat_template_kwargs}
        return {name: value for name, value in values.items() if value or name == "prompt"}


def read_example(
    row: Row, reading: Reading, form: Form | None, default_source: str, own: OwnResponses | None = None
) -> Pair:
    """One example that is no pair, from its row or rows.

    Args:
        row: the row, with its ``members`` where the example has several.
        reading: columns and format.
        form: the form that the rows must have, None for any.
        default_source: source of a row that names none.
        own: M0's own responses, where they are at hand.

    Raises:
        RowFault: the rows are no such example, or one that teaches nothing (``zero_variance``).
    """
    members = row.members or (row,)
    said = [_said(member, reading, form, first=member is members[0]) for member in members]
    tools, extra = tools_of(row.values.get("tools")), template_kwargs_of(row.values.get("chat_template_kwargs"))
    turns = [(one.prompt, one.completion) for one in said]
    if reading.kind == "rollouts":
        weighted = list(zip(_group_weights(members, reading), turns, strict=True))
    elif reading.kind == "kto":
        labels = [label_of(member.values, reading) for member in members]
        weighted = [
            (1 / labels.count(True) if label else -1 / labels.count(False), turn)
            for label, turn in zip(labels, turns, strict=True)
        ]
        weighted.sort(key=lambda one: one[0] < 0)
    else:
        weighted = [(1 / len(answers), turn) for answers in [_turns(row, reading, said[0])] for turn in answers]
    if reading.kind == "kto" and len(said) == 2 and said[0].completion == said[1].completion:
        raise RowFault(
            "identical_responses",
            column_of("completion", row.values, reading),
            "is both desirable and undesirable for this prompt, so that nothing is preferred. Drop one of the rows.",
        )
    ids = _ids(row, reading, said, weighted, tools, extra)
    brought = [tokens_of(member.values) for member in members] if reading.kind == "rollouts" else []
    tokens = [one for one in brought if one is not None]
    whole = _Contrast(reading.kind, weighted, tokens if len(tokens) == len(weighted) else [])
    if not whole.balanced:
        whole = whole.against(own, tools, extra)
    return whole.pair(row, ids, tools, extra, source_of(row.values, reading.source_column, default_source))


def read_single(values: Mapping[str, Any], reading: Reading) -> Pair | None:
    """One row that is an example by itself, and no pair; None where it is read as a pair.

    Raises:
        RowFault: it is no such example.
    """
    found = format_of(values, reading) if reading.format == "auto" else reading.format
    if found not in KINDS:
        return None
    return read_example(Row(0, "row 0", dict(values)), replace(reading, format=found), None, "all")


def form_of_example(values: Mapping[str, Any], reading: Reading) -> Form:
    """The form of one row.

    Raises:
        RowFault: a column is missing or holds neither text nor messages.
    """
    prompt, _ = said_in(values, reading)
    return Form(explicit=True, conversational=isinstance(prompt, list | tuple), anthropic=False, kind=reading.kind)


def questions_of(pair: Pair) -> list[Question]:
    """The prompts of ``pair`` that M0's own responses are lacking for."""
    if not pair.lacks_own:
        return []
    shown = Response(pair.prompt, pair.chosen or pair.rejected)
    return [
        Question(
            _key(one.prompt, pair.tools, pair.chat_template_kwargs), one.prompt, pair.tools, pair.chat_template_kwargs
        )
        for one in (shown, *pair.further)
    ]


@dataclass(frozen=True)
class _Contrast:
    kind: Kind
    weighted: list[tuple[float, tuple[str | Messages, str | Messages]]]
    tokens: Sequence[EncodedResponse] = ()
    """Of each response, where the rows bring them."""

    @property
    def balanced(self) -> bool:
        return any(weight > 0 for weight, _ in self.weighted) and any(weight < 0 for weight, _ in self.weighted)

    def against(self, own: OwnResponses | None, tools: Any, extra: Mapping[str, Any]) -> _Contrast:
        """With M0's own responses as the other side, as far as all of them are at hand."""
        added = []
        for weight, (prompt, completion) in self.weighted:
            texts = own.of(_key(prompt, tools, extra)) if own is not None else None
            if not texts:
                return self
            for text in texts:
                answer: Any = [{"role": "assistant", "content": text}] if isinstance(completion, list) else text
                added.append((-weight / len(texts), (prompt, answer)))
        return replace(self, weighted=[*self.weighted, *added])

    def pair(self, row: Row, ids: Any, tools: Any, extra: dict[str, Any], source: str) -> Pair:
        """The contrast as a pair of the responses that training raises and lowers most, and the others."""
        weights = [weight for weight, _ in self.weighted]
        prompt, said = self.weighted[0][1]
        empty: Any = [] if isinstance(prompt, list) else ""
        lacks = not self.balanced
        tokens: tuple[EncodedResponse, ...] = ()
        if lacks:
            # Of a conversation with several answers the last is the one that people are shown.
            first = len(weights) - 1
            prompt, said = self.weighted[first][1]
            others = list(range(first))
            sides = (said, empty) if weights[0] > 0 else (empty, said)
            kept = [weights[0], -weights[0]] if weights[0] > 0 else [-weights[0], weights[0]]
        else:
            last = max(range(len(weights)), key=lambda place: (weights[place], place if self.kind == "sft" else -place))
            low = min(range(len(weights)), key=weights.__getitem__)
            if self.kind == "sft":  # beside the answer shown, M0's own to the same prompt
                asked = self.weighted[last][1][0]
                low = next(p for p, (weight, (other, _)) in enumerate(self.weighted) if weight < 0 and other == asked)
            others = [place for place in range(len(weights)) if place not in (last, low)]
            prompt = self.weighted[last][1][0]
            sides = (self.weighted[last][1][1], self.weighted[low][1][1])
            kept = [weights[last], weights[low]]
            tokens = tuple(self.tokens[place] for place in (last, low, *others)) if self.tokens else ()
        return Pair(
            pair_id=ids.own,
            flipped_id=ids.flipped,
            row=row.index,
            location=row.location,
            source=source,
            prompt=prompt,
            chosen=sides[0],
            rejected=sides[1],
            tools=tools,
            chat_template_kwargs=extra,
            kind=self.kind,
            further=tuple(Response(*self.weighted[place][1]) for place in others),
            weights=(*kept, *(weights[place] for place in others)),
            rows=tuple(member.index for member in row.members),
            lacks_own=lacks,
            tokens=tokens,
        )


def _said(row: Row, reading: Reading, form: Form | None, first: bool) -> _Said:
    try:
        return _checked(row.values, reading, form)
    except RowFault as fault:
        if first:
            raise
        raise RowFault(
            fault.reason, fault.field, f"{fault.detail} (The row of the group at {row.location}.)"
        ) from fault


def _checked(values: Mapping[str, Any], reading: Reading, form: Form | None) -> _Said:
    prompt, completion = said_in(values, reading)
    names = column_of("prompt", values, reading), column_of("completion", values, reading)
    if names[1] not in values:
        names = (column_of("messages", values, reading),) * 2
    own = form_of_example(values, reading)
    if form is not None and own.conversational != form.conversational:
        raise RowFault(
            "mixed_formats",
            names[1],
            f"the row holds {own}, the dataset's first row {form}. TRL reads all rows like the first: bring them into "
            "one format.",
        )
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion.strip() and reading.kind != "rollouts":
            raise RowFault("empty_response", names[1], "the completion is empty. Add its text or drop the row.")
        return _Said(prompt, without_eos(completion, reading.eos_token))
    if not isinstance(prompt, list | tuple) or not isinstance(completion, list | tuple | str):
        raise RowFault(
            "not_text",
            names[1],
            f"prompt and completion are {type(prompt).__name__} and {type(completion).__name__}. Write both as text, "
            "or both as messages.",
        )
    if isinstance(completion, str):  # as rollout logs of other tools have it
        completion = [{"role": "assistant", "content": completion}]
    asked = checked_messages(in_messages(prompt, names[0]), names[0])
    if not completion:
        raise RowFault("empty_response", names[1], "does not end with an answer. Add the assistant's or drop the row.")
    answer = checked_messages(in_messages(completion, names[1]), names[1])
    if reading.kind != "rollouts":
        check_response(answer, names[1], asked)
    return _Said(asked, answer)


def _turns(row: Row, reading: Reading, said: _Said) -> list[tuple[str | Messages, str | Messages]]:
    """Every answer of an SFT row with what stands before it: of a conversation column all, else the completion."""
    conversation = column_of("messages", row.values, reading)
    if (
        not isinstance(said.prompt, list)
        or has_column("completion", row.values, reading)
        or (conversation not in row.values)
    ):
        return [(said.prompt, said.completion)]
    whole = [*said.prompt, *said.completion]
    starts = [
        place
        for place, message in enumerate(whole)
        if message["role"] == "assistant" and (place == 0 or whole[place - 1]["role"] not in ("assistant", "tool"))
    ]
    found: list[tuple[str | Messages, str | Messages]] = []
    for start in starts:
        end = next((p for p in range(start, len(whole)) if whole[p]["role"] in ("user", "system")), len(whole))
        if start:
            found.append((whole[:start], whole[start:end]))
    return found or [(said.prompt, said.completion)]


def _group_weights(members: Sequence[Row], reading: Reading) -> list[float]:
    role = "advantage" if has_column("advantage", members[0].values, reading) else "reward"
    values = [number_of(role, member.values, reading) for member in members]
    differences = centered(values)
    total = sum(map(abs, differences))
    if total <= _LEAST * max(1.0, *map(abs, values)):
        raise RowFault(
            "zero_variance",
            column_of(role, members[0].values, reading),
            "is the same for the whole group, so that it teaches nothing.",
        )
    return [2 * difference / total for difference in differences]


def centered(values: Sequence[float]) -> list[float]:
    """``values`` of a group, each less their mean: what they tell of its responses."""
    mean = sum(values) / len(values)
    return [value - mean for value in values]


def _ids(
    row: Row,
    reading: Reading,
    said: Sequence[_Said],
    weighted: Sequence[tuple[float, tuple[Any, Any]]],
    tools: Any,
    extra: Mapping[str, Any],
) -> Any:
    prompt = said[0].prompt
    content = [(weight, answer) for weight, (_, answer) in weighted]
    if reading.kind == "sft":
        first = weighted[0][1]
        whole = [*said[0].prompt, *said[0].completion] if isinstance(prompt, list) else []
        prompt = first[0]
        content = [(1.0, whole[len(prompt) :] if isinstance(prompt, list) else said[0].completion)]
    elif reading.kind == "rollouts" and len(content) == 2:
        content.sort(key=lambda one: -one[0])
    try:
        return contrast_ids(prompt, content, tools, extra)
    except RowFault as fault:
        field = column_of("prompt" if fault.field == "prompt" else "completion", row.values, reading)
        raise RowFault(fault.reason, field, fault.detail) from fault


def _key(prompt: str | Messages, tools: Any, extra: Mapping[str, Any]) -> bytes:
    return prompt_key(prompt, tools or None, dict(extra) or None)
