"""What an activation oracle answers, beside what it answers about other vectors; text enters made printable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trl_attribution.utils.tables import table
from trl_attribution.utils.text import counted, printable

if TYPE_CHECKING:
    from trl_attribution.lenses.oracle import Answers

_CHARACTERS = 600
_WARNING = (
    "A model's words, not a measurement: it answers about random vectors too. What it says of this vector alone may be "
    "worth checking."
)


def answers_view(name: str, layer: int, found: Sequence[Answers]) -> RenderableType:
    """A table a question, one sample a line."""
    return Group(Text(_WARNING), *(_question(name, layer, one) for one in found))


def _question(name: str, layer: int, one: Answers) -> Table:
    columns = (f"{_named(name)}, layer {layer}", "random vectors", *map(_named, one.others))
    rows = [
        tuple(printable(text.strip(), _CHARACTERS) for text in texts)
        for texts in zip(one.answers, one.random, *one.others.values(), strict=True)
    ]
    return table(printable(one.question, _CHARACTERS), columns, rows, _same(one))


def _named(name: str) -> str:
    return printable(name, 60)


def _same(one: Answers) -> str:
    """How many answers are no news."""
    elsewhere = {_plain(text) for texts in (one.random, *one.others.values()) for text in texts}
    same = sum(_plain(text) in elsewhere for text in one.answers)
    return f"{same} of {counted(len(one.answers), 'answer')} to it are given to another vector too, word for word"


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")
