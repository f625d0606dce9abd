"""All shards of a store as one table: rows found by pair id, and read from whichever shards they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trl_attribution.errors import StoreError
from trl_attribution.store.ids import ID_BYTES, IdIndex, Ids, Rows, first_ids
from trl_attribution.store.shards import Kind, Shard
from trl_attribution.utils.dtypes import torch_dtype


class ShardSet:
    """N rows in shards, found by id through sorted arrays (no Python object a pair)."""

    def __init__(self, folder: Path, shards: Sequence[Shard], repeats: bool = False) -> None:
        self.shards = list(shards)
        self._starts: Rows = np.cumsum([0] + [len(shard) for shard in shards], dtype=np.int64)
        self._index = IdIndex()
        self._index.append(self.ids)
        repeated = self._index.repeated()
        if len(repeated) and not repeats:
            raise StoreError(
                f"{folder} holds {len(repeated)} pairs twice, among them {first_ids(repeated)}. "
                "A shard was copied in by hand; delete the copy."
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def ids(self) -> Ids:
        """The id of each row, a new array."""
        return np.concatenate([np.empty(0, f"S{ID_BYTES}"), *(shard.ids for shard in self.shards)])

    def find(self, ids: Ids) -> Rows:
        """The row of each id (of a repeated one the first), -1 where there is none."""
        return self._index.find(ids)

    def shards_of(self, rows: Rows) -> list[Shard]:
        """The shards that hold some of ``rows``."""
        return [self.shards[index] for index in np.unique(np.searchsorted(self._starts, rows, side="right") - 1)]

    def append(self, shard: Shard) -> None:
        """Take in a shard just written."""
        self._index.append(shard.ids)
        self.shards.append(shard)
        self._starts = np.append(self._starts, len(self) + len(shard))

    def gather(self, rows: Rows, kind: Kind, axis: list[int], dtype: torch.dtype) -> Tensor:
        """Vectors ``[n, L, D]`` of ``rows`` (any order) and positions ``axis`` on the layer axis, as ``dtype``.

        Each shard that holds one of the rows is mapped once and let go again, so memory is that of the result.

        Raises:
            StoreError: a shard has vanished or shrunk since it was opened.
        """
        rising = bool((rows[1:] >= rows[:-1]).all())
        order = np.arange(len(rows)) if rising else np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self._starts)
        hidden_size = self.shards[0].hidden_size if self.shards else 0
        out = torch.empty(len(rows), len(axis), hidden_size, dtype=dtype)
        for index in np.flatnonzero(bounds[1:] > bounds[:-1]).tolist():
            part = slice(int(bounds[index]), int(bounds[index + 1]))
            shard = self.shards[index]
            values = _take(shard.open_vectors(kind), rows[order[part]] - self._starts[index], axis)
            vectors = torch.from_numpy(values).view(torch_dtype(shard.dtype))
            if rising:
                out[part] = vectors
            else:
                out[torch.from_numpy(order[part])] = vectors.to(dtype)
        return out


def _take(vectors: npt.NDArray[Any], rows: Rows, axis: list[int]) -> npt.NDArray[Any]:
    """Rows (rising) and layers of a mapped ``[n, L, D]``; neighbors come as a view, the rest is read row by row."""
    if axis == list(range(axis[0], axis[0] + len(axis))):
        vectors, axis = vectors[:, axis[0] : axis[0] + len(axis)], []
    if rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all():
        run = vectors[int(rows[0]) : int(rows[-1]) + 1]
        return run[:, axis] if axis else run
    return np.asarray(vectors[rows[:, None], axis] if axis else vectors[rows])
