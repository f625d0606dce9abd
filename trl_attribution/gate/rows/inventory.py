"""A gate's pass over a dataset: which pairs it holds, which of them are examined, and what is wrong with its rows."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from trl_attribution.errors import DataError
from trl_attribution.gate.rows.changes import Content, content_of
from trl_attribution.pairs import Pair, PairReader, RowFault
from trl_attribution.pairs.dataset_pass import Census
from trl_attribution.pairs.faults import UNTAUGHT
from trl_attribution.pairs.messages import text_of
from trl_attribution.pairs.rows import Row
from trl_attribution.utils.arrays import Bools, Integers
from trl_attribution.utils.kinds import EXAMPLES
from trl_attribution.utils.progress import OnProgress
from trl_attribution.utils.text import MOST_SHOWN, printable, some_lines, tally

Examine = Callable[[Sequence[Content]], list[bool]]
"""Which of all rows of a dataset, in order, are to be judged."""

_REPORT_EVERY = 1000


@dataclass(frozen=True)
class BadRow:
    """A row that is no pair."""

    row: int
    location: str
    reason: str
    """Slug to count by, such as ``empty_response``."""
    sentence: str
    """What is wrong with it, printable."""
    examined: bool
    file: Path | None = None
    line: int | None = None
    """Where it stands, as :class:`Row` knows it."""


@dataclass(frozen=True)
class Inventory:
    """The N different pairs of a dataset in the order of their first rows; memory holds no texts."""

    reader: PairReader
    pair_ids: list[str]
    rows: Integers
    """[N], the row that stands for each pair: its first examined one, else its first."""
    source_names: list[str]
    sources: Integers
    """[N], index into ``source_names`` of that row's source."""
    examined: Bools
    """[N]"""
    contradicted: Bools
    """[N], whether the dataset also holds the pair the other way round."""
    prompt_length: Integers
    """[N], characters."""
    chosen_length: Integers
    rejected_length: Integers
    repeats: tuple[tuple[int, int], ...]
    """Examined rows that hold a pair of another row: each row, and the position of its pair."""
    bad_rows: tuple[BadRow, ...]
    fingerprint: str
    """The dataset's."""
    lacks_own: bool
    """Whether M0's own responses are one side of some pair."""

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def examined_positions(self) -> Integers:
        """[E], positions of the pairs to be judged, rising."""
        return np.flatnonzero(self.examined)

    def ids_at(self, positions: Integers) -> list[str]:
        """The ids of some pairs."""
        return [self.pair_ids[position] for position in positions.tolist()]


def take_inventory(
    reader: PairReader, examine: Examine | None, tolerated: AbstractSet[str], on_progress: OnProgress
) -> Inventory:
    """Read the whole dataset once.

    Rows and what is kept of them are those of :func:`~trl_attribution.pairs.dataset_pass.pass_over`. Unlike there, bad
    rows have a place among the others, since rules judge them; and nothing is tokenized, since which pairs need tokens
    is known only once their ids have been looked up in the cache, and a policy about rows alone needs no tokenizer.

    Args:
        reader: the dataset.
        examine: says which rows are to be judged; None judges all.
        tolerated: reasons for which a row may be bad even where bad rows are errors: a rule judges them.
        on_progress: see :data:`OnProgress`.

    Raises:
        DataError: bad rows where they are errors (the first ten are listed), or not one row is a pair.
    """
    rows, contents = _Rows(), list[Content]()
    for count, (row, read) in enumerate(reader.each(), start=1):
        rows.add(row, read)
        if examine is not None:
            contents.append(content_of(row, read))
        if count % _REPORT_EVERY == 0:
            on_progress("read", count, reader.source.num_rows or 0)
    _refuse_bad_rows(reader, rows, tolerated)
    return rows.inventory(reader, None if examine is None else np.array(examine(contents), dtype=np.bool_))


