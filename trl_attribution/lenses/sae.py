"""A sparse autoencoder: what its latents are on a token's residual stream, and what they come to.

Axis letters: T tokens, D hidden size, F latents, K rows of a readout.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["relu", "jumprelu", "topk"]
Norm = Literal["none", "layer_norm", "constant_norm_rescale"]

_AT_ONCE = 2**25
"""Activations of latents that are in memory at a time."""
_LAYER_NORM = 1e-5  # as SAELens has it


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """Encoder and decoder of F latents of the residual stream at one layer; float32."""

    encoder: Tensor
    """``[D, F]``"""
    decoder: Tensor
    """``[F, D]``: the direction that each latent writes."""
    encoder_bias: Tensor
    """``[F]``"""
    decoder_bias: Tensor
    """``[D]``"""
    layer: int
    """0 = embeddings, l = after decoder block l."""
    kind: Kind
    threshold: Tensor | None = None
    """``[F]``: what a latent of a JumpReLU has to exceed."""
    k: int | None = None
    """How many latents of a TopK are kept a token."""
    centered: bool = True
    """Whether the decoder's bias is taken off a token before it is encoded."""
    norm: Norm = "none"
    """How a token is scaled before, and its reconstruction back."""
    by_decoder_norm: bool = False
    """Whether the latents are scaled by the length of what they write before the largest are kept."""
    name: str = ""
    """Where it was read from, RAW."""
    made_for: str = ""
    """The model that its files name, RAW; empty where they name none."""

    @property
    def width(self) -> int:
        """F, the number of latents."""
        return self.decoder.shape[0]

    @property
    def hidden_size(self) -> int:
        """D, of the model that it reads."""
        return self.decoder.shape[1]

    @property
    def _how(self) -> tuple[object, ...]:
        return self.centered, self.norm, self.by_decoder_norm

    @cached_property
    def digest(self) -> str:
        """Of all that its latents depend on."""
        found = hashlib.sha256(repr((self.layer, self.kind, self.k, *self._how)).encode())
        for tensor in (self.encoder, self.decoder, self.encoder_bias, self.decoder_bias, self.threshold):
            found.update(b"" if tensor is None else tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def on(self, device: torch.device) -> SparseAutoencoder:
        """The same on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def encode(self, tokens: Tensor) -> Tensor:
        """Latents ``[T, F]`` of tokens ``[T, D]``, none below 0."""
        scaled, _, _ = self._scaled(tokens)
        before = (scaled - self.decoder_bias if self.centered else scaled) @ self.encoder + self.encoder_bias
        if self.by_decoder_norm:
            before = before * self.decoder.norm(dim=-1)
        if self.kind == "topk":
            kept = before.topk(min(self.k or 1, self.width), dim=-1)
            return torch.zeros_like(before).scatter_(-1, kept.indices, kept.values.relu())
        if self.threshold is not None:
            before = before * (before > self.threshold)
        return before.relu()

    def reconstruct(self, tokens: Tensor) -> Tensor:
        """Tokens ``[T, D]`` as their latents say them."""
        _, mean, scale = self._scaled(tokens)
        latents = self.encode(tokens)
        if self.by_decoder_norm:
            latents = latents / self.decoder.norm(dim=-1)
        return (latents @ self.decoder + self.decoder_bias) * scale + mean

    def average(self, readout: Tensor, tokens: Tensor) -> Tensor:
        """Means ``[K, F]`` of the tokens' latents, by the weights of ``readout`` ``[K, T]``: never latents of means."""
        rows = max(1, _AT_ONCE // self.width)
        found = torch.zeros(readout.shape[0], self.width, device=tokens.device)
        for start in range(0, tokens.shape[0], rows):
            part = readout[:, start : start + rows]
            used = part.any(dim=0)  # a prompt's tokens are not averaged, and most of a batch are those
            found += part[:, used] @ self.encode(tokens[start : start + rows][used])
        return found

    def _scaled(self, tokens: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Tokens as the encoder wants them, and what brings reconstructions back: an offset and a scale."""
        if self.norm == "layer_norm":
            mean = tokens.mean(dim=-1, keepdim=True)
            scale = (tokens - mean).std(dim=-1, keepdim=True)
            return (tokens - mean) / (scale + _LAYER_NORM), mean, scale
        if self.norm == "constant_norm_rescale":
            scale = tokens.norm(dim=-1, keepdim=True) / self.hidden_size**0.5
            return tokens / scale, 0.0, scale
        return tokens, 0.0, 1.0
