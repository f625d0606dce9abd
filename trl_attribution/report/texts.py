"""The texts of listed pairs, read from the dataset again: an audit stores none."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import AttributionError
from trl_attribution.pairs import Pair, PairReader, Reading, RowFault
from trl_attribution.pairs.rows import Row, RowSource

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
    """

    def __init__(
        self, dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | RowSource, reading: Reading
    ) -> None:
        self._dataset = dataset
        self._reading = reading
        self._found: dict[str, Pair] = {}
        self._asked: set[str] = set()

    def at(self, rows: Mapping[str, int]) -> dict[str, Pair]:
        """The pairs with the given ids, which stood at the given rows, as far as the dataset still holds them.

        Raises:
            DataError: the dataset cannot be read.
        """
        new = {pair_id: row for pair_id, row in rows.items() if pair_id not in self._asked}
        if new:
            self._found |= pairs_at_rows(self._dataset, self._reading, new)
            self._asked |= new.keys()
        return {pair_id: self._found[pair_id] for pair_id in rows if pair_id in self._found}


def pairs_by_id(
    dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | RowSource, reading: Reading, pair_ids: Iterable[str]
) -> dict[str, Pair]:
    """The pairs with the given ids, as far as the dataset holds them."""
    wanted = set(pair_ids)
    found: dict[str, Pair] = {}
    for pair in PairReader(dataset, replace(reading, on_bad_row="skip")):
        if pair.pair_id in wanted:
            found.setdefault(pair.pair_id, pair)
            if len(found) == len(wanted):
                break
    return found


def pairs_at_rows(
    dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | RowSource, reading: Reading, rows: Mapping[str, int]
) -> dict[str, Pair]:
    """The pairs with the given ids, looked for at the ``rows`` where they were audited, then everywhere.

    Only the rows asked for are made into pairs, so that a large dataset takes as long as it takes to read.
    """
    found = _plainly_read(dataset, reading, rows)
    wanted = {row: pair_id for pair_id, row in rows.items() if pair_id not in found}
    if not wanted:
        return found
    reader = PairReader(dataset, replace(reading, on_bad_row="skip"))
    last = max(wanted, default=-1)
    for row in reader.rows():
        if row.index > last:
            break
        if row.index in wanted:
            try:
                pair = reader.read(row)
            except RowFault:
                continue  # the dataset is not what it was: the pair may stand elsewhere
            if pair.pair_id == wanted[row.index]:
                found[pair.pair_id] = pair
    missing = rows.keys() - found.keys()
    return found | pairs_by_id(dataset, reading, missing) if missing else found


@dataclass(frozen=True)
class _PlainLines:
    """The rows of a JSONL file without the types that ``datasets`` gives them, whose import takes a second."""

    path: Path
    kind: str = "jsonl"
    columns: list[str] | None = None
    features: None = None
    num_rows: int | None = None

    @property
    def name(self) -> str:
        """The file's."""
        return str(self.path)

    def __iter__(self) -> Iterator[Row]:
        with self.path.open("rb") as file:
            filled = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            for index, (number, line) in enumerate(filled):
                values = json.loads(line)
                if isinstance(values, dict):
                    yield Row(index, f"{self.path}:{number}", values, file=self.path, line=number)


def _plainly_read(dataset: Any, reading: Reading, rows: Mapping[str, int]) -> dict[str, Pair]:
    """Those of the pairs that stand in a plain JSONL file as they were audited: their ids tell."""
    if not isinstance(dataset, str | Path) or Path(dataset).suffix != ".jsonl" or not Path(dataset).is_file():
        return {}
    last, found = max(rows.values(), default=-1), {}
    wanted = set(rows.values())
    try:
        reader = PairReader(_PlainLines(Path(dataset)), replace(reading, on_bad_row="skip"))
        for row in reader.rows():
            if row.index > last:
                break
            if row.index in wanted:
                pair = reader.read(row)
                found[pair.pair_id] = pair
    except (RowFault, AttributionError, OSError, ValueError, RecursionError):
        return {}
    return {pair_id: found[pair_id] for pair_id in rows if pair_id in found}


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
    return _SUSPECT.sub(lambda found: _shown(found[0]), kept), max(0, len(text) - limit)


@lru_cache(maxsize=65_536)
def _shown(character: str) -> str:
    if unicodedata.category(character) in {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}:
        return character.encode("unicode_escape").decode("ascii")
    return character


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
