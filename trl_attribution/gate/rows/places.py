"""Where a row stands in files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trl_attribution.gate.verdict import Place
from trl_attribution.pairs.rows import RowSource
from trl_attribution.pairs.rows.files import FolderRows
from trl_attribution.utils.paths import local_path

_LINE = re.compile(r"(.*):(\d+)", re.DOTALL)
_ROW = re.compile(r"(.*) row \d+", re.DOTALL)


@dataclass(frozen=True)
class _Spot:
    """The file of a row, by the name that locations have for it, and the line in it."""

    name: str | None
    line: int | None


class Places:
    """Finds the file and line of each row of one dataset."""

    def __init__(self, source: RowSource) -> None:
        self._files = dict(_files(source))

    def of(self, row: int, location: str) -> Place:
        """The place of a row, from what messages call it."""
        spot = self._spot(location)
        file = None if spot.name is None else as_written(self._files[spot.name])
        return Place(file, spot.line, row)

    def _spot(self, location: str) -> _Spot:
        found = _LINE.fullmatch(location)
        if found is not None and found[1] in self._files:
            return _Spot(found[1], int(found[2]))
        found = _ROW.fullmatch(location)
        return _Spot(found[1] if found is not None and found[1] in self._files else None, None)


def as_written(path: str | Path) -> str:
    """A path relative to the working directory, with slashes, so that reports do not depend on the machine."""
    return Path(os.path.relpath(path)).as_posix()


def _files(source: RowSource) -> Iterator[tuple[str, Path]]:
    parts = source.parts if isinstance(source, FolderRows) else (source,)
    for part in parts:
        path = getattr(part, "path", None)
        if path is not None:
            yield part.name, Path(path)
        elif part.kind == "save_to_disk":
            yield part.name, local_path(part.name)