@dataclass
class _Rows:
    """What is kept of each row that is a pair, beside what every pass keeps: 32 bytes."""

    census: Census = field(default_factory=Census)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    sources: array[int] = field(default_factory=lambda: array("q"))
    source_names: dict[str, int] = field(default_factory=dict)
    is_pair: bytearray = field(default_factory=bytearray)
    bad: list[BadRow] = field(default_factory=list)
    lacks_own: bool = False

    def add(self, row: Row, read: Pair | RowFault) -> None:
        self.is_pair.append(isinstance(read, Pair))
        if isinstance(read, Pair):
            self._add_pair(read)
        else:
            sentence = f"column '{printable(read.field, 60)}' {printable(read.detail, 400)}"
            self.bad.append(BadRow(row.index, row.location, read.reason, sentence, True, row.file, row.line))

    def _add_pair(self, pair: Pair) -> None:
        self.census.add(pair)
        self.lengths.extend((characters(pair.prompt), characters(pair.chosen), characters(pair.rejected)))
        self.sources.append(self.source_names.setdefault(pair.source, len(self.source_names)))
        self.lacks_own |= pair.lacks_own

    def inventory(self, reader: PairReader, wanted: Bools | None) -> Inventory:
        ids = self.census.ids
        _, first, codes = np.unique(ids, return_index=True, return_inverse=True)
        order = np.argsort(first)
        position = np.empty_like(order)
        position[order] = np.arange(len(order))
        pair_of = position[codes]  # [R], each row's pair
        place = first[order]  # [N], the row that stands for each pair
        is_pair = np.frombuffer(self.is_pair, dtype=np.bool_)
        wanted = np.ones(len(is_pair), dtype=np.bool_) if wanted is None else wanted
        judged, bad_judged = wanted[is_pair], wanted[~is_pair].tolist()
        latest_first = np.flatnonzero(judged)[::-1]
        place[pair_of[latest_first]] = latest_first  # of several, the first row is written last
        examined = np.zeros(len(order), dtype=np.bool_)
        examined[pair_of[latest_first]] = True
        numbers = self.census.rows.astype(np.int64)
        lengths = np.frombuffer(self.lengths, dtype=np.int64).reshape(-1, 3)[place]
        text = ids[place].tobytes().hex()
        return Inventory(
            reader=reader,
            pair_ids=[text[start : start + 32] for start in range(0, len(text), 32)],
            rows=numbers[place],
            source_names=list(self.source_names),
            sources=np.frombuffer(self.sources, dtype=np.int64)[place],
            examined=examined,
            contradicted=np.isin(self.census.flipped[place], ids),
            prompt_length=lengths[:, 0],
            chosen_length=lengths[:, 1],
            rejected_length=lengths[:, 2],
            repeats=_repeats(pair_of, judged, numbers),
            bad_rows=tuple(replace(row, examined=examined) for row, examined in zip(self.bad, bad_judged, strict=True)),
            fingerprint=self.census.fingerprint.hexdigest(),
            lacks_own=self.lacks_own,
        )


def _repeats(pair_of: Integers, judged: Bools, numbers: Integers) -> tuple[tuple[int, int], ...]:
    """Of the rows of one pair, one counts as the original: one that was there before, else the first."""
    order = np.lexsort((np.arange(len(pair_of)), judged, pair_of))
    sorted_pairs = pair_of[order]
    again = order[1:][sorted_pairs[1:] == sorted_pairs[:-1]]
    found = np.sort(again[judged[again]])
    return tuple((int(numbers[row]), int(pair_of[row])) for row in found.tolist())


def _refuse_bad_rows(reader: PairReader, rows: _Rows, tolerated: AbstractSet[str]) -> None:
    skip = reader.reading.on_bad_row == "skip"
    bad = [row for row in rows.bad if row.reason not in tolerated | UNTAUGHT and not skip]
    if len(rows.census) and not bad:
        return
    shown = bad or rows.bad
    reasons = tally(dict(Counter(row.reason for row in shown).most_common()))
    total = len(rows.census) + len(rows.bad)
    fix = (
        "Mend these rows, or leave them out with `reading: {on_bad_row: skip}` in the policy; the rules "
        "hygiene.empty_responses and hygiene.identical_responses judge such rows instead."
        if len(rows.census)
        else "Not one row can be read: check the column names and the format."
    )
    what = EXAMPLES[reader.kind]
    head = f"{reader.source.name}: {len(shown)} of {total} rows cannot be read as {what} ({reasons})."
    raise DataError("\n".join([head, *shown_rows(shown), fix]))


def shown_rows(rows: Sequence[BadRow]) -> list[str]:
    """The first ten bad rows, a line each, and how many more there are."""
    return some_lines([f"{printable(row.location)}: {row.sentence}" for row in rows[:MOST_SHOWN]], len(rows))


def characters(content: str | list[dict[str, Any]]) -> int:
    """Length of a prompt or response, of all its messages together."""
    return len(content) if isinstance(content, str) else sum(len(text_of(message)) for message in content)
