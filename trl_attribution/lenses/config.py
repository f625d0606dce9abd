"""Settings of the lenses, checked before anything is read: which sparse autoencoder, and how an oracle is sampled."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.errors import SettingsError

ANSWERS = SamplingConfig(n=3, max_new_tokens=40, temperature=0.7)
"""How an oracle's answers are sampled, unless somebody says."""


@dataclass(frozen=True)
class SaeConfig:
    """A sparse autoencoder, as a command names it.

    Raises:
        SettingsError: a value is out of range.
    """

    sae: str = ""
    """A sparse autoencoder of M0's residual stream: a folder (SAELens, Gemma Scope, Sparsify), a .safetensors or .npz
    file, or a Hub id (owner/name, or owner/name:folder)."""
    layer: int | None = field(default=None, metadata={"option": "sae_layer"})
    """Its layer, where its files do not say: 0 = embeddings, l = after decoder block l."""
    k: int | None = field(default=None, metadata={"option": "sae_k"})
    """Latents that a TopK autoencoder keeps a token, where its files do not say."""
    min_explained: float = field(default=0.5, metadata={"option": "sae_min_explained"})
    """Share of the variance of M0's tokens that it has to explain at its layer to be used."""

    def __post_init__(self) -> None:
        for name, least in (("layer", 0), ("k", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"sae_{name}: {value} must be at least {least}")
        if not self.min_explained < 1:
            raise SettingsError(f"sae_min_explained: {self.min_explained} must be below 1; a perfect one explains 1")
