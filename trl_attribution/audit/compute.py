"""The one loop from tokens to vectors: pairs in, a shard at a time, what they give handed on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from trl_attribution.activations import ActivationEngine
from trl_attribution.pairs import EncodedPair

PairsDone = Callable[[int], None]
"""Called with the number of pairs computed so far; also within a shard, as a part of its pairs."""


Keep = Callable[[list[str], Tensor, Tensor], object]
"""Brings a shard to disk: n ids, pair vectors ``[n, L, D]``, context vectors ``[n, L, D]``."""


def compute_shards(
    engine: ActivationEngine, shards: Iterable[list[EncodedPair]], keep: Keep, on_progress: PairsDone | None = None
) -> int:
    """Compute each of ``shards`` and hand it to ``keep`` before the next is begun; returns the number of pairs."""
    tell = on_progress or (lambda _done: None)
    done = 0
    for shard in shards:
        found = engine.pair_vectors(shard, _within(len(shard), done, tell))
        keep([pair.pair_id for pair in shard], found.pair, found.context)
        done += len(shard)
        tell(done)
    return done


def _within(size: int, done: int, tell: PairsDone) -> Callable[[int, int], None]:
    """Progress of one shard's responses as progress of the pairs."""
    return lambda part, whole: tell(done + size * part // whole)
