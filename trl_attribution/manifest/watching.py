"""A dataset read in passing: where each file of a folder begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from trl_attribution.pairs.rows import Row, RowSource
from trl_attribution.pairs.rows.files import FolderRows

if TYPE_CHECKING:
    from datasets import Features


@dataclass
class WatchedRows:
    """The rows of ``source``, with a note of the row that each file begins with."""

    source: RowSource
    _starts: list[int] = field(default_factory=lambda: [0])

    @property
    def parts(self) -> tuple[RowSource, ...]:
        """The files of a folder, or the source itself."""
        return self.source.parts if isinstance(self.source, FolderRows) else (self.source,)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first row of each of ``parts``, once all rows were read."""
        return tuple(self._starts)

    @property
    def name(self) -> str:
        """What the user gave."""
        return self.source.name

    @property
    def kind(self) -> str:
        """What kind of dataset it is."""
        return self.source.kind

    @property
    def columns(self) -> list[str] | None:
        """Column names, or None where only the rows can tell."""
        return self.source.columns

    @property
    def features(self) -> Features | None:
        """Column types, or None where the format has none."""
        return self.source.features

    @property
    def num_rows(self) -> int | None:
        """Number of rows, or None where it is not known."""
        return self.source.num_rows

    def __iter__(self) -> Iterator[Row]:
        self._starts = []
        index = 0
        for part in self.parts:
            self._starts.append(index)
            for row in part:
                yield replace(row, index=index)
                index += 1
