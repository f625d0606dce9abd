"""Files read as ``datasets`` reads them, each row with its line and its bytes, in batches that fit into memory."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trl_attribution.errors import DataError
from trl_attribution.pairs.rows.lines import (
    Record,
    csv_records,
    is_one_document,
    json_lines,
    json_object,
    reading_fault,
    rows_key,
)
from trl_attribution.pairs.rows.media import ROWS_AT_ONCE, as_stored
from trl_attribution.pairs.rows.rows import BATCH_ROWS, Row, RowSource, unzip
from trl_attribution.pairs.rows.tables import PACKED, Loader, file_loader
from trl_attribution.utils.paths import check_arrow_path
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from datasets import Features

T = TypeVar("T")

KINDS = {"json": "jsonl", "csv": "csv", "parquet": "parquet", "arrow": "arrow"}
"""What the builders of ``datasets`` read that are read here, and what it is called."""
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {"batch_size": BATCH_ROWS}),
    ".arrow": ("arrow", {}),
}
SUPPORTED = (
    ".jsonl, .json, .csv, .tsv (each also packed: .gz, .bz2, .xz, .zst, .lz4), .parquet, .arrow, a save_to_disk "
    "folder, or a folder of such files"
)
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def file_kind(path: Path) -> str | None:
    """``jsonl``, ``csv``, ``parquet`` or ``arrow`` by the suffix, None when unknown; text files may be packed."""
    packed = path.suffix.lower() in PACKED
    builder = _BUILDERS.get(Path(path.stem).suffix.lower() if packed else path.suffix.lower())
    if builder is None or (packed and builder[0] not in ("json", "csv")):
        return None
    return KINDS[builder[0]]


def open_file(path: Path, name: str) -> FileRows:
    """The rows of one file; ``name`` is what messages call it.

    Raises:
        DataError: the suffix is unknown.
    """
    kind = file_kind(path)
    if kind is None:
        raise DataError(f"{name}: unknown file type '{''.join(path.suffixes)}'. Supported: {SUPPORTED}.")
    if kind == "parquet":
        check_arrow_path(path, DataError)
    suffix = (Path(path.stem) if path.suffix.lower() in PACKED else path).suffix.lower()
    module, settings = _BUILDERS[suffix]
    key = rows_key(path, name) if module == "json" else None
    if key is not None:
        settings = {"field": key}
    return FileRows(name, path, kind, file_loader(path, module, **settings))


@dataclass(frozen=True)
class FileRows:
    """The rows of one file, their values as ``load_dataset`` gives them to a trainer.

    A JSONL or CSV row also knows its line and the bytes it was read from.
    """

    name: str
    path: Path
    kind: str
    loader: Loader

    @property
    def columns(self) -> list[str] | None:
        """Column names, or None where only the rows can tell."""
        if self.features is None:
            return self.header.cells or None if self.kind == "csv" else None
        return list(self.features)

    @cached_property
    def features(self) -> Features | None:
        """Column types, or None where there are no rows or ``datasets`` cannot load them."""
        if self._unloadable is not None:
            return None
        return self._read(lambda: self.loader.features)

    @cached_property
    def num_rows(self) -> int | None:
        """Number of rows, or None where it is not known."""
        if self.kind != "parquet" or getattr(self.loader.builder.config, "filters", None) is not None:
            return None
        import pyarrow.parquet as pq

        return int(self._read(lambda: pq.read_metadata(self.path).num_rows))

    @property
    def delimiter(self) -> str:
        """What stands between the cells of a CSV file."""
        return str(self.loader.builder.config.sep)

    @cached_property
    def header(self) -> Record:
        """The header line of a CSV file."""
        with csv_records(self.path, self.name, self.delimiter) as records:
            return next(records, Record(1, b"", []))

    def __iter__(self) -> Iterator[Row]:
        if self._unloadable is not None:
            yield from self._rows_as_written(self._unloadable)
        elif self.kind == "csv":
            yield from self._csv_rows()
        elif self._has_lines:
            yield from self._json_rows()
        else:
            for index, values in enumerate(self._values()):
                yield Row(index, f"{self.name} row {index}", values, file=self.path)

    @cached_property
    def _has_lines(self) -> bool:
        in_lines = self.kind == "jsonl" and getattr(self.loader.builder.config, "field", None) is None
        return in_lines and not is_one_document(self.path, self.name)

    @cached_property
    def _unloadable(self) -> Exception | None:
        """Why ``datasets`` cannot load JSON lines that are each an object."""
        if not self._has_lines:
            return None
        try:
            self._read(lambda: self.loader.features)
        except _UnloadableError as error:
            return error
        return None

    def _json_rows(self) -> Iterator[Row]:
        with json_lines(self.path, self.name) as lines:
            for index, (record, values) in enumerate(self._matched(lines)):
                location = f"{self.name}:{record.line}"
                if None in values.values():
                    # Arrow fills in what a line lacks: only the line knows which keys it has.
                    keys = json_object(record.raw, location).keys()
                    for name in [name for name, value in values.items() if value is None and name not in keys]:
                        del values[name]
                yield Row(index, location, values, record.raw, file=self.path, line=record.line)

    def _csv_rows(self) -> Iterator[Row]:
        with csv_records(self.path, self.name, self.delimiter) as records:
            header = next(records, Record(1, b"", [])).cells
            for index, (record, values) in enumerate(self._matched(records)):
                written = dict(zip(header, record.cells, strict=True))
                location = f"{self.name}:{record.line}"
                yield Row(index, location, values, record.raw, "csv", written, self.path, record.line)

    def _matched(self, records: Iterator[Record]) -> Iterator[tuple[Record, dict[str, Any]]]:
        """Each record with its values; ``datasets`` reads them apart from the lines, so the two are counted."""
        for values in self._values():
            record = next(records, None)
            if record is None:
                raise self._mismatch()
            yield record, values
        if next(records, None) is not None:
            raise self._mismatch()

    def _mismatch(self) -> DataError:
        return DataError(
            f"{self.name}: datasets reads other rows than its lines hold. Write each row on one line (JSON) or under "
            "the header with nothing else in the file (CSV)."
        )

    def _values(self) -> Iterator[dict[str, Any]]:
        from datasets import Dataset

        tables = self.loader.tables(self.path)
        while (table := self._read(lambda: next(tables, None))) is not None:
            # Through Dataset, so that columns which datasets stores encoded (Json) come back decoded. Without a
            # fingerprint it would make one, which takes longer than all the rest.
            part, step = Dataset(table, fingerprint="rows"), BATCH_ROWS
            if (stored := as_stored(part.features)) is not None:
                part.info.features, step = stored, ROWS_AT_ONCE
            for start in range(0, len(table), step):
                yield from unzip(self._read(partial(part.__getitem__, slice(start, start + step))))

    def _rows_as_written(self, reason: Exception) -> Iterator[Row]:
        """The lines by themselves, so that a row at fault can be named; any other fault is the file's."""
        explained = False
        with json_lines(self.path, self.name) as lines:
            for index, record in enumerate(lines):
                location = f"{self.name}:{record.line}"
                values = json_object(record.raw, location)
                explained = explained or _has_lone_surrogate(record.raw, values)
                yield Row(index, location, values, record.raw, file=self.path, line=record.line)
        if not explained:
            raise reason

    def _read(self, step: Callable[[], T]) -> T:
        """Whatever the builder raises, as an error that names the file, and its line where one is broken."""
        from datasets.utils.logging import CRITICAL, get_verbosity, set_verbosity

        verbosity = get_verbosity()
        set_verbosity(CRITICAL)  # the builders log what they raise
        try:
            return step()
        except DataError:
            raise
        except (EOFError, zlib.error, OSError) as error:
            if self.kind in ("jsonl", "csv"):
                raise reading_fault(error, self.path, self.name) from error
            raise self._refusal(error) from error
        except Exception as error:
            self._check_records()
            raise self._refusal(error) from error
        finally:
            set_verbosity(verbosity)

    def _check_records(self) -> None:
        if self.kind == "csv":
            with csv_records(self.path, self.name, self.delimiter) as records:
                for _ in records:
                    pass
        elif self.kind == "jsonl":
            with json_lines(self.path, self.name) as lines:
                for record in lines:
                    json_object(record.raw, f"{self.name}:{record.line}")

    def _refusal(self, error: Exception) -> DataError:
        if self.kind in ("parquet", "arrow"):
            return _typed_refusal(self.path, self.name, self.kind, error)
        return _UnloadableError(
            f"{self.name}: datasets cannot load this file, so no trainer reads it ({printable(error)}). Mend it, or "
            "load it your way and save it as Parquet."
        )


