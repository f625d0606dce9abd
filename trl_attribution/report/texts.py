"""The texts of listed pairs, read from the dataset again: an audit stores none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.pairs import Pair, Reading
from trl_attribution.pairs.examples import OwnResponses
from trl_attribution.pairs.lookup import pairs_at_rows
from trl_attribution.pairs.rows import RowSource
from trl_attribution.utils.text import escaped

if TYPE_CHECKING:
    from datasets import Dataset

_SUSPECT = re.compile(r"[^\n\t\x20-\x7e]")


@dataclass(frozen=True)
class Segment:
    """One message, or a text that is not a conversation."""

    role: str
    """Empty for plain text."""
    text: str
    """With characters that are invisible or turn the line round written as escapes."""
    dropped: int
    """Characters that were cut off its end."""


@dataclass(frozen=True)
class PairText:
    """One pair as a person reads it."""

    location: str
    prompt: tuple[Segment, ...]
    chosen: tuple[Segment, ...]
    rejected: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Characters in all."""
        return sum(len(one.text) for one in (*self.prompt, *self.chosen, *self.rejected))


class ListedPairs:
    """Pairs of a dataset by id and row; what was read is kept, so that page and terminal read it together.

    Args:
        dataset: what was audited.
        reading: how it was read.
        own: M0's own responses, which the examples were compared with.
    """

    def __init__(
        self,
        dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | RowSource,
        reading: Reading,
        own: OwnResponses | None = None,
    ) -> None:
        self._dataset, self._reading, self._own = dataset, reading, own
        self._found: dict[str, Pair] = {}
        self._asked: set[str] = set()

    def at(self, rows: Mapping[str, int]) -> dict[str, Pair]:
        """The pairs with the given ids, which stood at the given rows, as far as the dataset still holds them.

        Raises:
            DataError: the dataset cannot be read.
        """
        new = {pair_id: row for pair_id, row in rows.items() if pair_id not in self._asked}
        if new:
            self._found |= pairs_at_rows(self._dataset, self._reading, new, self._own)
            self._asked |= new.keys()
        return {pair_id: self._found[pair_id] for pair_id in rows if pair_id in self._found}


def readable(pair: Pair, characters: int) -> PairText:
    """``pair`` with each message cut to ``characters`` and made safe to look at."""
    return PairText(
        visible(pair.location, 300)[0],
        *(_segments(side, characters) for side in pair.shown),
    )


def visible(text: str, limit: int) -> tuple[str, int]:
    r"""``text`` with its lines, at most ``limit`` characters of it, and how many were cut off.

    Control, format, private and bidirectional characters come out as ``\x1b``-style escapes.

    >>> visible("two\nlines \u202eturned", 100)
    ('two\nlines \\u202eturned', 0)
    """
    kept = text[:limit].replace("\r\n", "\n")
    return _SUSPECT.sub(lambda found: escaped(found[0]), kept), max(0, len(text) - limit)


def _segments(content: str | Sequence[Mapping[str, Any]], characters: int) -> tuple[Segment, ...]:
    if isinstance(content, str):
        return (Segment("", *visible(content, characters)),)
    return tuple(
        Segment(visible(str(message.get("role", "")), 40)[0], *visible(_content(message), characters))
        for message in content
    )


def _content(message: Mapping[str, Any]) -> str:
    """A message's text; what else it holds, such as tool calls, as JSON behind it."""
    text = message.get("content")
    rest = {key: value for key, value in message.items() if key not in ("role", "content") and value is not None}
    parts = [text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str)] if text else []
    parts += [json.dumps(rest, ensure_ascii=False, default=str)] if rest else []
    return "\n".join(parts)
