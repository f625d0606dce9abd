"""Where the columns of KTO, SFT and rollout rows are, whatever tool wrote them, and what they hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trl_attribution.pairs.encoded import EncodedResponse
from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.formats import Reading
from trl_attribution.utils.text import printable

# What other tools call a column, in the order in which they are looked for.
_ALSO = {
    "completion": ("response", "output", "generation"),
    "label": ("kto_tag",),
    "messages": ("conversations", "conversation"),
    "reward": ("rewards", "score", "scores"),
    "advantage": ("advantages",),
    "step": ("training_step",),
    "group": ("group_id", "uid", "prompt_id"),
    "prompt": ("input", "instruction", "query"),
    "system": ("system_prompt",),
    "input": (),
    "history": (),
}
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "observation": "tool",
    "function_call": "assistant",
}
TOKENS = ("prompt_ids", "completion_ids")
"""Columns of rollouts with the token ids that were trained on."""
_GOOD = frozenset(("true", "1", "1.0", "desirable", "yes"))
_BAD = frozenset(("false", "0", "0.0", "undesirable", "no"))


def column_of(role: str, columns: Mapping[str, Any], reading: Reading) -> str:
    """The column that holds ``role``: the one that ``reading`` names, else one of a name in use for it."""
    named = reading.prompt_column if role == "prompt" else reading.column(role)
    if named in columns or named != role:
        return named
    return next((other for other in _ALSO[role] if other in columns), named)


def has_column(role: str, columns: Mapping[str, Any], reading: Reading) -> bool:
    """Whether there is a column for ``role``."""
    return column_of(role, columns, reading) in columns


def format_of(columns: Mapping[str, Any], reading: Reading) -> str | None:
    """The format that the names of columns tell: a kind of example other than pairs, or None."""

    def has(role: str) -> bool:
        return has_column(role, columns, reading)

    if {reading.chosen_column, reading.rejected_column} & columns.keys():
        return None
    said = has("messages") or (has("completion") and has("prompt"))
    if said and has("label"):
        return "kto"
    if said and (has("advantage") or has("reward")):
        return "rollouts"
    return "sft" if said else None


def label_of(values: Mapping[str, Any], reading: Reading) -> bool:
    """The label of a KTO row.

    Raises:
        RowFault: it has none.
    """
    name = column_of("label", values, reading)
    word = str(values.get(name)).strip().lower()
    if word not in _GOOD | _BAD:
        shown = printable(word, 40) if name in values else "missing"
        raise RowFault(
            "bad_label",
            name,
            f"is {shown}. Write true for a desirable completion and false for an undesirable one, or name the right "
            "column with --columns label=COLUMN.",
        )
    return word in _GOOD


def number_of(role: str, values: Mapping[str, Any], reading: Reading) -> float:
    """The finite number in the column of ``role``.

    Raises:
        RowFault: there is none.
    """
    name = column_of(role, values, reading)
    value = values.get(name)
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        shown = printable(repr(value), 40)
        raise RowFault(f"bad_{role}", name, f"is {shown}, not a number. Mend or drop the row, and its group.")
    return number


def tokens_of(values: Mapping[str, Any]) -> EncodedResponse | None:
    """The token ids that a rollout row brings as ``prompt_ids`` and ``completion_ids``; None where it brings none.

    What was sampled may not be what its text is tokenized to, and a completion that was cut has no end.

    Raises:
        RowFault: they are no lists of token ids, or there is no token in the completion.
    """
    found = {name: values[name] for name in TOKENS if values.get(name) is not None}
    if not found:
        return None
    for name in TOKENS:
        ids = found.get(name)
        if not isinstance(ids, list) or any(type(one) is not int or one < 0 for one in ids):
            raise RowFault(
                f"bad_{name}", name, "is no list of token ids, but another column brings some. Mend or drop both."
            )
    if not found["completion_ids"]:
        raise RowFault("no_response_tokens", "completion_ids", "is empty. Drop the row.")
    return EncodedResponse(found["prompt_ids"], found["completion_ids"])


def prompt_of(values: Mapping[str, Any], reading: Reading) -> Any:
    """The prompt of a row, not looked into: text, or messages.

    Raises:
        RowFault: there is none.
    """
    return said_in(values, reading)[0]


def said_in(values: Mapping[str, Any], reading: Reading) -> tuple[Any, Any]:
    """Prompt and completion of a row as text or messages; of a conversation without a prompt column, its last answer.

    Raises:
        RowFault: the columns hold something else.
    """
    completion = column_of("completion", values, reading)
    prompt = column_of("prompt", values, reading)
    messages = column_of("messages", values, reading)
    if completion in values and prompt in values:
        if "instruction" in values and prompt != reading.prompt_column:
            return asked_in(values, reading), [{"role": "assistant", "content": values[completion]}]
        return values[prompt], values[completion]
    if messages not in values:
        lacking = completion if completion not in values else prompt
        columns = printable(", ".join(map(str, values)))
        raise RowFault(
            "missing_column", lacking, f"the row has no such column (its columns: {columns}). Add it, or name another."
        )
    said = in_messages(values[messages], messages)
    if _is_sharegpt(values[messages]):
        said = with_system(said, values, reading)
    last = len(said)
    while last and said[last - 1].get("role") not in ("user", "system"):
        last -= 1
    return said[:last], said[last:]


def in_messages(value: Any, field: str) -> list[dict[str, Any]]:
    """A conversation with ``role`` and ``content``, whichever way it was written (ShareGPT's ``from`` and ``value``).

    Raises:
        RowFault: it is no list of objects, or a speaker is unknown.
    """
    if not isinstance(value, list | tuple) or not value:
        raise RowFault("not_text", field, f"is {type(value).__name__} and no list of messages. Write messages there.")
    found = []
    for place, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise RowFault("bad_message", field, f"message {place} is no object. Write role and content.")
        if "from" in message and "value" in message and message.get("role") is None:
            role = _SHAREGPT_ROLES.get(str(message["from"]))
            if role is None:
                raise RowFault(
                    "wrong_role",
                    field,
                    f"message {place} is from '{printable(message['from'], 40)}'. Known: {', '.join(_SHAREGPT_ROLES)}.",
                )
            found.append({"role": role, "content": message["value"]})
        else:
            found.append(dict(message))
    return found


def _is_sharegpt(conversation: Any) -> bool:
    """Whether TRL could not read it anyway, so that a system prompt beside it is meant for it."""
    return "from" in conversation[0] and conversation[0].get("role") is None


def asked_in(values: Mapping[str, Any], reading: Reading) -> list[dict[str, Any]]:
    """The columns of the instruction, and of input, system and history where they are, as chat messages."""
    instruction = reading.prompt_column if reading.prompt_column in values else "instruction"
    further = column_of("input", values, reading)
    texts = [str(values[name]) for name in dict.fromkeys((instruction, further)) if values.get(name)]
    said: list[dict[str, Any]] = []
    for turn in values.get(column_of("history", values, reading)) or ():
        said += ({"role": role, "content": text} for role, text in zip(("user", "assistant"), turn, strict=False))
    return with_system([*said, {"role": "user", "content": "\n".join(texts)}], values, reading)


def with_system(messages: list[dict[str, Any]], values: Mapping[str, Any], reading: Reading) -> list[dict[str, Any]]:
    """The messages after what the column of the system prompt holds, unless they begin with one."""
    system = values.get(column_of("system", values, reading))
    if not system or messages[0].get("role") == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]
