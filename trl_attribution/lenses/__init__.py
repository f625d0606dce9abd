"""What a direction is made of, by other people's instruments: sparse autoencoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.lenses.composition import Composition, compose
    from trl_attribution.lenses.config import SaeConfig
    from trl_attribution.lenses.described import LatentWords, describe_latents
    from trl_attribution.lenses.latents import latents_of_pairs, mean_latents
    from trl_attribution.lenses.reconstruction import CheckedSae, Reconstruction, check_sae
    from trl_attribution.lenses.sae import SparseAutoencoder
    from trl_attribution.lenses.sae_files import read_sae
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CheckedSae",
    "Composition",
    "LatentWords",
    "Reconstruction",
    "SaeConfig",
    "SparseAutoencoder",
    "check_sae",
    "compose",
    "describe_latents",
    "latents_of_pairs",
    "mean_latents",
    "read_sae",
]
