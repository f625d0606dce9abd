"""Small vector stores for tests, and the loop that fills one; imports nothing heavy, since child processes run it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trl_attribution.store import StoreSettings, VectorStore

LAYERS = (5, 10, 20)
HIDDEN = 8


def settings(**changes: Any) -> StoreSettings:
    return StoreSettings(**{"model_fingerprint": "m0", "layers": LAYERS, "hidden_size": HIDDEN, **changes})


def ids(count: int, start: int = 0) -> list[str]:
    """Pair ids in an order that is not their sort order, as real ones come."""
    return [hashlib.sha256(str(row).encode()).hexdigest()[:32] for row in range(start, start + count)]


def vectors(pair_ids: Sequence[str], layers: int = len(LAYERS), hidden_size: int = HIDDEN) -> tuple[Tensor, Tensor]:
    """Pair and context vectors ``[n, L, D]`` that depend on nothing but the ids."""
    rows = []
    for pair_id in pair_ids:
        generator = torch.Generator().manual_seed(int(pair_id[:8], 16))
        rows.append(torch.randn(2, layers, hidden_size, generator=generator))
    pair, context = torch.stack(rows, dim=1)
    return pair, context


def fill(store: VectorStore, pair_ids: Sequence[str], shard_size: int = 10) -> None:
    """What an audit does: the missing pairs in dataset order, a shard at a time."""
    missing = store.missing(pair_ids)
    with store.writer() as writer:
        for start in range(0, len(missing), shard_size):
            chunk = missing[start : start + shard_size]
            writer.add(chunk, *vectors(chunk, len(store.layers), store.hidden_size))


def filled(path: Path, count: int = 100, shard_size: int = 10, **changes: Any) -> VectorStore:
    store = VectorStore.create(path, settings(**changes))
    fill(store, ids(count), shard_size)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store but the lock, by name: two stores are equal when these are."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "writer.lock"
    }
