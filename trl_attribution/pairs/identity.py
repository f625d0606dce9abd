"""The one identity of a pair: a digest of its content, blind to file format, row order and other columns."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from trl_attribution.pairs.faults import RowFault

ID_LENGTH = 32
KEY_BYTES = 16
"""Of a :func:`prompt_key`."""


def _json_form(value: Any) -> str:
    """Text for what typed columns hold and JSON does not know.

    Raises:
        TypeError: it is nothing of the kind.
    """
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_json_form)
_KEYS = {
    name: f'"{name}":'.encode()
    for name in ("prompt", "chosen", "rejected", "responses", "tools", "chat_template_kwargs", "images")
}
"""What a pair's canonical JSON may hold, as it stands there."""


@dataclass(frozen=True, slots=True)
class ContentIds:
    """The id of a pair, and that of the same pair with chosen and rejected exchanged."""

    own: str
    flipped: str


def content_ids(
    prompt: Any,
    chosen: Any,
    rejected: Any,
    tools: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    images: Sequence[str] = (),
) -> ContentIds:
    """The first 32 hex characters of the SHA-256 of the pair's canonical JSON.

    Canonical: sorted keys, no spaces, entries whose value is None left out at every depth (Arrow fills them in where
    rows differ in their keys), empty tools and template arguments left out. Text is taken as it is, not normalized;
    dates, decimals and bytes, which a message may hold where its column has types, are written as text. ``images`` are
    digests of their pixels; without any, the id is that of the text.

    Raises:
        RowFault: a text holds a lone surrogate, or a value has no JSON form; its field is the argument at fault.
    """
    document = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    document |= {"tools": tools} if tools else {}
    extra = without_none(chat_template_kwargs)
    document |= {"chat_template_kwargs": extra} if extra else {}
    document |= {"images": list(images)} if images else {}
    # Each value is written once, for both ids: most of the time that reading a dataset takes is spent here.
    values = {name: _canonical_json(name, value) for name, value in document.items()}
    exchanged = {**values, "chosen": values["rejected"], "rejected": values["chosen"]}
    return ContentIds(_digest(values), _digest(exchanged))


def contrast_ids(
    prompt: Any,
    weighted: Sequence[tuple[float, Any]],
    tools: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> ContentIds:
    """The id of any contrast, and that of the same one with its weights negated.

    A response with weight 1 and one with -1 are a pair, and have its id. A single response, whose other side are M0's
    own, is the chosen or the rejected one of a pair without the other. More responses are a list of weights (rounded
    to six digits) and responses, in their order.

    Raises:
        RowFault: as for :func:`content_ids`.
    """
    signs = [round(weight, 6) for weight, _ in weighted]
    if signs == [1.0, -1.0]:
        return content_ids(prompt, weighted[0][1], weighted[1][1], tools, chat_template_kwargs)
    documents = (_document(prompt, weighted, sign, tools, chat_template_kwargs) for sign in (1, -1))
    own, flipped = ({name: _canonical_json(name, value) for name, value in one.items()} for one in documents)
    return ContentIds(_digest(own), _digest(flipped))


def _document(
    prompt: Any, weighted: Sequence[tuple[float, Any]], sign: int, tools: Any, chat_template_kwargs: Any
) -> dict[str, Any]:
    extra = without_none(chat_template_kwargs)
    document = {"prompt": prompt, **({"tools": tools} if tools else {})}
    document |= {"chat_template_kwargs": extra} if extra else {}
    if len(weighted) == 1:
        weight, response = weighted[0]
        return {**document, ("chosen" if sign * weight > 0 else "rejected"): response}
    return {**document, "responses": [[round(sign * weight, 6) + 0.0, response] for weight, response in weighted]}


def _digest(values: Mapping[str, bytes]) -> str:
    """Of the JSON object with these values, which are JSON already."""
    entries = b",".join([_KEYS[name] + values[name] for name in sorted(values)])
    return hashlib.sha256(b"{%b}" % entries).hexdigest()[:ID_LENGTH]


def _canonical_json(field: str, value: Any) -> bytes:
    """UTF-8 bytes that are equal for equal content."""
    try:
        written = _dump(value)
        # None would be written as null: without that word there is nothing to leave out.
        return written if b"null" not in written else _dump(without_none(value))
    except (UnicodeEncodeError, TypeError, ValueError):
        _check_json(field, value)
        return _dump(without_none(value))  # a mapping that is no dict


def without_none(value: Any) -> Any:
    """A copy of ``value`` without the dict entries, at any depth, whose value is None."""
    if isinstance(value, Mapping):
        return {key: without_none(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [without_none(entry) for entry in value]
    return value


def same_content(one: Any, other: Any) -> bool:
    """Whether two values are equal :func:`without_none`; no copies are made, and the first difference ends it."""
    if one == other:
        return True
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = {key for side in (one, other) for key, entry in side.items() if entry is not None}
        return all(same_content(one.get(key), other.get(key)) for key in keys)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_content, one, other))
    return False


def _dump(value: Any) -> bytes:
    return _ENCODER.encode(value).encode("utf-8")


def _check_json(field: str, value: Any) -> None:
    try:
        _dump(without_none(value))
    except UnicodeEncodeError as error:
        raise RowFault(
            "invalid_text",
            field,
            f"holds the lone surrogate \\u{ord(error.object[error.start]):04x}, which is no character and cannot be "
            "tokenized. Remove it or write the character it was part of.",
        ) from error
    except (TypeError, ValueError) as error:
        raise RowFault(
            "not_text", field, f"has no JSON form ({error}). Give text, messages or plain values."
        ) from error


def prompt_key(prompt: Any, *further: Any) -> bytes:
    """What rows with the same prompt share."""
    content = json.dumps([prompt, *further], sort_keys=True, default=repr).encode()
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


class FingerprintBuilder:
    """A dataset's fingerprint, built one pair at a time: SHA-256 over the pair ids in row order.

    Rows that are not read as pairs do not count, so that the fingerprint is the same in every file format.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, pair_id: str) -> None:
        """Add the next pair's id."""
        self._digest.update(bytes.fromhex(pair_id))

    def hexdigest(self) -> str:
        """The fingerprint of the pairs added so far, 64 hex characters."""
        return self._digest.hexdigest()


def dataset_fingerprint(ids: Iterable[str]) -> str:
    """The fingerprint of a dataset whose pairs have these ids, in row order."""
    builder = FingerprintBuilder()
    for pair in ids:
        builder.add(pair)
    return builder.hexdigest()
