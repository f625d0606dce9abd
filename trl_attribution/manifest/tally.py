"""What happened to the rows of each source."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

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


class SourceTally:
    """Counts rows by source; beyond the first 10,000 sources all others are counted as one."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()
        self._filtered: Counter[str] = Counter()
        self._flipped: Counter[str] = Counter()

    def add(self, source: str, rows: int = 1, *, filtered: bool, flipped: bool) -> None:
        """Count the rows of one example."""
        name = source if source in self._rows or len(self._rows) < MOST_SOURCES else OTHER
        self._rows[name] += rows
        self._filtered[name] += rows * filtered
        self._flipped[name] += rows * flipped

    def changes(self) -> tuple[SourceChange, ...]:
        """Every source, most changed first."""
        every = [
            SourceChange(name, rows, self._filtered[name], self._flipped[name]) for name, rows in self._rows.items()
        ]
        return tuple(sorted(every, key=lambda one: (-one.filtered - one.flipped, -one.rows, one.source)))
