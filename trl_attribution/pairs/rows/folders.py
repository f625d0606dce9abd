"""A folder of dataset files, split and configured as ``load_dataset`` does it: by its card, or by its file names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import DataError
from trl_attribution.pairs.rows.files import KINDS, SUPPORTED, FileRows, FolderRows, file_kind
from trl_attribution.pairs.rows.rows import BATCH_ROWS
from trl_attribution.pairs.rows.tables import Loader
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from datasets import ArrowBasedBuilder


def open_folder(path: Path, name: str, split: str | None) -> FolderRows:
    """The files of one split; ``split`` may name a configuration before it, as in ``prefs/train``.

    Raises:
        DataError: ``datasets`` cannot load the folder, a split or configuration must be chosen, or there is no data.
    """
    config, _, split = (split or "").rpartition("/")
    builder = _folder_builder(path, name, config or None)
    kind = KINDS.get(builder.name)
    splits = {str(key): list(files) for key, files in builder.config.data_files.items() if files}
    if kind is None or not splits:
        found = f"datasets reads it as {builder.name}" if kind is None else "no dataset files in this folder"
        raise DataError(f"{name}: {found}. Supported: {SUPPORTED}.")
    inside = {key: [_inside(path, file, name) for file in files] for key, files in splits.items()}
    _check_card(path, inside, name)
    files = inside[choose_split(splits, split or None, name, "the folder holds several splits")]
    if kind == "parquet":
        builder.config.batch_size = BATCH_ROWS
    loader = Loader(builder, tuple(path / file for file in files))
    prefix = name.rstrip("/")
    return FolderRows(name, tuple(FileRows(f"{prefix}/{file}", path / file, kind, loader) for file in files))


def _folder_builder(path: Path, name: str, config: str | None) -> ArrowBasedBuilder:
    """What ``load_dataset`` makes of a folder: its card, its file names and the files themselves decide."""
    import datasets
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError

    # An absolute path is never taken for a builder or a Hub id of that name. The scratch folder gets a lock, no more.
    whole = os.path.abspath(path)  # noqa: PTH100
    with tempfile.TemporaryDirectory() as scratch:
        try:
            builder: ArrowBasedBuilder = datasets.load_dataset_builder(whole, config, cache_dir=scratch)
        except (EmptyDatasetError, DataFilesNotFoundError) as error:
            raise DataError(f"{name}: no dataset files in this folder. Supported: {SUPPORTED}.") from error
        except Exception as error:
            raise DataError(_folder_fault(path, name, config, error)) from error
    return builder


def _folder_fault(path: Path, name: str, config: str | None, error: Exception) -> str:
    import datasets

    try:
        configs = datasets.get_dataset_config_names(os.path.abspath(path))  # noqa: PTH100
    except Exception:  # noqa: BLE001  # whatever it is, it was caught once already
        configs = []
    if len(configs) < 2 or config in configs:
        return f"{name}: datasets cannot load this folder ({printable(error, 400)}). Mend it, or give a file of it."
    lacking = "" if config is None else f", none named '{printable(config)}'"
    return (
        f"{name}: the folder holds several configurations ({printable(', '.join(configs))}){lacking}. Name one before "
        f"the split: --split {printable(configs[0])}/SPLIT."
    )


def _inside(folder: Path, file: str, name: str) -> Path:
    """A data file as a path within the folder.

    Raises:
        DataError: the card names a file elsewhere.
    """
    root = Path(os.path.abspath(folder))  # noqa: PTH100  # links stay what they are: a Hub cache is made of them
    for base in (root, root.resolve()):
        if Path(file).is_relative_to(base) and ".." not in Path(file).parts:
            return Path(file).relative_to(base)
    raise DataError(
        f"{name}: its card names the data file '{printable(file, 200)}', which is not in this folder. Copy it in, and "
        "name it by its path within the folder."
    )


def _check_card(path: Path, splits: Mapping[str, list[Path]], name: str) -> None:
    """Without a card ``datasets`` passes over other kinds of files, and odd names, without a word."""
    from datasets.data_files import FILES_TO_IGNORE
    from huggingface_hub import DatasetCard

    if any(len(set(files)) < len(files) for files in splits.values()):
        raise DataError(f"{name}: its card names a data file twice for one split. Name each file once.")
    card = path / "README.md"
    if card.is_file() and DatasetCard.load(card).data.get("configs"):
        return
    read = {file for files in splits.values() for file in files}
    there = (file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file())
    for file in there:
        hidden = any(part.startswith(".") for part in file.parts) or file.name in FILES_TO_IGNORE
        if file not in read and file_kind(file) is not None and not hidden:
            raise DataError(
                f"{name}: datasets would pass over '{printable(file, 200)}' beside '{printable(min(read), 200)}', as "
                "it is of another kind or belongs to no split. Move it out, or name the data files in a README.md."
            )


def choose_split(
    splits: Mapping[Any, Any], split: str | None, name: str, several: str = "several splits", place: str = ""
) -> str:
    """The split that was asked for, or the only one.

    Raises:
        DataError: there is no such split, or several to choose from.
    """
    names = [str(key) for key in splits]
    shown = printable(", ".join(names))
    if split is not None and split not in names:
        raise DataError(f"{name}: no split '{printable(split)}'{place}. Splits there: {shown}.")
    if split is None and len(names) != 1:
        raise DataError(f"{name}: {several} ({shown}). Choose one with --split {names[0] if names else 'NAME'}.")
    return split if split is not None else names[0]
