"""Finds the runnable snippets of a Markdown page: fenced blocks after a ``<!-- test: NAME -->`` comment.

Snippets of one page with the same NAME run in order in one folder. ``<!-- test: NAME, file: PATH -->`` writes the block
to PATH instead of running it; after ``<!-- test: NAME, may exit: 1 -->`` the block may end with 1 as well as with 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_MARKED = re.compile(
    r"^(?P<indent> *)<!-- test: (?P<name>[\w-]+)(?:, file: (?P<file>\S+))?(?:, may exit: (?P<code>\d+))? -->\n+"
    r"(?P=indent)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"<!-- test:")
_FENCE = re.compile(r"^ *```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """One fenced block that runs, or is written to ``file``."""

    page: Path
    line: int
    language: str
    body: str
    file: str | None
    may_exit: int = 0


def runnable(page: Path) -> dict[str, list[Snippet]]:
    """The marked snippets of ``page`` by name, in order.

    Raises:
        ValueError: a mark is not followed by a fenced block, or its language cannot be run.
    """
    text = page.read_text(encoding="utf-8")
    found: dict[str, list[Snippet]] = {}
    matches = list(_MARKED.finditer(text))
    if len(matches) != len(_MARK.findall(text)):
        raise ValueError(f"{page}: a `<!-- test: NAME -->` comment is malformed or not followed by a fenced block")
    for match in matches:
        line = text.count("\n", 0, match.start()) + 1
        if match["file"] is None and match["language"] not in {"bash", "python"}:
            raise ValueError(f"{page}:{line}: a {match['language'] or 'plain'} block cannot be run")
        body = re.sub(rf"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
        found.setdefault(match["name"], []).append(
            Snippet(page, line, match["language"], body, match["file"], int(match["code"] or 0))
        )
    return found


def commands(page: Path) -> list[str]:
    """Every ``trl-attribution ...`` command line shown in a bash block of ``page``, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    blocks = [match["body"] for match in _FENCE.finditer(text) if match["language"] == "bash"]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("trl-attribution ")]
