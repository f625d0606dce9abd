"""A file as ``datasets`` types it: the same builders, batches and casts as in ``load_dataset``, without its cache."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trl_attribution.errors import DataError
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import ArrowBasedBuilder, Features

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".lz4": "lz4"}
PACKED = tuple(_PACKED)


@dataclass(frozen=True, eq=False)
class Loader:
    """How ``datasets`` reads the files of one split: by which builder, with which settings, into which columns.

    The column types come from the first file with rows, as in ``load_dataset``; all files are brought to them.
    """

    builder: ArrowBasedBuilder
    files: tuple[Path, ...]

    @cached_property
    def features(self) -> Features | None:
        """The column types, None where no file holds a row.

        Raises:
            Exception: whatever the builder raises at a file that it cannot read.
        """
        from datasets import Features

        if self.builder.info.features is not None:
            return self.builder.info.features
        for file in self.files:
            prepared = self._prepared(file, None)
            if prepared is None:
                continue
            if prepared.builder.info.features is not None:
                return prepared.builder.info.features
            table = next(prepared.tables(), None)
            if table is not None:
                return Features.from_arrow_schema(table.schema)
        return None

    def tables(self, file: Path) -> Iterator[pa.Table]:
        """The rows of one of the files in batches that fit into memory, in the types of ``features``.

        Raises:
            Exception: whatever the builder raises at a file that it cannot read.
        """
        from datasets.table import table_cast

        features = self.features
        if features is None:
            return
        prepared, schema = self._prepared(file, features), features.arrow_schema
        for table in prepared.tables() if prepared is not None else ():
            yield table_cast(table, schema)

    def _prepared(self, file: Path, features: Features | None) -> _Prepared | None:
        """A builder of that file alone, which knows the column types where a schema tells them; None without rows."""
        from datasets import StreamingDownloadManager
        from datasets.data_files import DataFilesDict, DataFilesList
        from datasets.streaming import extend_dataset_builder_for_streaming

        builder = copy.copy(self.builder)
        builder.config = copy.copy(builder.config)
        builder.config.data_files = DataFilesDict(train=DataFilesList([_url(file)], [()]))
        builder.info = builder.info.copy()
        builder.info.features = features
        extend_dataset_builder_for_streaming(builder)
        try:
            (split,) = builder._split_generators(StreamingDownloadManager())  # noqa: SLF001  # what builders are made of
        except StopIteration:  # a JSON file without a row
            return None
        return _Prepared(builder, split.gen_kwargs)


@dataclass(frozen=True)
class _Prepared:
    """A builder that has looked at its one file."""

    builder: ArrowBasedBuilder
    arguments: dict[str, Any]

    def tables(self) -> Iterator[pa.Table]:
        for _, table in self.builder._generate_tables(**self.arguments):  # noqa: SLF001
            if len(table):
                yield table


def file_loader(path: Path, module: str, **settings: Any) -> Loader:
    """The loader of one file by itself, as ``load_dataset(module, data_files=path)``."""
    state = path.stat()
    return _file_loader(path, module, tuple(settings.items()), (state.st_mtime_ns, state.st_size, state.st_ino))


@lru_cache(maxsize=32)
def _file_loader(path: Path, module: str, settings: tuple[tuple[str, Any], ...], _: tuple[int, ...]) -> Loader:
    """Kept for a while, as long as the file stays what it is: one command opens its dataset several times."""
    from datasets.data_files import DataFilesDict, DataFilesList

    builder_class = getattr(import_module(f"datasets.packaged_modules.{module}.{module}"), module.capitalize())
    files = DataFilesDict(train=DataFilesList([str(path)], [()]))
    # A builder makes a cache folder and a lock in it; nothing is ever cached here.
    with tempfile.TemporaryDirectory() as scratch:
        return Loader(builder_class(cache_dir=scratch, data_files=files, **dict(settings)), (path,))


def open_unpacked(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked in passing where it is packed."""
    from datasets.utils.file_utils import xopen

    if not is_packed(path):
        return path.open("rb")
    handle: IO[bytes] = xopen(_url(path), "rb")
    return handle


def is_packed(path: Path) -> bool:
    """Whether the file's bytes are packed, by its suffix or its content."""
    return _protocol(path) is not None


def _url(path: Path) -> str:
    """The path as ``datasets`` opens it, unpacking in passing."""
    whole = os.path.abspath(path)  # noqa: PTH100  # links stay what they are
    if "::" in whole:
        raise DataError(f"{printable(path, 400)}: datasets cannot open a path with '::' in it. Rename the file.")
    protocol = _protocol(path)
    return whole if protocol is None else f"{protocol}://{path.stem}::{whole}"


def _protocol(path: Path) -> str | None:
    by_name = _PACKED.get(path.suffix.lower())
    if by_name is not None:
        return by_name
    with path.open("rb") as handle:
        start = handle.read(8)
    return next((protocol for magic, protocol in _MAGIC.items() if start.startswith(magic)), None)
