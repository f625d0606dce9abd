"""Which latents a direction is made of: a few decoder directions whose weighted sum comes closest to it.

Axis letters: D hidden size, F latents.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from trl_attribution.lenses.sae import SparseAutoencoder

_DRAWS = 8


@dataclass(frozen=True)
class Part:
    """One latent of a direction."""

    latent: int
    weight: float
    """In units of the direction's length; below 0 where the direction lowers the latent."""
    cosine: float
    """Of the direction with what the latent writes."""
    explained: float
    """Share of the direction's squared length that this part and those before it come to."""


@dataclass(frozen=True)
class Composition:
    """The parts of a direction, the one that says most of it first."""

    parts: tuple[Part, ...]
    by_chance: float
    """What as many latents explain of a random direction, on average over draws."""

    @property
    def explained(self) -> float:
        """Share of the direction's squared length that all parts together come to."""
        return self.parts[-1].explained if self.parts else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"parts": [asdict(part) for part in self.parts], "random_direction_explained": self.by_chance}


def compose(direction: Tensor, sae: SparseAutoencoder, count: int = 10, seed: int = 0) -> Composition:
    """The ``count`` latents that ``direction`` ``[D]`` is best made of, one after the other.

    Orthogonal matching pursuit: take the decoder direction closest to what is left, fit the weights of all that were
    taken anew, go on. A direction is a difference of activations, so weights may be below 0. It needs no text and no
    pass of M0; what a random direction comes to stands beside it, for in an overcomplete dictionary any direction is
    made of something.
    """
    atoms = torch.nn.functional.normalize(sae.decoder.double().cpu(), dim=-1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(_DRAWS, atoms.shape[1], dtype=torch.float64, generator=generator)
    chance = [_pursued(one / one.norm(), atoms, count) for one in drawn]
    unit = direction.double().cpu() / direction.double().norm()
    return Composition(
        tuple(_pursued(unit, atoms, count)), sum(found[-1].explained for found in chance if found) / _DRAWS
    )


def _pursued(unit: Tensor, atoms: Tensor, count: int) -> list[Part]:
    """Parts of a direction of length 1, with the weights that they have when all are fitted."""
    chosen: list[int] = []
    shares: list[float] = []
    cosines, left = atoms @ unit, unit
    weights = torch.zeros(0, dtype=unit.dtype)
    for _ in range(min(count, len(atoms), len(unit))):
        fits = (atoms @ left).abs()
        fits[chosen] = -1
        chosen.append(int(fits.argmax()))
        weights = torch.linalg.lstsq(atoms[chosen].T, unit[:, None]).solution[:, 0]
        left = unit - weights @ atoms[chosen]
        shares.append(1 - float(left.square().sum()))
    return [
        Part(latent, float(weight), float(cosines[latent]), share)
        for latent, weight, share in zip(chosen, weights, shares, strict=True)
    ]
