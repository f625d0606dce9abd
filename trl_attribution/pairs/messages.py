"""Checks on chat messages, no stricter than what TRL trains on without complaint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.images import SHOWN
from trl_attribution.utils.text import printable

Messages = list[dict[str, Any]]

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "environment")
RESPONSE_ROLES = ("assistant", "tool")
_MESSAGES_AS_TEXT = re.compile(r"\s*\[\s*\{\s*['\"](role|content)['\"]\s*:")


def checked_messages(value: list[Any], field: str, *, images: bool = False) -> Messages:
    """The messages without their None entries (transformers drops them too).

    With ``images`` they may hold places for images (``{"type": "image"}``), which stand in a column of their own.

    Raises:
        RowFault: an entry is no message, its role is unknown, or it has neither text nor tool calls.
    """
    messages: Messages = []
    for place, message in enumerate(value):
        where = f"message {place}"
        if not isinstance(message, Mapping):
            raise RowFault(
                "bad_message",
                field,
                f'{where} is a {type(message).__name__}, not an object. Write {{"role": ..., "content": ...}}.',
            )
        messages.append({str(key): entry for key, entry in message.items() if entry is not None})
        _check_role(messages[-1], field, where)
        _check_content(messages[-1], field, where, images)
    return messages


def _check_role(message: dict[str, Any], field: str, where: str) -> None:
    if "role" not in message:
        raise RowFault(
            "bad_message",
            field,
            f"{where} has no role (its keys: {printable(', '.join(message))}). Add one of {', '.join(ROLES[:5])}.",
        )
    if message["role"] not in ROLES:
        raise RowFault(
            "wrong_role",
            field,
            f"{where} has the role '{printable(message['role'], 40)}'. Rename it to one of {', '.join(ROLES[:5])}.",
        )


def _check_content(message: dict[str, Any], field: str, where: str, images: bool) -> None:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    if content is None:
        raise RowFault("bad_message", field, f"{where} has no content. Add its text as content, or drop the message.")
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise RowFault(
            "not_text", field, f"{where}: content is a {type(content).__name__}, not text. Write it as text."
        )
    for block in content:
        if images and is_place_of_image(block):
            continue
        if not isinstance(block, Mapping) or not isinstance(block.get("text"), str):
            kind = printable(block.get("type"), 40) if isinstance(block, Mapping) else type(block).__name__
            raise RowFault(
                "not_text",
                field,
                f"{where}: a content block of type '{kind}'. Only text blocks can be audited; images belong into the "
                'column images, with {"type": "image"} for each in the prompt.',
            )


def is_place_of_image(block: Any) -> bool:
    """Whether a content block is the place of an image, not one itself; Arrow may have filled in empty entries."""
    if not isinstance(block, Mapping) or block.get("type") != "image":
        return False
    return all(block.get(name) is None for name in ("text", "image", "url", "path", "base64"))


def check_response(messages: Messages, field: str, prompt: Messages) -> None:
    """Refuse a response that is nobody's answer.

    Raises:
        RowFault: the response does not start and end with the assistant (or a tool), or says nothing.
    """
    if not messages:
        raise RowFault(
            "empty_response", field, "has no message beyond the shared prompt. Add the response or drop the row."
        )
    first, last = str(messages[0]["role"]), str(messages[-1]["role"])
    if first not in RESPONSE_ROLES and messages[: len(prompt)] == prompt:
        raise RowFault(
            "wrong_role",
            field,
            f"starts with the {first} message of the prompt again. Keep only the response in it, or leave the prompt "
            "column out (--prompt-column '').",
        )
    for role, place in ((first, "starts"), (last, "ends")):
        if role not in RESPONSE_ROLES:
            raise RowFault(
                "wrong_role",
                field,
                f"{place} with a message of role '{role}'. A response must start and end with role assistant or tool.",
            )
    if not any(message.get("tool_calls") or text_of(message).strip() for message in messages):
        raise RowFault("empty_response", field, "the response is empty. Add its text or drop the row.")


def text_of(message: dict[str, Any]) -> str:
    """All text of a message, its blocks joined."""
    content = message.get("content", "")
    return content if isinstance(content, str) else "".join(map(_text_of_block, content))


def _text_of_block(block: Mapping[str, Any]) -> str:
    return SHOWN if is_place_of_image(block) else str(block["text"])


def with_places_shown(prompt: str | Messages, images: int) -> str | Messages:
    """``prompt`` with a word for each of its ``images``: in its place, else before the user's first text, as in TRL."""
    if not images or isinstance(prompt, str):
        return prompt
    shown = [{**message, "content": text_of(message)} if _has_places(message) else message for message in prompt]
    first = next((message for message in prompt if message["role"] == "user"), {})
    if shown == prompt and isinstance(first.get("content"), str):
        shown[prompt.index(first)] = {**first, "content": f"{SHOWN * images} {first['content']}"}
    return shown


def _has_places(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(map(is_place_of_image, content))


def whole_text(part: str | Sequence[dict[str, Any]]) -> str:
    """The text of a prompt or response: of all its messages, a line break between them."""
    return part if isinstance(part, str) else "\n".join(text_of(message) for message in part)


def looks_like_messages(text: str) -> bool:
    """Whether a text is a list of messages printed as JSON or as Python, as CSV files hold them."""
    return _MESSAGES_AS_TEXT.match(text) is not None
