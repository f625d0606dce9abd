"""What applying a manifest did: to the rows of the dataset, and of each source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from trl_attribution.utils.text import counted, printable

# A dataset whose every row names another source must not fill the memory.
MOST_SOURCES = 10_000
OTHER = "(other sources)"


@dataclass(frozen=True)
class SourceChange:
    """The rows of one source, before and after."""

    source: str
    rows: int
    """Rows that are pairs, before."""
    filtered: int
    flipped: int
    weighed: int = 0
    """Rows of listed pairs that stay, with a weight."""

    @property
    def changed(self) -> int:
        """Rows that anything happened to."""
        return self.filtered + self.flipped + self.weighed


@dataclass(frozen=True)
class ApplyReport:
    """What applying a manifest did to a dataset, in rows."""

    rows_in: int
    rows_out: int
    filtered: int
    flipped: int
    pairs: int
    """Different listed pairs that were filtered or flipped."""
    duplicates: int
    """Rows among ``filtered`` or ``flipped`` beyond the first of their pair."""
    missing: int
    """Listed pairs that the dataset lacks; more than 0 only where that was allowed."""
    opposed: int
    """Rows that hold a flipped pair the other way round and stay: the flip now agrees with them."""
    unreadable: int
    """Rows that are no pairs; they were carried over as they are."""
    same_dataset: bool
    """Whether the pairs are those that were audited, in the same order."""
    swapped_columns: tuple[tuple[str, str], ...] = ()
    """Further columns that were exchanged in flipped rows."""
    negated_columns: tuple[str, ...] = ()
    """Columns whose sign was turned in flipped rows."""
    left_columns: tuple[str, ...] = ()
    """Columns that were left alone because a rule says so."""
    sources: tuple[SourceChange, ...] = ()
    """What happened to each source, most changed first."""
    other_splits: Mapping[str, int] = field(default_factory=dict)
    """Rows of the splits that the manifest says nothing about; they were carried over as they are."""
    splits_left_out: tuple[str, ...] = ()
    """Splits of the input that a single output file has no place for."""
    files_copied: int = 0
    """Of a folder: files that came out byte for byte."""
    files_rewritten: int = 0
    """Of a folder: files in which a row was touched."""
    zeroed: int = 0
    """Rows of filtered rollout groups that stayed, with an advantage of 0."""
    weighed: int = 0
    """Rows of listed pairs that stay, with a weight."""
    weighed_as: float = 0.0
    """The sum of those weights: as many rows at full weight would count as much."""
    weight_column: str = ""
    """Where the weights are, or with ``undo`` were; "" where the manifest does what it lists."""
    files_left_out: int = 0
    """Of a folder: what is no plain file, or lies in a hidden folder."""

    @property
    def weighed_sentence(self) -> str:
        """What was weighed, for people."""
        return (
            f"{counted(self.weighed, 'row')} by the score, counting as much as {self.weighed_as:,.1f}, all others 1: "
            f"column {printable(self.weight_column)}"
        )


class SourceTally:
    """Counts rows by source; beyond the first 10,000 sources all others are counted as one."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()
        self._done: dict[str, Counter[str]] = {}

    def add(self, source: str, rows: int = 1, done: str | None = None) -> None:
        """Count the rows of one example, and what was ``done`` to them: ``filtered``, ``flipped``, ``weighed``."""
        name = source if source in self._rows or len(self._rows) < MOST_SOURCES else OTHER
        self._rows[name] += rows
        if done is not None:
            self._done.setdefault(name, Counter())[done] += rows

    def changes(self) -> tuple[SourceChange, ...]:
        """Every source, most changed first."""
        none: Counter[str] = Counter()
        every = []
        for name, rows in self._rows.items():
            done = self._done.get(name, none)
            every.append(SourceChange(name, rows, done["filtered"], done["flipped"], done["weighed"]))
        return tuple(sorted(every, key=lambda one: (-one.changed, -one.rows, one.source)))
