"""Rows as a typed Arrow dataset on disk: the way to Parquet and save_to_disk without holding them in memory."""

from __future__ import annotations

import datetime
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import AttributionError, DataError
from trl_attribution.pairs.rows.json_lines import Record, values_of, write_json_lines
from trl_attribution.pairs.rows.rows import Row
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from datasets import Dataset, Features


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
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    bars = is_progress_bar_enabled()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise AttributionError(
            f"cannot write {target}: {error.strerror or error}. Choose another output folder."
        ) from error
    with folder as place:
        disable_progress_bar()
        try:
            if features is None:
                rows, features = _spooled(rows, Path(place) / "rows.jsonl", target)
            yield _typed(rows, features, place, target)
        finally:
            if bars:
                enable_progress_bar()


def save_to_folder(dataset: Dataset, folder: Path) -> None:
    """Save a dataset so that it can be loaded again, also where it is empty."""
    # Without a number of shards an empty dataset is saved as no shard at all, which cannot be loaded again.
    dataset.save_to_disk(str(folder), num_shards=None if len(dataset) else 1)


def _typed(rows: Iterable[Record], features: Features, folder: str, target: Path) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    file = f"{folder}/rows.arrow"
    try:
        with ArrowWriter(path=file, features=features) as writer:
            for number, row in enumerate(rows):
                _check_exact(row, features, f"{target}: row {number}")
                values = _fitted(values_of(row), dict(features), f"{target}: row {number}")
                writer.write(features.encode_example(values))
            writer.finalize()
    except (pa.ArrowException, TypeError, KeyError) as error:
        raise DataError(
            f"{target}: a row does not fit the column types of the input ({printable(error)}). Choose .jsonl as output."
        ) from error
    return Dataset.from_file(file)


def _fitted(value: Any, feature: Any, where: str) -> Any:
    """The value as its type stores it; what ``encode_example`` would drop or misread is refused or written out.

    Encoding drops, without a word, what a struct type does not know, and takes text in a ``Json`` column for JSON.
    """
    from datasets import Json

    if value is None:
        return None
    if isinstance(feature, Json):
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


def holds(typed: Any, written: Any) -> bool:
    """Whether a typed value is exactly what JSON has written; a date may stand for its text, None for nothing."""
    if isinstance(typed, datetime.date | datetime.time):
        return isinstance(written, str | type(typed))
    if isinstance(typed, Mapping) and isinstance(written, Mapping):
        return all(holds(typed.get(key), written.get(key)) for key in {*typed, *written})
    if isinstance(typed, list) and isinstance(written, list):
        return len(typed) == len(written) and all(map(holds, typed, written))
    if isinstance(typed, float) and isinstance(written, float) and math.isnan(typed):
        return math.isnan(written)
    if isinstance(typed, int | float) and isinstance(written, int | float):
        return typed == written and (isinstance(typed, bool) is isinstance(written, bool))
    return type(typed) is type(written) and bool(typed == written)
