"""Finds out what a dataset argument is (file, folder, hub id or object in memory) and opens it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import DataError
from trl_attribution.pairs.rows.files import file_kind, open_file
from trl_attribution.pairs.rows.folders import choose_split, open_folder
from trl_attribution.pairs.rows.rows import DatasetRows, RowSource, SequenceRows, StreamRows
from trl_attribution.utils.paths import check_arrow_path, local_path
from trl_attribution.utils.text import is_hub_id, printable

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


@dataclass(frozen=True)
class OpenDataset:
    """A dataset opened for reading, with the splits that were not asked for."""

    source: RowSource
    split: str | None = None
    """Which split ``source`` is, where the dataset is one of several splits or a dictionary of one."""
    others: Mapping[str, DatasetRows] = field(default_factory=dict)
    """The other splits, in order."""


def open_dataset(dataset: str | Path, split: str | None = None) -> OpenDataset:
    """Open a named dataset and say which further splits it has; see :func:`open_rows`.

    Raises:
        DataError: as ``open_rows`` raises.
    """
    name = str(dataset)
    path = local_path(name, DataError)
    if is_saved_dataset(path):
        return _with_others(_load_saved(path, name), "save_to_disk", split, name)
    if path.is_dir():
        return OpenDataset(open_folder(path, name, split))
    if path.exists():
        return OpenDataset(_open_single_file(path, name, split))
    if is_hub_id(name) and file_kind(path) is None and path.suffix.lower() != ".gz":
        return _open_hub(name, split)
    raise DataError(f"{printable(name)}: no such file or folder. Check the path (current folder: {Path.cwd()}).")


def open_rows(
    dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | RowSource, split: str | None = None
) -> RowSource:
    """Open a dataset for reading row by row.

    Args:
        dataset: a JSONL or CSV file (gzip too), a Parquet file, a ``save_to_disk`` folder, a folder of such files, a
            Hub id, a ``datasets.Dataset`` or ``DatasetDict``, a stream that ends (``IterableDataset``), a list of
            dicts, or a source opened before.
        split: which split to read where there are several.

    Raises:
        DataError: nothing is there, the format is unknown, or a split must be chosen.
    """
    if isinstance(dataset, str | Path):
        return open_dataset(dataset, split).source
    if isinstance(dataset, RowSource):
        return dataset
    if isinstance(dataset, Sequence):
        return _open_sequence(dataset)
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if isinstance(dataset, Dataset):
        return DatasetRows("the dataset in memory", "memory", dataset)
    if isinstance(dataset, DatasetDict):
        chosen = choose_split(dataset, split, "the DatasetDict")
        return DatasetRows("the dataset in memory", "memory", dataset[chosen])
    if isinstance(dataset, IterableDatasetDict):
        return StreamRows("the stream", dataset[choose_split(dataset, split, "the IterableDatasetDict")])
    if isinstance(dataset, IterableDataset):
        return StreamRows("the stream", dataset)
    raise DataError(
        f"cannot read a {type(dataset).__name__} as a dataset. "
        "Give a path, a Hub id, a datasets.Dataset or a list of dicts."
    )


def _open_sequence(rows: Sequence[Any]) -> RowSource:
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"row {index}: a {type(row).__name__}, not a dict. Each row must map column names to values."
            )
    return SequenceRows("the list in memory", rows)


def is_saved_dataset(path: Path) -> bool:
    """Whether ``path`` is what ``save_to_disk`` writes, rather than a file or a folder of files."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def _open_single_file(path: Path, name: str, split: str | None) -> RowSource:
    source = open_file(path, name)
    if path.stat().st_size == 0:
        raise DataError(f"{name}: the file is empty. Give a file with at least one preference pair.")
    if split is not None and split != "train":
        raise DataError(f"{name}: a single file has no split '{printable(split)}'. Leave the split out.")
    return source


def _load_saved(path: Path, name: str) -> Dataset | DatasetDict:
    from datasets import load_from_disk

    check_arrow_path(path, DataError)
    _check_saved(path)
    try:
        return load_from_disk(str(path))
    except Exception as error:
        raise DataError(
            f"{name}: a save_to_disk folder that cannot be loaded ({printable(error)}). "
            "Save it again, or copy the whole folder."
        ) from error


def _check_saved(path: Path) -> None:
    """Refuse a folder whose description leads out of it: datasets would read, and save, whatever path stands there."""
    index = path / "dataset_dict.json"
    splits = _names(index, "splits") if index.exists() else []
    for split in splits:
        if not _is_plain_name(split):
            raise DataError(f"{index}: '{printable(split)}' is no name of a split. Save the dataset again.")
    for folder in [path / split for split in splits] if index.exists() else [path]:
        for file in _names(folder / "state.json", "_data_files"):
            if not _is_plain_name(file):
                raise DataError(
                    f"{folder / 'state.json'}: the data file '{printable(file)}' is not a file of this folder. "
                    "Save the dataset again."
                )


def _is_plain_name(name: str) -> bool:
    return Path(name).name == name != "" and not name.startswith(".") and name.isprintable() and "\\" not in name


def _names(path: Path, field_name: str) -> list[str]:
    """The names that one of a saved dataset's JSON files lists; none where it cannot be read, which loading reports."""
    try:
        values = json.loads(path.read_bytes())[field_name]
        return [str(entry["filename"] if isinstance(entry, dict) else entry) for entry in values]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _with_others(loaded: Dataset | DatasetDict, kind: str, split: str | None, name: str) -> OpenDataset:
    from datasets import Dataset

    if isinstance(loaded, Dataset):
        if split is not None and str(loaded.split or "train") != split:
            raise DataError(f"{name}: holds a single dataset, no split '{printable(split)}'. Leave the split out.")
        return OpenDataset(DatasetRows(name, kind, loaded))
    chosen = choose_split(loaded, split, name)
    others = {str(key): DatasetRows(f"{name} ({key})", kind, rows) for key, rows in loaded.items()}
    del others[chosen]
    return OpenDataset(DatasetRows(name, kind, loaded[chosen]), chosen, others)


def _open_hub(name: str, split: str | None) -> OpenDataset:
    config, _, split = (split or "").rpartition("/")
    return _with_others(_load_hub(name, config or None), "hub", split or None, name)


def _load_hub(name: str, config: str | None) -> DatasetDict:
    import datasets
    from huggingface_hub import constants

    try:
        loaded: DatasetDict = datasets.load_dataset(name, config)
    except Exception as error:
        offline = constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE
        reason = (
            "the Hub is switched off (HF_HUB_OFFLINE=1) and it is not in the cache" if offline else printable(error)
        )
        raise DataError(
            f"{name}: no such file or folder here, and as a Hub dataset it cannot be loaded: {reason}. "
            "Check the spelling and the connection, or download it and give its local path."
        ) from error
    return loaded