class _UnloadableError(DataError):
    """``datasets`` cannot load a file whose records are each as they should be."""


def _has_lone_surrogate(raw: bytes, values: dict[str, Any]) -> bool:
    if _ESCAPED_SURROGATE.search(raw) is None:
        return False
    try:
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _typed_refusal(path: Path, name: str, kind: str, error: Exception) -> DataError:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    try:
        schema = pq.read_schema(path) if kind == "parquet" else None
    except (pa.ArrowException, OSError, ValueError):
        schema = None
    names = [] if schema is None else schema.names
    for column in schema or ():
        shown = printable(column.name)
        if names.count(column.name) > 1:
            return DataError(f"{name}: has the column '{shown}' twice. Rename one of them.")
        try:
            Features.from_arrow_schema(pa.schema([column]))
        except Exception:  # noqa: BLE001  # of any kind: that is what is asked
            return DataError(
                f"{name}: column '{shown}' is of type {printable(column.type)}, which datasets cannot load, so no "
                "trainer reads the file. Drop the column, or cast it to text or a list."
            )
    return DataError(
        f"{name}: not a readable {kind.capitalize()} file ({printable(error)}). "
        "It may be cut short: copy or download it again."
    )


@dataclass(frozen=True)
class FolderRows:
    """The files of a folder that make up one split, one after the other in the order of ``load_dataset``."""

    name: str
    parts: tuple[RowSource, ...]
    kind: str = "folder"
    starts: list[int] = field(default_factory=list, init=False, compare=False)
    """The row that each of ``parts`` begins with, once all rows were read."""

    @property
    def columns(self) -> list[str] | None:
        """Column names, or None where only the rows can tell."""
        return self.parts[0].columns

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
        self.starts.clear()
        for part in self.parts:
            self.starts.append(index)
            for row in part:
                yield replace(row, index=index)
                index += 1
