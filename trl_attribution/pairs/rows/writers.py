"""Writes rows in any of the formats that can be read, whole or not at all, with the column types they came with."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trl_attribution.errors import DataError
from trl_attribution.pairs.rows.files import FileRows, file_kind
from trl_attribution.pairs.rows.json_lines import Record, output_stream, raw_of, stored_of, write_json_lines
from trl_attribution.pairs.rows.rows import RowSource
from trl_attribution.pairs.rows.tables import PACKED
from trl_attribution.pairs.rows.typed import dataset_on_disk, save_to_folder
from trl_attribution.utils.atomic import atomic_folder, atomic_path
from trl_attribution.utils.paths import check_arrow_path, local_path
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from datasets import Dataset

_WRITTEN = ".jsonl, .json, .csv, .tsv (each also with .gz), .parquet, or a save_to_disk folder (no suffix)"


def write_rows(rows: Iterable[Record], path: str | Path, like: RowSource | None = None) -> int:
    """Write rows to ``path`` and return how many there were; memory stays flat in their number.

    The format follows the suffix: ``.jsonl``, ``.csv``, ``.tsv`` (each also with ``.gz``), ``.parquet``; without one it
    becomes a ``save_to_disk`` folder. A ``Row`` that still has its raw lines is written as they are: a JSONL
    line always, CSV lines where ``like`` is the file that they are from.

    Args:
        rows: rows or plain dicts, in output order. They may be read lazily from the file that is being replaced.
        path: file or folder to write. An existing file is replaced in one step; an existing folder is refused.
        like: where the rows came from; its column types are kept where the output format has types.

    Raises:
        DataError: the suffix is unknown, the folder exists, or a value does not fit the format.
        AttributionError: the disk is full or the folder cannot be written.
    """
    target = local_path(path)
    kind = output_kind(target)
    if kind in ("save_to_disk", "parquet"):
        features = like.features if like is not None else None
        with dataset_on_disk(rows, target, features) as dataset:
            _save(dataset, kind, target)
            return len(dataset)
    with atomic_path(target) as part:
        if kind == "jsonl":
            return write_json_lines(rows, part, target)
        return _write_csv(rows, part, target, like)


def output_kind(path: Path) -> str:
    """The format that ``write_rows`` would choose for a path, checked before any work is done.

    Raises:
        DataError: the suffix is unknown, the folder exists already, or Arrow cannot write under such a name.
    """
    kind = file_kind(path)
    packed = path.suffix.lower() in PACKED and path.suffix.lower() != ".gz"
    if (kind is None and path.suffix) or kind == "arrow" or packed:
        raise DataError(f"{path}: unknown output type '{''.join(path.suffixes)}'. Supported: {_WRITTEN}.")
    if path.is_dir():
        raise DataError(f"{path}: the folder exists already. Choose another output path, or delete it first.")
    if kind in (None, "parquet"):
        check_arrow_path(path, DataError)
    return kind or "save_to_disk"


def _write_csv(rows: Iterable[Record], part: Path, target: Path, like: RowSource | None) -> int:
    """Write a CSV file; rows of the very file that they are written like come out as the lines they were read from."""
    count = 0
    header = list(like.columns) if like is not None and like.columns is not None else None
    delimiter = "\t" if ".tsv" in map(str.lower, target.suffixes[-2:]) else ","
    raw_header = like.header.raw if isinstance(like, FileRows) and _fits(like, delimiter) else None
    with output_stream(part, target) as handle:
        unlike = raw_header is None or raw_header.endswith(b"\r\n")
        lines = _Lines(handle, delimiter, ending=b"\r\n" if unlike else b"\n")
        for count, row in enumerate(rows, start=1):
            values = stored_of(row)
            if count == 1:
                header = header or list(values)
                lines.write(raw_header or lines.of(header))
            raw = raw_of(row, "csv") if raw_header is not None else None
            if raw is None:
                raw = lines.of(_cells(values, header or [], target, count))
            lines.write(raw)
        if count == 0 and header:
            lines.write(raw_header or lines.of(header))
    return count


def _fits(like: FileRows, delimiter: str) -> bool:
    return like.kind == "csv" and like.delimiter == delimiter


class _Lines:
    """Writes records, each on lines of its own."""

    def __init__(self, handle: IO[bytes], delimiter: str, ending: bytes) -> None:
        self._handle = handle
        self._delimiter = delimiter
        self._ending = ending
        self._open = False

    def of(self, cells: Sequence[str]) -> bytes:
        """One record as bytes."""
        text = io.StringIO(newline="")
        # RFC 4180 line ends: with them the writer quotes every cell that holds a lone \r or \n.
        csv.writer(text, delimiter=self._delimiter, lineterminator="\r\n").writerow(cells)
        return text.getvalue().removesuffix("\r\n").encode("utf-8") + self._ending

    def write(self, record: bytes) -> None:
        """Append one record; the last one of a file may have come without a line end."""
        self._handle.write(self._ending + record if self._open else record)
        self._open = not record.endswith(b"\n")


def _cells(values: Mapping[str, Any], header: Sequence[str], target: Path, number: int) -> list[str]:
    unknown = values.keys() - set(header)
    if unknown:
        raise DataError(f"{target}: row {number - 1} has columns that row 0 lacks: {sorted(unknown)}. {_TYPED}")
    cells = [_cell(values.get(name), target, number, name) for name in header]
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{target}: row {number - 1} holds the lone surrogate \\u{ord(error.object[error.start]):04x}, which CSV "
            "cannot hold. Choose .jsonl as output."
        ) from error
    return cells


_TYPED = "CSV cannot hold them: choose .jsonl or .parquet as output."


def _cell(value: Any, target: Path, number: int, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str | int | float | bool):
        return str(value)
    raise DataError(
        f"{target}: row {number - 1}, column '{printable(column)}' holds a {type(value).__name__}, not text. {_TYPED}"
    )


def _save(dataset: Dataset, kind: str, target: Path) -> None:
    if kind == "parquet":
        with atomic_path(target) as part:
            dataset.to_parquet(str(part))
        return
    with atomic_folder(target) as part:
        save_to_folder(dataset, part)
