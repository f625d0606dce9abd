"""Fused attention over a packed stream: flex attention with a block mask that knows every distinct prefix.

The stream holds prefixes in the order of a depth-first walk: all that continues a token stands in one piece behind it.
So one number a token, where that piece ends, says who sees it. Nothing is gathered, no head is repeated, and blocks
that nobody sees are skipped.

Axis letters: H heads, K key-value heads, T tokens of the stream, d size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Tokens of a block of the mask; the length of a fused stream is a multiple, so that few kernels are compiled."""

_EVERYTHING = np.iinfo(np.int32).max


@dataclass
class Visibility:
    """Who sees whom in a stream whose length is a multiple of :data:`BLOCK`."""

    ends: npt.NDArray[np.int64]
    """[T], the place behind the last token that continues each token's prefix."""
    positions: npt.NDArray[np.int64]
    """[T], of each token in its sequences."""
    device: torch.device
    _masks: dict[int | None, BlockMask] = field(default_factory=dict)

    def mask(self, window: int | None) -> BlockMask:
        """Of one layer: a token sees its own prefix, at most ``window`` tokens of it."""
        if window not in self._masks:
            self._masks[window] = self._block_mask(window)
        return self._masks[window]

    def _block_mask(self, window: int | None) -> BlockMask:
        from torch.nn.attention.flex_attention import BlockMask

        # A key is seen from positions below its reach.
        reach = np.full_like(self.positions, _EVERYTHING) if window is None else self.positions + window
        some, whole = self._blocks(reach)
        ends, positions, reaches = (
            torch.from_numpy(array.astype(np.int32)).to(self.device) for array in (self.ends, self.positions, reach)
        )

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < ends[key]) & (positions[query] < reaches[key])

        length = len(self.ends)
        return BlockMask.from_kv_blocks(
            *_listed(some & ~whole, self.device),
            *_listed(whole, self.device),
            BLOCK_SIZE=BLOCK,
            mask_mod=sees,
            seq_lengths=(length, length),
        )

    def _blocks(self, reach: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """[blocks, blocks] of queries and keys: where any sees any, or may, and where all see all."""
        starts = np.arange(0, len(self.ends), BLOCK)
        queries = starts[:, None]
        first, last = _range(self.positions)
        shortest, farthest = _range(reach)
        earliest, latest = _range(self.ends)
        some = (starts <= queries) & (queries < latest) & (first[:, None] < farthest)
        whole = (starts < queries) & (queries + BLOCK <= earliest) & (last[:, None] < shortest)
        return some, whole


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Visibility, window: int | None, scaling: float | None
) -> Tensor:
    """Attention of query [1, H, T, d] to key and value [1, K, T, d]: [1, T, H, d]."""
    attended: Tensor = _compiled(query.device.type)(
        query, key, value, block_mask=seen.mask(window), scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return attended.transpose(1, 2)


@cache
def _compiled(device_type: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # The compiler for CPUs cannot build this kernel for lengths that vary (torch 2.13); there it runs unfused.
    backend = "eager" if device_type == "cpu" else "inductor"
    compiled: Callable[..., Any] = torch.compile(flex_attention, backend=backend, fullgraph=True)
    return compiled


def _range(values: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Least and largest of each block."""
    blocks = values.reshape(-1, BLOCK)
    return blocks.min(1), blocks.max(1)


def _listed(chosen: npt.NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """How many key blocks each block of queries has, and which: first those, in their order."""
    count = chosen.sum(1, dtype=np.int32)
    order = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(count).to(device)[None, None], torch.from_numpy(order).to(device)[None, None]
