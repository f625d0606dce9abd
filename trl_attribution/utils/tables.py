"""Tables for a terminal. Every cell is ``Text``: what a dataset or a name holds is never read as markup."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

Cell = str | Text
_UNLIMITED = 10_000
"""Columns of what is no terminal: there, lines are searched."""
_PROSE = 12
"""Columns that a text of several words needs at least."""


def people_console() -> Console:
    """Standard output for people: as wide as the terminal, or without limit where there is none."""
    console = Console(markup=False, emoji=False)  # a path may hold what looks like markup
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNLIMITED
    return console


def tell(console: Console, *renderables: RenderableType) -> None:
    """Print; outside of a terminal without the spaces that pad lines to its width."""
    for renderable in renderables:
        # To be printed, texts are joined to a new one, which does not know that they are to stay in one piece.
        is_whole = isinstance(renderable, Text) and bool(renderable.no_wrap)
        if console.is_terminal:
            console.print(renderable, soft_wrap=is_whole)
            continue
        with console.capture() as captured:
            console.print(renderable, soft_wrap=is_whole)
        sys.stdout.write("\n".join(line.rstrip() for line in captured.get().split("\n")))


@dataclass(frozen=True)
class _Width:
    """What a column needs."""

    least: int
    """Below it, a name or a number would be broken over lines."""
    natural: int
    """Nothing is broken but the header, at its spaces."""

    @classmethod
    def of(cls, header: Text, cells: Sequence[Text]) -> _Width:
        """Of a column with these cells."""
        lines = [line for cell in cells for line in cell.split("\n")]
        longest = max((line.cell_len for line in lines), default=0)
        word = max((word.cell_len for text in (header, *lines) for word in text.split(" ")), default=0)
        is_prose = any(line.plain.count(" ") > 1 for line in lines)
        return cls(max(word, min(longest, _PROSE) if is_prose else longest), max(word, longest))


class WholeTable(Table):
    """A table that breaks no name and no number over lines.

    Where it is too wide, its headers are broken at spaces, then its columns of prose; where that does not do, or there
    is no terminal to draw lines between rows of several lines, each row is told in lines of its own.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What is drawn on ``console``."""
        columns = [[as_text(cell) for cell in column._cells] for column in self.columns]  # type: ignore[arg-type]  # noqa: SLF001
        rows = list(zip(*columns, strict=True))
        shown = copy.copy(self)
        shown.columns = [copy.copy(column) for column in self.columns]
        if not console.is_terminal:
            shown.box, shown.padding = None, (0, 3, 0, 0)
        is_stacked = not console.is_terminal and any("\n" in cell.plain for row in rows for cell in row)
        if is_stacked or not shown._narrow(columns, console, options):  # noqa: SLF001
            yield from self._lines(rows)
        else:
            yield from Table.__rich_console__(shown, console, options)

    def _narrow(self, columns: Sequence[Sequence[Text]], console: Console, options: ConsoleOptions) -> bool:
        """Give each column what it needs; False where there is too little."""
        unlimited = options.update(width=_UNLIMITED)
        if Measurement.get(console, unlimited, self).maximum <= options.max_width:
            return True
        headers = [as_text(column.header) if self.show_header else Text() for column in self.columns]  # type: ignore[arg-type]
        needs = [_Width.of(header, cells) for header, cells in zip(headers, columns, strict=True)]
        if self.box is SIMPLE_HEAD:
            self.padding = (0, 0)  # its columns are a space apart by themselves
        for column in self.columns:
            column.width = 0
        left = options.max_width - Measurement.get(console, unlimited, self).maximum - sum(one.least for one in needs)
        wanting = sum(one.natural - one.least for one in needs)
        for column, one in zip(self.columns, needs, strict=True):
            more = one.natural - one.least
            column.width = one.least + (min(more, left * more // wanting) if more else 0)
        return left >= 0

    def _lines(self, rows: Iterable[Sequence[Text]]) -> Iterator[RenderableType]:
        """What is short side by side with the names of the columns; beneath it the last, where that has lines."""
        if self.title:
            yield self.title
        rows = list(rows)
        headers = [
            as_text(column.header).plain if _is_counted(column, cells) else ""  # type: ignore[arg-type]
            for column, cells in zip(self.columns, zip(*rows, strict=True), strict=False)
        ]
        is_number = self.columns[-1].justify == "right"
        for row in rows:
            *short, last = row if "\n" in row[-1].plain and not is_number else (*row, Text())
            yield Text("  ").join(_with_name(*one) for one in zip(headers, short, strict=False) if one[1].plain)
            yield from (Padding.indent(line, 2) for line in last.split("\n") if last.plain)
        if self.caption:
            yield self.caption


def _is_counted(column: Column, cells: Iterable[Text]) -> bool:
    """Whether cells say what they count: where one begins as a number, all do; names speak for themselves."""
    return column.justify == "right" or any(cell.plain.startswith(tuple("+-.0123456789")) for cell in cells)


def _with_name(name: str, cell: Text) -> Text:
    text = Text(", ").join(cell.split("\n"))
    return Text(f"{name} ").append_text(text) if name else text


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]] = (), caption: str = "") -> Table:
    """A table without vertical lines, so that eight columns fit into 80 characters.

    A column whose name begins with ``>`` is set to the right.
    """
    shown = WholeTable(
        title=Text(title, "table.title"),
        title_justify="left",
        caption=Text(caption, "table.caption") if caption else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    for name in columns:
        side: Any = "right" if name.startswith(">") else "left"
        shown.add_column(Text(name.removeprefix(">")), justify=side, overflow="fold")
    for row in rows:
        shown.add_row(*map(as_text, row))
    return shown


def facts(lines: Iterable[tuple[str, Cell]]) -> Table:
    """Names and values side by side."""
    shown = Table.grid(padding=(0, 2))
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for name, value in lines:
        shown.add_row(name, as_text(value))
    return shown


def as_text(cell: Cell) -> Text:
    """``cell`` as it is to be shown, character by character."""
    return cell if isinstance(cell, Text) else Text(cell)
