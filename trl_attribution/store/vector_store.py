"""Pair and context vectors on disk: resumable, content-addressed by ``pair_id``, flat in memory.

A store is a folder with ``store.json`` (what the vectors were made with) and ``shards/*.safetensors`` (see
:mod:`trl_attribution.store.shards`). There is no index to keep in sync: opening reads every shard's header and ids.
A shard appears whole or not at all, so whatever is there is complete, and a rerun goes on with the missing pairs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Self

import filelock
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trl_attribution.errors import SettingsError, StoreBusyError, StoreError, describe_difference
from trl_attribution.store.header import read_settings, write_settings
from trl_attribution.store.ids import Ids, PairIds, Rows, first_ids, is_pair_id, parse_ids
from trl_attribution.store.settings import StoreSettings
from trl_attribution.store.shard_set import ShardSet
from trl_attribution.store.shards import Kind, read_shard, write_shard
from trl_attribution.utils.dtypes import torch_dtype
from trl_attribution.utils.finite import all_finite
from trl_attribution.utils.text import counted

__all__ = ["ShardWriter", "StoreSettings", "VectorBlock", "VectorStore", "VectorView"]


class VectorBlock:
    """Consecutive rows of a view, L as asked for; vectors are given, or read when first asked for."""

    def __init__(self, start: int, pair: Tensor | Callable[[], Tensor], context: Tensor | Callable[[], Tensor]) -> None:
        self.start, self._pair, self._context = start, pair, context

    @cached_property
    def pair(self) -> Tensor:
        """Pair vectors, float32 ``[n, L, D]``."""
        return self._pair if isinstance(self._pair, Tensor) else self._pair()

    @cached_property
    def context(self) -> Tensor:
        """Context vectors, float32 ``[n, L, D]``."""
        return self._context if isinstance(self._context, Tensor) else self._context()


class VectorView:
    """Chosen pairs of a store in a chosen order; reads from disk as it is asked, and holds only row numbers."""

    def __init__(self, folder: Path, settings: StoreSettings, shards: ShardSet, rows: Rows) -> None:
        self._folder = folder
        self._settings = settings
        self._shards = shards
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def pair_ids(self) -> PairIds:
        """The ids of the view's rows, in order."""
        return PairIds(self._shards.ids[self._rows])

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers stored."""
        return self._settings.layers

    @property
    def hidden_size(self) -> int:
        """D."""
        return self._settings.hidden_size

    def layer(self, layer: int) -> Tensor:
        """Pair vectors ``[N, D]`` of one layer in the stored dtype.

        Raises:
            StoreError: the layer is not stored.
        """
        return self._gather(self._rows, "pair", [layer], torch_dtype(self._settings.vector_dtype))[:, 0]

    def context(self, layer: int) -> Tensor:
        """Context vectors ``[N, D]`` of one layer in the stored dtype; all zero where the prompt was empty.

        Raises:
            StoreError: the layer is not stored.
        """
        return self._gather(self._rows, "context", [layer], torch_dtype(self._settings.vector_dtype))[:, 0]

    def blocks(self, layers: Sequence[int], size: int) -> Iterator[VectorBlock]:
        """Go through the view, ``size`` rows at a time; what of a block is not asked for is not read.

        Raises:
            StoreError: a layer is not stored.
            SettingsError: ``size`` is below 1.
        """
        if size < 1:
            raise SettingsError(f"the block size must be at least 1, not {size}")
        self._check(layers)
        for start in range(0, len(self), size):
            gather = partial(self._gather, self._rows[start : start + size], layers=layers, dtype=torch.float32)
            yield VectorBlock(start, partial(gather, "pair"), partial(gather, "context"))

    def _gather(self, rows: Rows, kind: Kind, layers: Sequence[int], dtype: torch.dtype) -> Tensor:
        self._check(layers)
        if not len(rows):
            return torch.empty(0, len(layers), self.hidden_size, dtype=dtype)
        return self._shards.gather(rows, kind, [self.layers.index(layer) for layer in layers], dtype)

    def _check(self, layers: Sequence[int]) -> None:
        unknown = [layer for layer in layers if layer not in self.layers]
        if unknown or not layers:
            raise StoreError(
                f"{self._folder} holds layers {', '.join(map(str, self.layers))}, "
                f"not {', '.join(map(str, unknown)) or 'an empty choice'}. Audit again with the layers you need."
            )


class VectorStore:
    """The vectors of many pairs, each pair once; get one from :meth:`create` or :meth:`open`."""

    def __init__(self, path: Path, settings: StoreSettings, shards: ShardSet) -> None:
        self.path = path
        self.settings = settings
        self._shards = shards

    @classmethod
    def create(cls, path: str | Path, settings: StoreSettings) -> VectorStore:
        """Make a store at ``path``, or open the one there if it was made with equal settings.

        Raises:
            SettingsError: the store there was made with other settings; the message prints the difference.
            StoreError: the store there is broken or newer, shards lie there without their ``store.json``, or the
                folder cannot be written.
        """
        folder = Path(path)
        if not (folder / "store.json").exists():
            lock = _lock(folder)  # taken: a with statement would take it twice
            try:
                _start(folder, settings)
            finally:
                lock.release()
        stored = read_settings(folder)
        if stored != settings:
            difference = describe_difference(stored.as_dict(), settings.as_dict())
            raise SettingsError(
                f"the vectors in {folder} were made with other settings:\n{difference}\n"
                "Choose another folder for this run, or run it with the stored settings."
            )
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | Path, repeats: bool = False) -> VectorStore:
        """Open an existing store; nothing is written.

        Args:
            path: its folder.
            repeats: take pairs that several shards hold from the first of them, as in a cache that several jobs fill;
                read such a store by :meth:`select`. Otherwise they are an error.

        Raises:
            StoreError: there is no store, or it is broken, truncated, of a newer version, or mixed with another.
        """
        folder = Path(path)
        settings = read_settings(folder)
        size, digest = len(settings.layers), settings.digest
        shards = [
            read_shard(file, size, settings.hidden_size, settings.vector_dtype, digest)
            for file in sorted(_shard_files(folder), key=_shard_order)
        ]
        return cls(folder, settings, ShardSet(folder, shards, repeats))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers stored, in the order of the L axis."""
        return self.settings.layers

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.settings.hidden_size

    @property
    def pair_ids(self) -> PairIds:
        """All N ids in storage order (the dataset's order, for a store of one dataset)."""
        return PairIds(self._shards.ids)

    def __len__(self) -> int:
        return len(self._shards)

    def __contains__(self, pair_id: object) -> bool:
        return isinstance(pair_id, str) and is_pair_id(pair_id) and not self.missing([pair_id])

    def holds(self, pair_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """``[n]``, whether the store has each of the given pairs.

        Raises:
            StoreError: something is not a pair id.
        """
        return self._shards.find(parse_ids(pair_ids)) >= 0

    def missing(self, pair_ids: Sequence[str]) -> list[str]:
        """The ids that the store lacks, each once, in the order given: what is still to be computed.

        Raises:
            StoreError: something is not a pair id.
        """
        absent = np.flatnonzero(~self.holds(pair_ids))
        return list(dict.fromkeys(pair_ids[row] for row in absent.tolist()))

    def layer(self, layer: int) -> Tensor:
        """All pair vectors ``[N, D]`` of one layer in the stored dtype.

        Raises:
            StoreError: the layer is not stored.
        """
        return self.view().layer(layer)

    def context(self, layer: int) -> Tensor:
        """All context vectors ``[N, D]`` of one layer in the stored dtype; all zero where the prompt was empty.

        Raises:
            StoreError: the layer is not stored.
        """
        return self.view().context(layer)

    def view(self) -> VectorView:
        """Every pair, in storage order."""
        return VectorView(self.path, self.settings, self._shards, np.arange(len(self), dtype=np.int64))

    def select(self, pair_ids: Sequence[str]) -> VectorView:
        """The given pairs in the given order; an id may come more than once.

        Raises:
            StoreError: some are not in the store; the message names the first of them and their number.
        """
        rows = self._shards.find(parse_ids(pair_ids))
        if (rows < 0).any():
            lacking = self.missing(pair_ids)
            raise StoreError(
                f"{self.path} lacks {len(lacking)} of the pairs asked for: {first_ids(lacking)}. "
                "Run the audit of that dataset into this store first."
            )
        return VectorView(self.path, self.settings, self._shards, rows)

    def writer(self, name: str = "main") -> ShardWriter:
        """The one writer of this store, to be used in a ``with`` block; it holds the folder's lock until the end.

        Raises:
            StoreBusyError: another process writes to the store now or has written since it was opened.
            StoreError: the folder cannot be written, or ``name`` is no plain word.
        """
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise StoreError(f"a writer's name is letters, digits and underscores, not {name!r}")
        lock = _lock(self.path)
        try:
            there, known = set(_shard_files(self.path)), {shard.path for shard in self._shards.shards}
            if there != known or not (self.path / "store.json").exists():
                raise StoreBusyError(f"{self.path} was changed by another process since it was opened: open it again")
            _remove_parts(self.path)
        except BaseException:
            lock.release()
            raise
        return ShardWriter(self.path, self.settings, self._shards, name, lock)

    def verify(self, pair_ids: Sequence[str] | None = None) -> None:
        """Read everything, or the shards that hold the given pairs, and compare it with the checksums.

        Raises:
            StoreError: names every shard whose bytes have changed, or the first that cannot be read.
        """
        shards = self._shards.shards
        if pair_ids is not None:
            rows = self._shards.find(parse_ids(pair_ids))
            shards = self._shards.shards_of(rows[rows >= 0])
        broken = [str(shard.path) for shard in shards if shard.checksum() != shard.sha256]
        if broken:
            raise StoreError(
                f"{len(broken)} of {len(shards)} shards do not match their checksum: {', '.join(broken[:10])}. "
                "Delete them and run the audit again: only their pairs are computed anew."
            )


class ShardWriter:
    """Writes shards, one complete shard a call; made by :meth:`VectorStore.writer`, which sees them at once."""

    def __init__(
        self, folder: Path, settings: StoreSettings, shards: ShardSet, name: str, lock: filelock.BaseFileLock
    ) -> None:
        self._folder, self._settings, self._shards = folder, settings, shards
        self._name, self._lock = name, lock
        order = [_shard_order(shard.path) for shard in shards.shards]
        self._next = 1 + max((number for owner, number in order if owner == name), default=-1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; shards already added stay."""
        self._lock.release()

    def add(self, pair_ids: Sequence[str], pair: Tensor, context: Tensor) -> None:
        """Write one shard: n ids, pair vectors ``[n, L, D]`` and context vectors ``[n, L, D]`` of any float dtype.

        Raises:
            StoreError: shapes do not fit, an id is malformed, repeated or stored already, or values are not finite
                or do not fit the stored dtype; nothing is written then.
            AttributionError: the disk is full or the folder cannot be written; no part of the shard is left.
        """
        if not self._lock.is_locked:
            raise StoreError("this writer is closed; take a new one from VectorStore.writer()")
        ids = self._checked_ids(pair_ids)
        shape = (len(ids), len(self._settings.layers), self._settings.hidden_size)
        dtype = self._settings.vector_dtype
        stored_pair = _storable(pair, "pair", shape, dtype, pair_ids)
        stored_context = _storable(context, "context", shape, dtype, pair_ids)
        path = self._folder / "shards" / f"{self._name}-{self._next:06d}.safetensors"
        self._shards.append(write_shard(path, ids, stored_pair, stored_context, self._settings.digest))
        self._next += 1

    def _checked_ids(self, pair_ids: Sequence[str]) -> Ids:
        ids = parse_ids(pair_ids)
        if not len(ids):
            raise StoreError("a shard needs at least one pair")
        rising = np.sort(ids)
        repeated = rising[1:][rising[1:] == rising[:-1]]
        if len(repeated):
            raise StoreError(f"{len(repeated)} pairs come twice in one shard, dedupe them: {first_ids(repeated)}")
        known = ids[self._shards.find(ids) >= 0]
        if len(known):
            raise StoreError(f"{len(known)} pairs are in {self._folder} already: {first_ids(known)}")
        return ids


def _storable(vectors: Tensor, kind: str, shape: tuple[int, int, int], dtype: str, pair_ids: Sequence[str]) -> Tensor:
    """``vectors`` in the stored dtype on the CPU, once they are known to be whole and to fit."""
    if tuple(vectors.shape) != shape:
        raise StoreError(f"{kind} vectors have shape {tuple(vectors.shape)}, the store takes [n, L, D] = {shape}")
    computed = vectors.detach().to("cpu")
    stored = computed.to(torch_dtype(dtype))
    _refuse_unless_finite(computed, f"{kind} vectors", "not finite", "Compute with dtype float32.", pair_ids)
    fix = "Store them with vector_dtype bfloat16 or float32."
    _refuse_unless_finite(stored, f"{kind} vectors", f"too large for {dtype}", fix, pair_ids)
    return stored


def _refuse_unless_finite(vectors: Tensor, what: str, fault: str, fix: str, pair_ids: Sequence[str]) -> None:
    if all_finite(vectors):
        return
    bad = (~torch.isfinite(vectors)).flatten(1).any(1).nonzero().flatten().tolist()
    named = first_ids([pair_ids[row] for row in bad])
    raise StoreError(f"{what} of {counted(len(bad), 'pair')} are {fault}: {named}. {fix}")


def _start(folder: Path, settings: StoreSettings) -> None:
    """Write ``store.json``, unless another process did so while this one waited for the lock."""
    if (folder / "store.json").exists():
        return
    if _shard_files(folder):
        raise StoreError(f"{folder} holds shards but no store.json: restore it, or choose another folder")
    write_settings(folder, settings)


def _lock(folder: Path) -> filelock.BaseFileLock:
    """The folder's writer lock, taken; the system frees it when its process ends, however it ends."""
    lock = filelock.FileLock(folder / "writer.lock", timeout=0, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise StoreBusyError(
            f"{folder} is being written by another process. Wait for it to end, or choose another folder."
        ) from None
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error.strerror or error}. Choose another folder.") from error
    return lock


def _remove_parts(folder: Path) -> None:
    """Clear away what a killed writer left half-written."""
    for part in [*folder.glob("*.part"), *(folder / "shards").glob("*.part")]:
        part.unlink(missing_ok=True)


def _shard_files(folder: Path) -> list[Path]:
    return list((folder / "shards").glob("*.safetensors"))


def _shard_order(path: Path) -> tuple[str, int]:
    """Sort key: the writer, then the number as a number; a foreign name sorts whole and is refused on reading."""
    writer, _, number = path.stem.rpartition("-")
    return (writer, int(number)) if number.isdecimal() else (path.stem, -1)
