"""Writes JSON lines: an untouched row comes out as the very bytes that were read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trl_attribution.errors import DataError
from trl_attribution.pairs.rows.rows import Row
from trl_attribution.utils.text import printable

Record = Row | Mapping[str, Any]


def values_of(row: Record) -> Mapping[str, Any]:
    """Column name to value of a row or plain dict."""
    return row.values if isinstance(row, Row) else row


def stored_of(row: Record) -> Mapping[str, Any]:
    """The same as the file that it came from has it, for writing text."""
    return row.stored if isinstance(row, Row) else row


def raw_of(row: Record, kind: str) -> bytes | None:
    """The lines that a row was read from, where they are in the format that is being written."""
    return row.raw if isinstance(row, Row) and row.raw_kind == kind else None


def write_json_lines(rows: Iterable[Record], part: Path, target: Path) -> int:
    """Write rows as JSON lines, raw lines as they are; ``target`` is what messages call the file."""
    count = 0
    pending_newline = False
    with output_stream(part, target) as handle:
        for count, row in enumerate(rows, start=1):
            raw = raw_of(row, "jsonl")
            line = raw if raw is not None else _json_line(stored_of(row), target, count)
            handle.write(b"\n" + line if pending_newline else line)
            pending_newline = not line.endswith(b"\n")
    return count


def _json_line(values: Mapping[str, Any], target: Path, number: int) -> bytes:
    try:
        return (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:
        return (json.dumps(values, ensure_ascii=True) + "\n").encode("ascii")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{target}: row {number - 1} cannot be written as JSON ({printable(error)}). "
            "Write it as text, or give a datasets.Dataset, whose columns have types, and choose a .parquet file or a "
            "save_to_disk folder as output."
        ) from error


@contextmanager
def output_stream(part: Path, target: Path) -> Iterator[IO[bytes]]:
    """``part`` opened for bytes, zipped when ``target`` ends in ``.gz``."""
    with part.open("wb") as plain:
        if target.suffix.lower() != ".gz":
            yield plain
            return
        # Neither a file name nor a time in the header: the same rows give the same bytes.
        with gzip.GzipFile(filename="", fileobj=plain, mode="wb", mtime=0) as zipped:
            yield zipped  # type: ignore[misc]  # GzipFile writes like any binary file
