"""What a direction is, by other people's instruments: sparse autoencoders and activation oracles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.lenses.composition import Composition, compose
    from trl_attribution.lenses.config import ANSWERS, SaeConfig
    from trl_attribution.lenses.described import LatentWords, describe_latents
    from trl_attribution.lenses.injection import OraclePrompt, injected, oracle_prompt
    from trl_attribution.lenses.latents import latents_of_pairs, mean_latents
    from trl_attribution.lenses.oracle import Answers, Oracle, random_like
    from trl_attribution.lenses.oracle_config import PRESETS, OracleConfig, read_oracle_config
    from trl_attribution.lenses.reconstruction import CheckedSae, Reconstruction, check_sae
    from trl_attribution.lenses.sae import SparseAutoencoder
    from trl_attribution.lenses.sae_files import read_sae
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ANSWERS",
    "PRESETS",
    "Answers",
    "CheckedSae",
    "Composition",
    "LatentWords",
    "Oracle",
    "OracleConfig",
    "OraclePrompt",
    "Reconstruction",
    "SaeConfig",
    "SparseAutoencoder",
    "check_sae",
    "compose",
    "describe_latents",
    "injected",
    "latents_of_pairs",
    "mean_latents",
    "oracle_prompt",
    "random_like",
    "read_oracle_config",
    "read_sae",
]
