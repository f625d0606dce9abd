"""Rows as a typed Arrow dataset on disk: the way to Parquet and save_to_disk without holding them in memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import AttributionError, DataError
from trl_attribution.pairs.rows.json_lines import Record, values_of, write_json_lines
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
            yield _inferred(rows, place, target) if features is None else _typed(rows, features, place, target)
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


def _inferred(rows: Iterable[Record], folder: str, target: Path) -> Dataset:
    """Two passes: the first spools the rows as JSON lines and learns the types, the second writes them.

    ``load_dataset("json")`` is no way to do it: it turns text that looks like a date into a timestamp.
    """
    from trl_attribution.pairs.rows.feature_types import NULL, feature_of, feature_union, features_of

    spool = Path(folder) / "rows.jsonl"
    features: dict[str, Any] = {}

    def learned() -> Iterator[Mapping[str, Any]]:
        for row in rows:
            values = values_of(row)
            for name, value in values.items():
                features[name] = feature_union(features.get(name, NULL), feature_of(value))
            yield values

    write_json_lines(learned(), spool, target)
    return _typed(_spooled(spool, list(features)), features_of(features), folder, target)


def _spooled(spool: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    with spool.open("rb") as lines:
        for line in lines:
            values = json.loads(line)
            yield {name: values.get(name) for name in columns}
