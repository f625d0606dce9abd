"""One row of a dataset and where it came from, so that every fault can be traced to a line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from trl_attribution.errors import DataError
from trl_attribution.pairs.rows.media import ROWS_AT_ONCE, as_stored
from trl_attribution.utils.paths import local_path

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One row as its dataset holds it, all columns kept."""

    index: int
    """Place in the whole dataset, counted from 0."""
    location: str
    """For messages: ``data.jsonl:17`` (line, from 1), ``data.parquet row 3`` or ``row 3`` (row, from 0)."""
    values: dict[str, Any]
    """Column name to value, as a trainer gets it from ``datasets``."""
    raw: bytes | None = None
    """JSONL and CSV: the lines as read, with their newline, so that an untouched row can be written back unchanged."""
    raw_kind: str = "jsonl"
    """The format that ``raw`` is in."""
    written: dict[str, Any] | None = None
    """``stored``, where it was made already."""
    file: Path | None = None
    """The file, or ``save_to_disk`` folder, that it is from; None where there is none here."""
    line: int | None = None
    """JSONL and CSV: the line in that file, from 1."""
    members: tuple[Row, ...] = ()
    """All rows of an example that has several, of which this one is the first."""

    @property
    def stored(self) -> dict[str, Any]:
        """Column name to value as the file has it: of a JSONL or CSV row before ``datasets`` gave its values types."""
        if self.written is not None:
            return self.written
        if self.raw is not None and self.raw_kind == "jsonl":
            from trl_attribution.pairs.rows.lines import json_object

            return json_object(self.raw, self.location)
        return self.values


@runtime_checkable
class RowSource(Protocol):
    """A dataset that can be read from the start any number of times, in constant memory."""

    @property
    def name(self) -> str:
        """What the user gave, for messages."""

    @property
    def kind(self) -> str:
        """``jsonl``, ``parquet``, ``arrow``, ``csv``, ``save_to_disk``, ``hub``, ``memory``, ``stream``, ``folder``."""

    @property
    def columns(self) -> list[str] | None:
        """Column names, None where only the rows can tell."""

    @property
    def features(self) -> Features | None:
        """Column types where the format has them, for writing the same types back."""

    @property
    def num_rows(self) -> int | None:
        """Number of rows where it is known without reading them, else None."""

    def __iter__(self) -> Iterator[Row]:
        """Rows in dataset order, from the first one each time."""


@dataclass(frozen=True)
class DatasetRows:
    """Rows of a ``datasets.Dataset``, read in slices (element-wise access of Arrow columns is far slower)."""

    name: str
    kind: str
    dataset: Dataset

    @property
    def columns(self) -> list[str] | None:
        """Column names, or None where only the rows can tell."""
        return list(self.dataset.column_names)

    @property
    def features(self) -> Features | None:
        """Column types, or None where the format has none."""
        return self.dataset.features

    @property
    def num_rows(self) -> int | None:
        """Number of rows, or None where it is not known."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[Row]:
        prefix = "" if self.kind == "memory" else f"{self.name} "
        file = local_path(self.name) if self.kind == "save_to_disk" else None
        plain, step = self.dataset.with_format(None), BATCH_ROWS
        if (stored := as_stored(plain.features)) is not None:
            plain.info.features, step = stored, ROWS_AT_ONCE
        for start in range(0, len(plain), step):
            for offset, values in enumerate(unzip(plain[start : start + step])):
                index = start + offset
                yield Row(index, f"{prefix}row {index}", values, file=file)


@dataclass(frozen=True)
class SequenceRows:
    """Rows of a list of dicts."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    kind: str = "memory"
    columns: list[str] | None = None
    features: Features | None = None

    @property
    def num_rows(self) -> int | None:
        """Number of rows, or None where it is not known."""
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        for index, values in enumerate(self.rows):
            typed = {name: column[index] for name, column in self._typed.items() if name in values}
            yield Row(index, f"row {index}", {**values, **typed})

    @cached_property
    def _typed(self) -> dict[str, list[Any]]:
        """Columns of messages and objects in the types that ``datasets`` would give them."""
        nested = {name for row in self.rows for name, value in row.items() if isinstance(value, list | tuple | Mapping)}
        nested -= {"image", "images"}  # which would be encoded for it
        return {name: typed_column([row.get(name) for row in self.rows]) for name in nested}


@dataclass
class StreamRows:
    """Rows of a stream, which is read from its start each time; that it gives the same rows then is checked."""

    name: str
    stream: IterableDataset
    most: int | None = None
    """Rows to read; None for all, of a stream that ends."""
    without: frozenset[str] = frozenset()
    """Columns to leave out."""
    kind: str = "stream"
    num_rows: int | None = field(default=None, init=False)
    """Known once it was read to its end."""
    _digest: bytes = field(default=b"", init=False)

    @property
    def columns(self) -> list[str] | None:
        """Column names, or None where only the rows can tell."""
        names = self.stream.column_names
        return None if names is None else [name for name in names if name not in self.without]

    @property
    def features(self) -> Features | None:
        """Column types, or None where the stream has none."""
        types = self.stream.features
        return None if types is None else type(types)({name: types[name] for name in types if name not in self.without})

    def __iter__(self) -> Iterator[Row]:
        digest, count = hashlib.blake2b(digest_size=16), 0
        for values in islice(self.stream.with_format(None), self.most):
            kept = {name: value for name, value in values.items() if name not in self.without}
            digest.update(json.dumps(kept, default=_by_content, sort_keys=True).encode())
            yield Row(count, f"row {count}", kept)
            count += 1
        self._check_same(digest.digest(), count)

    def _check_same(self, digest: bytes, count: int) -> None:
        if self.num_rows is not None and digest != self._digest:
            raise DataError(
                f"{self.name}: gave other rows when it was read again ({count:,}, and {self.num_rows:,} before), so "
                "that none can be found by its place. Give whatever shuffles or draws them a seed, or give a copy: "
                "Dataset.from_list(list(stream))."
            )
        self.num_rows, self._digest = count, digest


def _by_content(value: Any) -> Any:
    """What stands for a value that JSON does not know: the same for equal values, however often they are made."""
    if getattr(getattr(value, "dtype", None), "hasobject", False):  # whose bytes are addresses
        return value.tolist()
    if hasattr(value, "tobytes"):  # images and arrays, whose names are addresses or leave numbers out
        return hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(value))


def typed_column(values: list[Any]) -> list[Any]:
    """The values as a dataset made from them holds them, or as they are where ``datasets`` cannot hold them."""
    import pyarrow as pa
    from datasets import Dataset

    try:
        return list(Dataset.from_dict({"column": values}, on_mixed_types="use_json")[:]["column"])
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return values


def unzip(batch: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Rows of a batch given as columns of equal length."""
    names = list(batch)
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(names, values, strict=True))
