"""JSONL, CSV and Parquet files read row by row, with the line of every row and constant memory."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trl_attribution.errors import DataError
from trl_attribution.pairs.rows.rows import BATCH_ROWS, Row, RowSource, unzip
from trl_attribution.utils.paths import check_arrow_path
from trl_attribution.utils.text import json_fault, printable

if TYPE_CHECKING:
    from datasets import Features

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
SUPPORTED = ".jsonl, .csv (each also with .gz), .parquet, a save_to_disk folder, or a folder of such files"


def file_kind(path: Path) -> str | None:
    """``jsonl``, ``csv`` or ``parquet`` by the file's suffix (``.gz`` after it allowed), None when unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    last = suffixes[-2:-1] if zipped else suffixes[-1:]
    kind = SUFFIXES.get(last[0]) if last else None
    return None if zipped and kind == "parquet" else kind


def open_file(path: Path, name: str) -> RowSource:
    """The rows of one file; ``name`` is what messages call it.

    Raises:
        DataError: the suffix is unknown, or a Parquet file cannot be opened.
    """
    kind = file_kind(path)
    if kind == "jsonl":
        return JsonLinesRows(name, path)
    if kind == "csv":
        return CsvRows(name, path)
    if kind == "parquet":
        return ParquetRows(name, path)
    raise DataError(f"{name}: unknown file type '{''.join(path.suffixes)}'. Supported: {SUPPORTED}.")


@dataclass(frozen=True)
class JsonLinesRows:
    """One JSON object a line; blank lines are passed over."""

    name: str
    path: Path
    kind: str = "jsonl"
    columns: list[str] | None = None
    features: Features | None = None
    num_rows: int | None = None

    def __iter__(self) -> Iterator[Row]:
        index = 0
        with _binary(self.path, self.name) as handle:
            for number, raw in enumerate(handle, start=1):
                location = f"{self.name}:{number}"
                text = _decoded(raw, location, first=number == 1)
                if text.isspace() or not text:
                    continue
                yield Row(index, location, _json_object(text, location), raw)
                index += 1


@dataclass(frozen=True)
class CsvRows:
    """Comma-separated text with a header line; every value is text, and an empty cell is an empty text."""

    name: str
    path: Path
    kind: str = "csv"
    features: Features | None = None
    num_rows: int | None = None

    @cached_property
    def columns(self) -> list[str] | None:
        """Column names, or None where only the rows can tell."""
        return self._header.cells

    @property
    def raw_header(self) -> bytes:
        """The header line as it stands in the file, with its newline."""
        return self._header.raw

    @cached_property
    def _header(self) -> _CsvRecord:
        with _csv_records(self.path, self.name) as records:
            return next(records, _CsvRecord(1, [], b""))

    def __iter__(self) -> Iterator[Row]:
        index = 0
        with _csv_records(self.path, self.name) as records:
            header = next(records, _CsvRecord(1, [], b"")).cells
            if len(set(header)) != len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise DataError(f"{self.name}:1: the header names '{printable(twice)}' twice. Rename one of them.")
            for record in records:
                if not record.cells:
                    continue
                location = f"{self.name}:{record.line}"
                if len(record.cells) != len(header):
                    raise DataError(
                        f"{location}: {len(record.cells)} cells where the header has {len(header)}. "
                        "Quote cells that hold commas, quotes or line breaks."
                    )
                yield Row(index, location, dict(zip(header, record.cells, strict=True)), record.raw, "csv")
                index += 1


