"""Whether a sparse autoencoder is one of this model's layer: it has to reconstruct real text there.

Axis letters: T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trl_attribution.activations import find_blocks
from trl_attribution.activations.tokens import token_streams
from trl_attribution.errors import ModelError
from trl_attribution.lenses.config import SaeConfig
from trl_attribution.lenses.sae import SparseAutoencoder
from trl_attribution.lenses.sae_files import read_sae
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel

MASSIVE = 10.0
"""Tokens longer than so many medians (the first of a sequence, mostly) are left out: one would be all the variance."""
MOST_TOKENS = 2048
_BETTER = 0.02
"""By so much of the variance a neighboring layer has to be explained better to be the right one."""


@dataclass(frozen=True)
class Reconstruction:
    """How well an autoencoder says what M0's tokens hold."""

    layer: int
    by_layer: dict[int, float]
    """Layer -> share of the tokens' variance that is explained there: its own layer and those beside it."""
    tokens: int
    massive: int
    """Tokens that were left out for their length."""
    active: float
    """Latents above 0 a token."""

    @property
    def explained(self) -> float:
        """The share at its own layer."""
        return self.by_layer[self.layer]

    @property
    def sentence(self) -> str:
        """For people, without the full stop."""
        beside = ", ".join(f"{share:.1%} at {one}" for one, share in self.by_layer.items() if one != self.layer)
        return (
            f"explains {self.explained:.1%} of the variance of {self.tokens:,} tokens at layer {self.layer} ({beside}) "
            f"with {self.active:.0f} latents a token"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        shares = {str(layer): round(share, 4) for layer, share in self.by_layer.items()}
        return {**asdict(self), "by_layer": shares, "active": round(self.active, 2), "says": self.sentence}


@dataclass(frozen=True)
class CheckedSae:
    """An autoencoder that fits the model it is used on."""

    sae: SparseAutoencoder
    reconstruction: Reconstruction

    def to_json(self) -> dict[str, Any]:
        """What it is and how well it fits, as plain JSON values."""
        one = self.sae
        about = {"sae": one.name, "digest": one.digest, "kind": one.kind, "latents": one.width, "layer": one.layer}
        return {**about, "made_for": one.made_for, "reconstruction": self.reconstruction.to_json()}


def check_sae(
    config: SaeConfig, loaded: LoadedModel, sequences: Sequence[Sequence[int]], blocks_path: str | None = None
) -> CheckedSae:
    """Read the autoencoder that ``config`` names and make sure that it is one of M0's residual stream at its layer.

    Args:
        config: which, and how much it has to explain.
        loaded: M0.
        sequences: token ids of real text, until there are 2,048 tokens.
        blocks_path: where M0's decoder blocks live, if they are not found by structure.

    Raises:
        ModelError: it cannot be read, is of another width or layer, or reconstructs too little; or there is no text.
    """
    sae = fitting_sae(config, loaded, blocks_path)
    where = printable(sae.name, 200)
    if not any(sequences):
        raise ModelError(f"{where} cannot be checked: the text to check it on has no pair that can be read")
    found = reconstruction(sae, loaded, sequences, len(find_blocks(loaded.model, blocks_path)), blocks_path)
    best = max(found.by_layer, key=lambda layer: found.by_layer[layer])
    if found.by_layer[best] > found.explained + _BETTER:
        raise ModelError(
            f"{where} {found.sentence}: it looks like one of layer {best}. If it is, say so with --sae-layer {best}."
        )
    if not found.explained >= config.min_explained:  # nor is what is no number
        raise ModelError(
            f"{where} {found.sentence}, less than {config.min_explained:.0%}: it was not trained on this model and "
            f"layer. Give the right one, or its layer (--sae-layer), or ask for less (--sae-min-explained)."
        )
    return CheckedSae(sae.on(loaded.model.device), found)


def fitting_sae(config: SaeConfig, loaded: LoadedModel, blocks_path: str | None = None) -> SparseAutoencoder:
    """The autoencoder that ``config`` names, if it is of M0's width and one of its layers; nothing is run.

    Raises:
        ModelError: it cannot be read, or is not.
    """
    sae = read_sae(config)
    where = printable(sae.name, 200)
    hidden = loaded.model.config.get_text_config().hidden_size
    if sae.hidden_size != hidden:
        made = f" (its files name {printable(sae.made_for, 80)})" if sae.made_for else ""
        raise ModelError(f"{where} reads {sae.hidden_size} hidden dimensions{made}, and {loaded.name} has {hidden}")
    depth = len(find_blocks(loaded.model, blocks_path))
    if sae.layer > depth:
        raise ModelError(f"{where} is of layer {sae.layer}, and {loaded.name} has {depth}; see --sae-layer")
    return sae


def reconstruction(
    sae: SparseAutoencoder,
    loaded: LoadedModel,
    sequences: Sequence[Sequence[int]],
    depth: int,
    blocks_path: str | None = None,
) -> Reconstruction:
    """How much of the tokens' variance ``sae`` explains at its layer, and at those beside it."""
    layers = tuple(layer for layer in (sae.layer - 1, sae.layer, sae.layer + 1) if 0 <= layer <= depth)
    streams = list(token_streams(loaded.model, _first(sequences), layers, blocks_path))
    tokens = {layer: torch.cat([one[layer] for one in streams]) for layer in layers}
    lengths = tokens[sae.layer].norm(dim=-1)
    kept = lengths < MASSIVE * lengths.median()
    shares = {layer: explained_variance(sae, tokens[layer][kept]) for layer in layers}
    active = float((sae.encode(tokens[sae.layer][kept]) > 0).sum(dim=-1).float().mean())
    return Reconstruction(sae.layer, shares, int(kept.sum()), int((~kept).sum()), active)


def explained_variance(sae: SparseAutoencoder, tokens: Tensor) -> float:
    """1 minus the squared error of reconstructed ``tokens`` ``[T, D]`` over their squared distance from the mean."""
    errors = (sae.reconstruct(tokens) - tokens).double().square().sum()
    return float(1 - errors / (tokens - tokens.mean(dim=0)).double().square().sum())


def _first(sequences: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    chosen: list[Sequence[int]] = []
    total = 0
    for ids in sequences:
        if total >= MOST_TOKENS:
            break
        chosen.append(ids[: MOST_TOKENS - total])
        total += len(chosen[-1])
    return chosen
