"""Rows as a typed Arrow dataset on disk: the way to Parquet and save_to_disk without holding them in memory."""

from __future__ import annotations

import datetime
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import AttributionError, DataError
from trl_attribution.pairs.rows.json_lines import Record, values_of, write_json_lines
from trl_attribution.pairs.rows.media import check_embedded
from trl_attribution.pairs.rows.rows import Row
from trl_attribution.utils.chunks import in_chunks
from trl_attribution.utils.compat import is_json
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

_BATCH = 100


@contextmanager
def dataset_on_disk(rows: Iterable[Record], target: Path, features: Features | None) -> Iterator[Dataset]:
    """The rows as a Dataset stored beside the target, gone afterwards.

    Args:
        rows: rows or plain dicts.
        target: where the result will go; its folder is made.
        features: the column types, or None to infer them from the rows.

    Raises:
        DataError: a row does not fit the types.
        AttributionError: the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise AttributionError(
            f"cannot write {target}: {error.strerror or error}. Choose another output folder."
        ) from error
    with folder as place, without_progress_bars():
        if features is None:
            rows, features = _spooled(rows, Path(place) / "rows.jsonl", target)
        yield _typed(rows, features, place, target)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """``datasets`` shows a bar for every map and every file; the caller's choice comes back afterwards."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def save_to_folder(dataset: Dataset, folder: Path) -> None:
    """Save a dataset so that it can be loaded again, also where it is empty."""
    # Without a number of shards an empty dataset is saved as no shard at all, which cannot be loaded again.
    dataset.save_to_disk(str(folder), num_shards=None if len(dataset) else 1)


def _typed(rows: Iterable[Record], features: Features, folder: str, target: Path) -> Dataset:
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    file = f"{folder}/rows.arrow"
    with ArrowWriter(path=file, features=features) as writer:
        for batch in in_chunks(enumerate(rows), _BATCH):
            values = []
            for number, row in batch:
                _check_exact(row, features, f"{target}: row {number}")
                values.append(_fitted(values_of(row), dict(features), f"{target}: row {number}"))
            writer.write_table(_table(values, features, target))
        writer.finalize()
    return Dataset.from_file(file)


def _table(rows: list[Mapping[str, Any]], features: Features, target: Path) -> pa.Table:
    import pyarrow as pa
    from datasets.table import table_cast

    schema = features.arrow_schema
    arrays = [_array([row.get(name) for row in rows], schema.field(name).type, name, target) for name in features]
    return table_cast(pa.Table.from_arrays(arrays, list(features)), schema)


def _array(values: list[Any], kind: pa.DataType, column: str, target: Path) -> pa.Array:
    """The values in an Arrow type that holds each of them exactly: Arrow itself rounds some without a word."""
    import pyarrow as pa

    fault = "their type holds other values"
    try:
        array = pa.array(values, _with_json_as_text(kind))
        if all(map(same, array.to_pylist(), values)):
            return array
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        fault = printable(error)
    raise DataError(
        f"{target}: column '{printable(column)}': rows do not fit its type, {printable(kind, 80)} ({fault}). Choose "
        ".jsonl as output."
    )


def _with_json_as_text(kind: pa.DataType) -> pa.DataType:
    """The type without ``Json``, which Arrow cannot make from Python where it is nested."""
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_json_as_text(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_with_json_as_text(kind.value_type), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(_with_json_as_text(kind.value_type))
    return kind


def _fitted(value: Any, feature: Any, where: str) -> Any:
    """The value as its type stores it, JSON written out; a key that a struct lacks, which Arrow drops, is refused."""
    if value is None:
        return None
    check_embedded(value, feature, where)
    if is_json(feature):
        return json.dumps(value)
    if isinstance(value, Mapping) and isinstance(feature, dict):
        unknown = [key for key, entry in value.items() if entry is not None and key not in feature]
        if unknown:
            raise DataError(
                f"{where}: the column types of the input have no place for {printable(', '.join(map(str, unknown)))}. "
                "Choose .jsonl as output."
            )
        return {key: _fitted(entry, feature[key], where) for key, entry in value.items() if key in feature}
    if isinstance(value, list) and hasattr(feature, "feature"):
        return [_fitted(entry, feature.feature, where) for entry in value]
    return value


def _spooled(rows: Iterable[Record], spool: Path, target: Path) -> tuple[Iterable[Row], Features]:
    """The rows by way of a JSONL file, so that they get the types that this file would have."""
    from datasets import Features

    from trl_attribution.pairs.rows.files import open_file

    write_json_lines(rows, spool, target)
    source = open_file(spool, str(target))
    return source, source.features or Features({})


def _check_exact(row: Record, features: Features, where: str) -> None:
    """Refuse what the type of its column has changed: a rounded number, text that was taken for something else."""
    if not isinstance(row, Row) or row.raw_kind != "jsonl" or row.raw is None:
        return
    for name, value in row.stored.items():
        if not holds(row.values.get(name), value):
            raise DataError(
                f"{where}, column '{printable(name)}': {printable(repr(value), 60)} would become "
                f"{printable(repr(row.values.get(name)), 60)} in a column of type {printable(features.get(name), 80)}. "
                "Choose .jsonl as output."
            )


def same(first: Any, second: Any) -> bool:
    """Equal in value and type at every depth; NaN equals itself, and an absent entry one that is None."""
    return _alike(first, second, same)


def holds(typed: Any, written: Any) -> bool:
    """Whether a typed value is exactly what JSON has written; a date stands for its text."""
    if isinstance(typed, datetime.date | datetime.time) and isinstance(written, str):
        return True
    return _alike(typed, written, holds)


def _alike(first: Any, second: Any, entries: Callable[[Any, Any], bool]) -> bool:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return all(entries(first.get(key), second.get(key)) for key in {*first, *second})
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(entries, first, second))
    if isinstance(first, float) and isinstance(second, float) and math.isnan(first):
        return math.isnan(second)
    numbers = isinstance(first, int | float) and isinstance(second, int | float)
    if numbers and not isinstance(first, bool) and not isinstance(second, bool):
        return bool(first == second)
    return type(first) is type(second) and bool(first == second)
