"""Preference pairs as other frameworks write them: one table of the columns they use, and the form that TRL reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trl_attribution.errors import DataError
from trl_attribution.pairs.columns import asked_in, has_column, in_messages, with_system
from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.formats import LAYOUTS, Reading
from trl_attribution.utils.text import printable


@dataclass(frozen=True)
class Layout:
    """Columns by which pairs of one layout are known."""

    format: str
    """One of :data:`~trl_attribution.pairs.formats.LAYOUTS`."""
    prompt: str
    chosen: str = "chosen"
    rejected: str = "rejected"
    preference: str = ""
    """Which of two responses is better, where their columns do not say so."""
    beside: str = ""
    """A further column of the prompt: without it, the prompt could as well be plain text."""

    def fits(self, first: Mapping[str, Any], columns: Collection[str], reading: Reading) -> bool:
        """Whether a dataset with this first row is of it; one that was asked for by name may lack what only tells."""
        needed = {self.prompt, self.chosen, self.rejected, self.preference}
        if reading.format == "auto":
            needed.add(self.beside)
            if self.prompt != "prompt" and "prompt" in columns:  # TRL's own column comes first
                return False
            if self.preference and {"chosen", "rejected"} <= set(columns):  # somebody has chosen already
                return False
            if self.format == "sharegpt" and _begins_with_prompt(first.get(self.chosen)):
                return False
        asked = reading.column("preference")
        return needed - {""} <= set(columns) and asked in ("preference", self.preference)


TABLE = (
    Layout("sharegpt", "conversations"),
    Layout("sharegpt", "messages"),
    Layout("alpaca", "instruction", beside="input"),
    Layout("alpaca", "question", beside="system"),
    Layout("rated", "prompt", "response_1", "response_2", "preference_strength"),
    Layout("rated", "context", "response1", "response2", "overall_preference"),
    Layout("rated", "history", "human_ref_A", "human_ref_B", "labels"),
    Layout("rated", "prompt", "response_0", "response_1", "better_response_id"),
    Layout("rated", "prompt", "response_0", "response_1", "safer_response_id"),
    Layout("rated", "", "conversation_a", "conversation_b", "winner"),
)
"""In the order in which they are looked for: LLaMA-Factory and Axolotl (messages), LLaMA-Factory and Orca pairs
(texts), HelpSteer2, HelpSteer3, SHP, PKU-SafeRLHF, Chatbot Arena."""
_FIRST = {"labels": "1", "better_response_id": "0", "safer_response_id": "0", "winner": "model_a"}
_SECOND = {"labels": "0", "better_response_id": "1", "safer_response_id": "1", "winner": "model_b"}
"""What the column holds where its first response is the better one, and where the second is."""
_TIES = ("tie", "tie (bothbad)", "both", "equal", "same")


def recognized(reading: Reading, columns: Collection[str], first: Mapping[str, Any], name: str) -> Reading:
    """``reading`` with the layout and the columns of a dataset, where these tell them and the reader was told none.

    Args:
        reading: how it is to be read.
        columns: the dataset's.
        first: its first row.
        name: the dataset, for messages.

    Raises:
        DataError: two columns say which response is better.
    """
    plain = Reading()
    names = (reading.prompt_column, reading.chosen_column, reading.rejected_column)
    if names != (plain.prompt_column, plain.chosen_column, plain.rejected_column):
        return reading
    if reading.format == "auto" and _repeats_its_prompt(first, reading):
        return replace(reading, prompt_column="")
    fitting = [one for one in TABLE if reading.format in ("auto", one.format) and one.fits(first, columns, reading)]
    if reading.format not in ("auto", *LAYOUTS) or not fitting:
        return reading
    found = fitting[0]
    verdicts = [one.preference for one in fitting if (one.chosen, one.rejected) == (found.chosen, found.rejected)]
    if len(verdicts) > 1 and found.preference:
        raise DataError(
            f"{name}: two columns say which response is better ({', '.join(verdicts)}). Choose one: --columns "
            f"preference={verdicts[0]} (Reading(columns='preference={verdicts[0]}'))."
        )
    return replace(
        reading,
        format=found.format,
        prompt_column=found.prompt,
        chosen_column=found.chosen,
        rejected_column=found.rejected,
    ).naming("preference", found.preference)


def in_trl_form(values: dict[str, Any], reading: Reading) -> dict[str, Any]:
    """A row of a layout as TRL would have it: prompt, chosen and rejected all text, or all messages.

    Raises:
        RowFault: its prompt or preference cannot be told, or nothing is preferred (``tie``).
    """
    if reading.format not in LAYOUTS:
        return values
    row = {**values}
    name = reading.prompt_column
    if reading.format == "alpaca" and name in values:
        row[name] = asked_in(values, reading)
    elif isinstance(values.get(name), list | tuple):
        row[name] = with_system(in_messages(values[name], name), values, reading)
    elif isinstance(values.get(name), str) and (reading.format == "sharegpt" or has_column("system", values, reading)):
        row[name] = with_system([{"role": "user", "content": values[name]}], values, reading)
    if reading.format == "sharegpt" and isinstance(row.get(name), list) and row[name][-1].get("role") == "assistant":
        raise RowFault(
            "wrong_role",
            name,
            "ends with an answer, where the prompt of both responses has to end. Take the answer out of it; where the "
            f"responses hold the whole conversation, read it with --format trl --prompt-column '' instead of {name}.",
        )
    sides = [side for side in (reading.chosen_column, reading.rejected_column) if side in values]
    for side in sides:
        row[side] = _answer(values[side], side, isinstance(row.get(name), list))
    if reading.format == "rated" and len(sides) == 2 and not _is_first_better(values, reading):
        row[sides[0]], row[sides[1]] = row[sides[1]], row[sides[0]]
    return row


def _answer(said: Any, field: str, in_chat: bool) -> Any:
    if isinstance(said, Mapping):
        return in_messages([said], field)
    if isinstance(said, str) and in_chat:
        return [{"role": "assistant", "content": said}]
    return in_messages(said, field) if isinstance(said, list | tuple) else said


def _is_first_better(values: Mapping[str, Any], reading: Reading) -> bool:
    """What the column of the preference says, by a name, or as a number below or above zero."""
    column = reading.column("preference")
    if column not in values:
        raise RowFault("missing_column", column, "the row has no such column, so that nothing is preferred. Add it.")
    said = values[column]
    word = str(int(said) if isinstance(said, bool | float) and said in (0, 1) else said).strip().lower()
    first = _FIRST.get(column, reading.chosen_column).lower()
    second = _SECOND.get(column, reading.rejected_column).lower()
    if word in (first, second):
        return word == first
    if column not in _FIRST and isinstance(said, int | float) and not isinstance(said, bool) and abs(said) > 0:
        return said < 0
    if word in _TIES or (column not in _FIRST and word == "0"):
        raise RowFault("tie", column, "prefers neither response, so that the row teaches nothing.")
    raise RowFault(
        "bad_preference",
        column,
        f"holds '{printable(said, 40)}'. Write '{first}' or '{second}' for the better response"
        + ("." if column in _FIRST else ", or a number: below 0 where it is the first."),
    )


def _begins_with_prompt(response: Any) -> bool:
    """Whether a response is a whole conversation."""
    first = response[0] if isinstance(response, list) and response else None
    return isinstance(first, Mapping) and first.get("role", first.get("from")) in ("system", "user", "human")


def _repeats_its_prompt(first: Mapping[str, Any], reading: Reading) -> bool:
    """Whether a prompt that is text stands in the responses too, which are whole conversations."""
    prompt, chosen = first.get(reading.prompt_column), first.get(reading.chosen_column)
    if not isinstance(prompt, str) or not isinstance(chosen, list) or not isinstance(first.get("rejected"), list):
        return False
    asked = [message for message in chosen[:-1] if isinstance(message, Mapping) and message.get("role") == "user"]
    return any(isinstance(one.get("content"), str) and str(one["content"]).strip() == prompt.strip() for one in asked)
