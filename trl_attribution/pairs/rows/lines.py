"""The records of a text file as they stand in it: messages name their lines, and rows go back as they were."""

from __future__ import annotations

import csv
import json
import re
import sys
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trl_attribution.errors import DataError
from trl_attribution.pairs.rows.tables import open_unpacked
from trl_attribution.utils.text import json_fault, printable

_LIST_UNDER_A_KEY = re.compile(rb'(\xef\xbb\xbf)?\s*\{\s*"([^"\\]|\\.)*"\s*:\s*\[\s*\{')


@dataclass(frozen=True, slots=True)
class Record:
    """One record, the line it starts at (from 1), its lines as they stand in the file, and its cells where it has."""

    line: int
    raw: bytes
    cells: list[str]


@contextmanager
def json_lines(path: Path, name: str) -> Iterator[Iterator[Record]]:
    """The lines of a file that are not blank."""
    with _binary(path, name) as handle:
        yield (Record(number, raw, []) for number, raw in enumerate(handle, start=1) if _bare(raw, number))


def is_one_document(path: Path, name: str) -> bool:
    """Whether the file starts a JSON array, or an object that its first line does not end, rather than JSON lines."""
    with json_lines(path, name) as records:
        first = next(records, None)
    start = b"" if first is None else _bare(first.raw, first.line)
    if not start.startswith((b"[", b"{")):
        return False
    try:
        return not isinstance(json.loads(start), dict)
    except (ValueError, RecursionError):
        return True


def rows_key(path: Path, name: str) -> str | None:
    """The one key of a file that is an object with nothing but a list of rows; None of a file of rows."""
    with _binary(path, name) as handle:
        if _LIST_UNDER_A_KEY.match(handle.read(4096)) is None:
            return None
    with json_lines(path, name) as records:
        if next(records, None) is not None and next(records, None) is not None and not is_one_document(path, name):
            return None
    with _binary(path, name) as handle:
        try:
            whole = json.loads(handle.read())
        except (ValueError, RecursionError):
            return None
    key, rows = next(iter(whole.items()))
    is_rows = isinstance(rows, list) and all(isinstance(row, dict) and "role" not in row for row in rows)
    return str(key) if len(whole) == 1 and is_rows else None


def json_object(raw: bytes, location: str) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        DataError: it holds none.
    """
    text = _decoded(raw, location).rstrip(
        " \t\r\n"
    )  # behind a line's end the fault would have a column of the next line
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{location}: broken JSON ({json_fault(error)}): {printable(text.strip(), 80)}. {_ONE_A_LINE}"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{location}: a JSON {_json_type(value)}, not an object. {_ONE_A_LINE}")
    return value


_ONE_A_LINE = 'Each line must be one JSON object such as {"prompt": ..., "chosen": ..., "rejected": ...}.'


@contextmanager
def csv_records(path: Path, name: str, delimiter: str) -> Iterator[Iterator[Record]]:
    """The records of a CSV file, its header first, blank lines left out."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    taken: list[bytes] = []
    with _binary(path, name) as handle:
        lines = (_noted(raw, taken, f"{name}:{number}") for number, raw in enumerate(handle, start=1))
        yield _checked(csv.reader(lines, strict=True, delimiter=delimiter), taken, name)


def _noted(raw: bytes, taken: list[bytes], location: str) -> str:
    taken.append(raw)
    return _decoded(raw, location)


def _checked(reader: Any, taken: list[bytes], name: str) -> Iterator[Record]:
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        # The reader takes as many lines as its next record has, and none beyond.
        taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{name}:{line}: broken CSV ({error}). Quote cells that hold commas, quotes or line breaks."
            ) from error
        if header is None:
            header = cells
            twice = next((column for column in header if header.count(column) > 1), None)
            if twice is not None:
                raise DataError(f"{name}:{line}: the header names '{printable(twice)}' twice. Rename one of them.")
        elif cells and len(cells) != len(header):
            raise DataError(
                f"{name}:{line}: {len(cells)} cells where the header has {len(header)}. "
                "Quote cells that hold commas, quotes or line breaks."
            )
        if cells:
            yield Record(line, b"".join(taken), cells)


@contextmanager
def _binary(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The file's bytes; faults of reading become DataErrors that name the file."""
    try:
        with open_unpacked(path) as handle:
            yield handle
    except (EOFError, zlib.error, OSError) as error:
        raise reading_fault(error, path, name) from error


def reading_fault(error: Exception, path: Path, name: str) -> DataError:
    """What to say of a file whose bytes cannot be read."""
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{name}: cannot be read ({error.strerror or printable(error)}). Check its permissions.")
    kind = "gzip" if path.suffix.lower() == ".gz" else "packed"
    return DataError(f"{name}: the {kind} file is cut short or broken ({printable(error)}). Copy or download it again.")


def _bare(raw: bytes, number: int) -> bytes:
    """The line without a byte order mark, and without the space around it."""
    return (raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).strip()


def _decoded(raw: bytes, location: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "LATIN1"
        raise DataError(
            f"{location}: not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start} of the line). "
            f"Save the file as UTF-8, for example with: iconv -f {encoding} -t UTF-8"
        ) from error


def _json_type(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names[type(value)]
