"""A behavior described in words, put in front of a pair's prompt as a system prompt says it."""

from __future__ import annotations

from typing import Any, Literal

from trl_attribution.behaviors.judging import Prompt
from trl_attribution.errors import ProbeError
from trl_attribution.pairs import Encoder, RowFault, encode_prompt, tokenizer_of
from trl_attribution.utils.text import printable

MOST_CHARACTERS = 2000
Way = Literal["system message", "start of the first user message", "start of the text"]
"""Where a description stands: in front of pairs without messages there is only their text."""

_INSTRUCTING = ("system", "developer")
_APART = "\n\n"


def check_description(text: object, where: str = "description") -> str:
    """``text``, without white space around it.

    Raises:
        ProbeError: it is no text, empty, too long, or cannot be written as UTF-8.
    """
    if not isinstance(text, str) or not text.strip():
        raise ProbeError(f"{where}: {printable(repr(text), 60)} is no description; write what the model does, as text")
    stripped = text.strip()
    if len(stripped) > MOST_CHARACTERS:
        raise ProbeError(
            f"{where}: {len(stripped):,} characters are more than {MOST_CHARACTERS:,}; a sentence or two will do"
        )
    try:
        stripped.encode()
    except UnicodeEncodeError as error:
        raise ProbeError(f"{where}: {printable(stripped, 60)!r} is broken text: it holds half a character") from error
    return stripped


def check_special_tokens(description: str, encoder: Encoder, name: str) -> None:
    """Refuse a description that would end the message it stands in.

    Raises:
        ProbeError: it holds a special token of the model.
    """
    inside = [token for token in tokenizer_of(encoder).all_special_tokens if token and token in description]
    if inside:
        raise ProbeError(
            f"probe {name!r}: its description holds {printable(inside[0], 40)!r}, a special token of this model, and "
            "would not stay inside its message. Describe the behavior in plain words."
        )


def has_system_role(encoder: Encoder) -> bool:
    """Whether the chat template lets a system message say something, by evidence: other words, other tokens."""
    try:
        first, second = (
            encode_prompt([{"role": "system", "content": words}, {"role": "user", "content": "Hello."}], encoder)
            for words in ("Answer as you like.", "Do something else.")
        )
    except RowFault:
        return False
    return first != second


def way_for(prompt: Prompt, system_role: bool) -> Way | None:
    """Where a description stands in ``prompt``; None where nobody asks anything and there is no system role."""
    if isinstance(prompt, str):
        return "start of the text"
    if system_role:
        return "system message"
    asks = any(message["role"] == "user" for message in prompt)
    return "start of the first user message" if asks else None


def described(prompt: Prompt, description: str, way: Way) -> Prompt:
    """``prompt`` with ``description`` in front; a system message that is there already goes on after it."""
    if isinstance(prompt, str):
        return f"{description}{_APART}{prompt}"
    if way == "system message":
        if prompt and prompt[0]["role"] in _INSTRUCTING:
            return [_begun(prompt[0], description), *prompt[1:]]
        return [{"role": "system", "content": description}, *prompt]
    place = next(place for place, message in enumerate(prompt) if message["role"] == "user")
    return [*prompt[:place], _begun(prompt[place], description), *prompt[place + 1 :]]


def _begun(message: dict[str, Any], description: str) -> dict[str, Any]:
    content = message.get("content") or ""
    if isinstance(content, str):
        return {**message, "content": f"{description}{_APART}{content}"}
    return {**message, "content": [{"type": "text", "text": description + _APART}, *content]}
