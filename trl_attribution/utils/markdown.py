"""Markdown that holds hostile text: inside lines and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from trl_attribution.utils.text import printable

LIMIT = 300
"""Most characters of a dataset's text, a path or a name."""
# Letters, digits and signs that never begin markup, a link, a mention or a reference inside a line, but for those that
# do so in some places: a list at the start, emphasis around words, an emoji or a command after a colon.
_PLAIN = re.compile(r"[\w ,;:()/+='\"?.…%-]")
_BEGINNING = re.compile(
    r"^\s*[-+:]|^\s*\d+[.)](?=\s|$)|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.|:(?=\S)|%(?=[\w\"])", re.IGNORECASE
)
# What GitHub and GitLab turn into a mention, a reference or a link, even where it was written as an entity.
_JOINING = re.compile(r"[@#!$%~^&]|:(?=/)|(?<=www)\.", re.IGNORECASE)


def inline(text: object, limit: int = LIMIT) -> str:
    """``text`` for the middle of a Markdown line or table cell: no markup, HTML, link, mention or reference.

    Nor is any of it a command to a CI runner that reads the Markdown itself: these begin with signs that are escaped.

    >>> inline("</details> | [x](http://y) *a_b* _c_")
    '&#60;/details&#62; &#124; &#91;x&#93;(http&#58;&#8203;//y) &#42;a_b&#42; &#95;c&#95;'
    >>> inline("0.1.0"), inline("1. point")
    ('0.1.0', '1&#46; point')
    """
    shown = printable(text, limit)
    marked = {match.end() - 1 for match in _BEGINNING.finditer(shown)}
    joining = {match.start() for match in _JOINING.finditer(shown)}
    pieces = []
    for place, character in enumerate(shown):
        # An entity cannot begin anything; the empty space keeps the sign from joining what follows.
        entity = f"&#{ord(character)};" + ("&#8203;" if place in joining else "")
        pieces.append(character if _PLAIN.match(character) and place not in marked else entity)
    return "".join(pieces)


def code(text: object, limit: int = LIMIT) -> str:
    """``text`` in a Markdown line or table cell, set as code; backticks would need another quoting in tables."""
    return f"<code>{inline(text, limit)}</code>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; its cells are Markdown already."""
    return [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
