"""Where a row stands in files."""

from __future__ import annotations

import os
from pathlib import Path

from trl_attribution.gate.verdict import Place


def place_of(row: int, file: Path | None, line: int | None) -> Place:
    """The place of a row, its file as reports name it."""
    return Place(None if file is None else as_written(file), line, row)


def as_written(path: str | Path) -> str:
    """A path relative to the working directory, with slashes, so that reports do not depend on the machine."""
    return Path(os.path.relpath(path)).as_posix()
