"""Tables for a terminal. Every cell is ``Text``: what a dataset or a name holds is never read as markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

Cell = str | Text


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]] = (), caption: str = "") -> Table:
    """A table without vertical lines, so that eight columns fit into 80 characters.

    A column whose name begins with ``>`` is set to the right.
    """
    shown = Table(
        title=Text(title, "table.title"),
        title_justify="left",
        caption=Text(caption, "table.caption") if caption else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    for name in columns:
        side = "right" if name.startswith(">") else "left"
        shown.add_column(Text(name.removeprefix(">")), justify=side, overflow="fold")  # type: ignore[arg-type]
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