@dataclass(frozen=True)
class ParquetRows:
    """A Parquet file, read in batches; column types that ``datasets`` noted in it are honored."""

    name: str
    path: Path
    kind: str = "parquet"

    @cached_property
    def columns(self) -> list[str] | None:
        """Column names, or None where only the rows can tell."""
        return list(self._file().schema_arrow.names)

    @cached_property
    def features(self) -> Features | None:
        """Column types, or None where the format has none."""
        from datasets import Features

        return Features.from_arrow_schema(self._file().schema_arrow)

    @cached_property
    def num_rows(self) -> int | None:
        """Number of rows, or None where it is not known."""
        return int(self._file().metadata.num_rows)

    def __iter__(self) -> Iterator[Row]:
        import pyarrow as pa
        from datasets import Dataset

        index = 0
        try:
            for batch in self._file().iter_batches(batch_size=BATCH_ROWS):
                # Through Dataset, so that columns which datasets stores encoded (Json) come back decoded.
                for values in unzip(Dataset(pa.Table.from_batches([batch]))[:]):
                    yield Row(index, f"{self.name} row {index}", values)
                    index += 1
        except (pa.ArrowException, OSError) as error:
            raise self._broken(error, f" after row {index}") from error

    def _file(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        check_arrow_path(self.path, DataError)
        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception, where: str = "") -> DataError:
        return DataError(
            f"{self.name}: not a readable Parquet file{where} ({printable(error)}). "
            "It may be cut short: copy or download it again."
        )


@dataclass(frozen=True)
class FolderRows:
    """The files of a folder, one after the other in sorted order."""

    name: str
    parts: tuple[RowSource, ...]
    kind: str = "folder"

    @property
    def columns(self) -> list[str] | None:
        """Column names, or None where only the rows can tell."""
        union: dict[str, None] = {}
        for part in self.parts:
            if part.columns is None:
                return None
            union.update(dict.fromkeys(part.columns))
        return list(union)

    @property
    def features(self) -> Features | None:
        """Column types, or None where the format has none."""
        return self.parts[0].features

    @property
    def num_rows(self) -> int | None:
        """Number of rows, or None where it is not known."""
        counts = [part.num_rows for part in self.parts]
        return None if None in counts else sum(count for count in counts if count)

    def __iter__(self) -> Iterator[Row]:
        index = 0
        for part in self.parts:
            for row in part:
                yield replace(row, index=index)
                index += 1


@contextmanager
def _binary(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The file's bytes, unzipped where it is gzip; faults of reading become DataErrors that name the file."""
    try:
        with path.open("rb") as probe:
            zipped = probe.read(2) == b"\x1f\x8b" or path.suffix.lower() == ".gz"
        with gzip.open(path) if zipped else path.open("rb") as handle:
            yield handle  # type: ignore[misc]  # GzipFile reads like any binary file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{name}: the gzip file is cut short or broken ({printable(error)}). Copy or download it again."
        ) from error
    except OSError as error:
        raise DataError(
            f"{name}: cannot be read ({error.strerror or printable(error)}). Check its permissions."
        ) from error


def _decoded(raw: bytes, location: str, first: bool) -> str:
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{location}: not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start} of the line). "
            "Save the file as UTF-8, for example with: iconv -f LATIN1 -t UTF-8"
        ) from error


def _json_object(text: str, location: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{location}: broken JSON ({json_fault(error)}): {printable(text.strip(), 80)}. {_one_a_line(text)}"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{location}: a JSON {_json_type(value)}, not an object. {_one_a_line(text)}")
    return value


def _one_a_line(text: str) -> str:
    if text.lstrip().startswith("["):
        return "The file is one JSON array: write one object a line (jq -c '.[]' data.json > data.jsonl)."
    return 'Each line must be one JSON object such as {"prompt": ..., "chosen": ..., "rejected": ...}.'


def _json_type(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names[type(value)]


@dataclass(frozen=True, slots=True)
class _CsvRecord:
    """One record, the line it starts at (from 1), and its lines as they stand in the file."""

    line: int
    cells: list[str]
    raw: bytes


@contextmanager
def _csv_records(path: Path, name: str) -> Iterator[Iterator[_CsvRecord]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    taken: list[bytes] = []
    with _binary(path, name) as handle:
        lines = (_noted(raw, taken, f"{name}:{number}", number) for number, raw in enumerate(handle, start=1))
        yield _numbered(csv.reader(lines, strict=True), taken, name)


def _noted(raw: bytes, taken: list[bytes], location: str, number: int) -> str:
    taken.append(raw)
    return _decoded(raw, location, first=number == 1)


def _numbered(reader: Any, taken: list[bytes], name: str) -> Iterator[_CsvRecord]:
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
        yield _CsvRecord(line, cells, b"".join(taken))
