"""How alike items push on a whole dataset: cosines of the rows of the items x pairs matrix, which is never held.

Axis letters: P items (prompts, or pairs in their place), N pairs, n pairs of a block, L layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trl_attribution.errors import StoreError
from trl_attribution.scoring.protocols import VectorViewLike
from trl_attribution.scoring.targets import unit_rows, usable_contexts

Kind = Literal["contextual", "response"]
Progress = Callable[[int, int], None]
MEMORY_BUDGET = 256 * 2**20
"""Bytes that a block's vectors, and its similarities, may each take."""
_MOST_ROWS = 8192


@dataclass(frozen=True)
class Items:
    """What is clustered: the behavior vectors of P prompts, or the pair vectors of P pairs."""

    vectors: Tensor
    """``[P, L, D]`` float32."""
    contexts: Tensor
    """``[P, L, D]`` float32; zero rows where there is no prompt."""

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, places: Sequence[int]) -> Items:
        """The items at ``places``."""
        chosen = torch.as_tensor(list(places), dtype=torch.long)
        return Items(self.vectors[chosen], self.contexts[chosen])


@dataclass(frozen=True)
class RowCosines:
    """How alike the items' rows are."""

    cosine: Tensor
    """``[P, P]`` float32, ones on the diagonal; zero rows for items that are alike to no pair."""
    usable: Tensor
    """``[P]``: False where an item has no direction, or no context where one is needed."""


def row_cosines(
    view: VectorViewLike,
    items: Items,
    layers: Sequence[int],
    kind: Kind,
    means: Mapping[int, Tensor],
    memory_budget: int = MEMORY_BUDGET,
    progress: Progress | None = None,
) -> RowCosines:
    """Cosines between the rows of the similarity matrix of ``items`` with all N pairs, at all ``layers`` together.

    The similarity of item i with pair d is the score that d has for i alone: ``cos(v_i, v_d)``, or contextually
    ``cos(v_i, v_d) * max(0, cos(c_i - mu, c_d - mu))``. A row has N x L entries; their inner products are added up
    block by block, so that memory is 4 P^2 bytes and a block, whatever N. Negating an item negates its row, exactly.

    Args:
        view: the vectors of N pairs.
        items: the vectors of P items, at ``layers`` in that order.
        layers: the L layers.
        kind: contextual or response.
        means: ``mu`` ``[D]`` by layer; needed for contextual similarities.
        memory_budget: bytes for a block's vectors, and again for its similarities.
        progress: called with the pairs read so far, and N.

    Raises:
        StoreError: a vector is not finite.
    """
    directions = [unit_rows(items.vectors[:, place]) for place in range(len(layers))]
    contexts = [
        unit_rows(usable_contexts(items.contexts[:, place], means[layer])) if kind == "contextual" else None
        for place, layer in enumerate(layers)
    ]
    gram_PP = torch.zeros(len(items), len(items))
    for block in view.blocks(layers, _block_rows(len(items), len(layers), view.hidden_size, memory_budget)):
        for place, layer in enumerate(layers):
            similar_Pn = directions[place] @ unit_rows(block.pair[:, place]).T
            own = contexts[place]
            if own is not None:
                centred = unit_rows(usable_contexts(block.context[:, place], means[layer]))
                similar_Pn *= (own @ centred.T).clamp_(min=0)
            gram_PP.addmm_(similar_Pn, similar_Pn.T)
        if progress is not None:
            progress(block.start + len(block.pair), len(view))
    return _normalized(gram_PP)


def _normalized(gram_PP: Tensor) -> RowCosines:
    squares = gram_PP.diagonal().clone()
    if not torch.isfinite(squares).all():
        raise StoreError("some vectors are not finite: verify the store, and compute in float32")
    usable = squares > 0
    scale = torch.where(usable, squares.clamp(min=torch.finfo(torch.float32).tiny).rsqrt(), 0.0)
    gram_PP.mul_(scale[:, None]).mul_(scale[None, :]).clamp_(-1, 1)
    gram_PP.fill_diagonal_(1.0)
    return RowCosines(gram_PP, usable)


def _block_rows(items: int, layers: int, hidden_size: int, memory_budget: int) -> int:
    """Pairs a block: its vectors as read and scaled, and three similarity matrices."""
    vectors = 4 * (4 * layers + 4) * hidden_size
    similarities = 4 * 3 * items
    return max(1, min(_MOST_ROWS, memory_budget // vectors, memory_budget // similarities))
