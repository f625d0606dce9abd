"""What latents are on responses: means over a response's tokens of each token's latents, on M0.

The latents of a mean activation are another thing: most are cut off at 0 on most tokens, so a mean has latents that no
token has. A store keeps means, so pairs are read again here.

Axis letters: n pairs, F latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.lenses.sae import SparseAutoencoder
from trl_attribution.utils.chunks import in_chunks

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel
    from trl_attribution.pairs import EncodedPair

_PAIRS = 64


@dataclass(frozen=True, eq=False)
class PairLatents:
    """Latents of some pairs."""

    pair_ids: tuple[str, ...]
    differences: Tensor
    """``[n, F]``: mean latents of the chosen response minus those of the rejected."""


def latent_engine(
    loaded: LoadedModel, sae: SparseAutoencoder, config: ActivationConfig | None = None
) -> ActivationEngine:
    """An engine whose "activations" are mean latents ``[F]`` at the autoencoder's layer; ``config`` but for layers."""
    settings = replace(config or ActivationConfig(()), layers=(sae.layer,))
    return ActivationEngine(loaded.model, settings, sae)


def latents_of_pairs(
    engine: ActivationEngine, pairs: Iterable[EncodedPair], on_progress: Callable[[int], None] | None = None
) -> Iterator[PairLatents]:
    """The latents of ``pairs``, some at a time, in their order; ``on_progress`` is told how many are done."""
    done = 0
    for chunk in in_chunks(pairs, _PAIRS):
        yield PairLatents(tuple(pair.pair_id for pair in chunk), engine.pair_vectors(chunk).pair[:, 0])
        done += len(chunk)
        if on_progress is not None:
            on_progress(done)


def mean_latents(engine: ActivationEngine, pairs: Iterable[EncodedPair]) -> Tensor:
    """``[F]``: the mean difference of ``pairs``."""
    return torch.cat([found.differences for found in latents_of_pairs(engine, pairs)]).mean(dim=0)
