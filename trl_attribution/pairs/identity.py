"""The one identity of a pair: a digest of its content, blind to file format, row order and other columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from trl_attribution.pairs.faults import RowFault

ID_LENGTH = 32


def content_id(
    prompt: Any, chosen: Any, rejected: Any, tools: Any = None, chat_template_kwargs: Mapping[str, Any] | None = None
) -> str:
    """The first 32 hex characters of the SHA-256 of the pair's canonical JSON.

    Canonical: sorted keys, no spaces, entries whose value is None left out at every depth (Arrow fills them in where
    rows differ in their keys), empty tools and template arguments left out. Text is taken as it is, not normalized.

    Raises:
        RowFault: a text holds a lone surrogate, or a value has no JSON form.
    """
    document = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    document |= {"tools": tools} if tools else {}
    extra = without_none(chat_template_kwargs)
    document |= {"chat_template_kwargs": extra} if extra else {}
    return hashlib.sha256(canonical_json(document)).hexdigest()[:ID_LENGTH]


def canonical_json(document: dict[str, Any]) -> bytes:
    """UTF-8 bytes that are equal for equal content.

    Raises:
        RowFault: as for ``content_id``; its field is the entry of ``document`` at fault.
    """
    try:
        return _dump(without_none(document))
    except (UnicodeEncodeError, TypeError, ValueError):
        for field, value in document.items():
            _check_json(field, value)
        raise


def without_none(value: Any) -> Any:
    """A copy of ``value`` without the dict entries, at any depth, whose value is None."""
    if isinstance(value, Mapping):
        return {key: without_none(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [without_none(entry) for entry in value]
    return value


def _dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


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
