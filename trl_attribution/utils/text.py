"""Dataset text made safe to show: it is hostile until proven otherwise."""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

MOST_SHOWN = 10
"""Of many things, how many a message lists."""
_MOST_DIGITS = 18
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_INVISIBLE = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"))
"""Categories of characters that control, format or turn round what is shown; bidirectional marks are Cf."""


def printable(text: object, limit: int = 200) -> str:
    r"""``text`` on one line, with control, format and bidirectional characters escaped, at most ``limit`` long.

    Terminal escape sequences, carriage returns and right-to-left overrides come out as visible ``\x1b``-style
    escapes; rich markup is not touched (pass the result through ``rich.text.Text``, never through markup).

    >>> printable("red \x1b[31malert\nnext")
    'red \\x1b[31malert next'
    """
    shown: list[str] = []
    length = 0
    for character in str(text):
        piece = " " if character in "\n\t " else escaped(character)
        length += len(piece)
        if length > limit:
            return "".join(shown).rstrip() + "…"
        shown.append(piece)
    return "".join(shown)


def json_bytes(text: str) -> bytes:
    r"""JSON ``text`` in UTF-8; what a file name holds that is not UTF-8 becomes an escape that reads back as it was.

    >>> json_bytes('["\udcff.jsonl"]')
    b'["\\udcff.jsonl"]'
    """
    return text.encode("utf-8", "backslashreplace")


def json_fault(error: ValueError | RecursionError) -> str:
    """Why ``json.loads`` failed, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"a number that cannot be read: {printable(str(error).partition(';')[0])}"  # Python limits its digits


@lru_cache(maxsize=65_536)
def escaped(character: str) -> str:
    r"""``character``, or where it is invisible its ``\x1b``-style escape."""
    hidden = unicodedata.category(character) in _INVISIBLE
    return character.encode("unicode_escape").decode("ascii") if hidden else character


def counted(number: int, one: str, several: str | None = None) -> str:
    """``1 probe``, ``2 probes``, ``1,000 probes``; ``several`` where an s is not enough."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def duration_text(seconds: float) -> str:
    """In seconds, minutes or hours, whichever reads best.

    >>> duration_text(40.08), duration_text(600)
    ('40.1 s', '10.0 min')
    """
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def tally(counts: Mapping[str, int]) -> str:
    """``empty_response: 1,200, tie: 3``."""
    return ", ".join(f"{printable(name)}: {count:,}" for name, count in counts.items())


def some(names: Sequence[str], most: int = MOST_SHOWN) -> str:
    """``a, b and 3 more``: the first ``most`` of ``names``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def some_lines(lines: Sequence[str], total: int | None = None) -> list[str]:
    """The first ten of ``lines``, indented, and a line that says how many more there are of ``total``."""
    left = (len(lines) if total is None else total) - MOST_SHOWN
    return [f"  {line}" for line in [*lines[:MOST_SHOWN], *([f"and {left:,} more"] if left > 0 else [])]]


def shell_command(*words: str | Path) -> str:
    """``words`` as a command for a POSIX shell, quoted; a path that begins with a hyphen is no option.

    Empty where it holds a character that cannot be shown: a command that is not what it looks like is no command to
    copy.

    >>> shell_command("cat", Path("-my file"))
    "cat './-my file'"
    """
    texts = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    command = shlex.join(texts)
    return command if printable(command, len(command)) == command else ""


def whole_number(text: str) -> int | None:
    """The number that ``text`` writes; None for anything else, and for more digits than any setting has."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form of a Hub id, ``owner/name`` or ``name``."""
    return _HUB_ID.fullmatch(name) is not None
