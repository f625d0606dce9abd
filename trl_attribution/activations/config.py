"""How activations are computed: the settings, checked before a model is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from trl_attribution.errors import SettingsError

Path = Literal["auto", "fused", "packed", "plain"]


@dataclass(frozen=True, kw_only=True)
class PassConfig:
    """How a model is run: what whatever computes activations can be told."""

    token_budget: int | None = None
    """Most tokens in one forward pass; chosen by device (2,048 on CPU, 16,384 elsewhere) if not given."""
    path: Path = "auto"
    """How sequences are laid out: packed computes every distinct prefix once, fused does so with flex attention, both
    unchecked; plain runs every sequence by itself; auto takes fused (on CUDA) or packed where a self-check against
    plain agrees."""
    blocks_path: str | None = None
    """Where the decoder blocks live (model.layers), if they are not found by structure."""

    def __post_init__(self) -> None:
        if self.token_budget is not None and self.token_budget < 1:
            raise SettingsError(f"token_budget: {self.token_budget} is not positive; leave it out for the default")
        if self.path not in get_args(Path):
            raise SettingsError(f"path: {self.path!r} is unknown; choose {', '.join(get_args(Path))}")


@dataclass(frozen=True)
class ActivationConfig(PassConfig):
    """How activations are computed; what is computed depends on ``layers`` alone."""

    layers: tuple[int, ...]
    """Layers to read, 0 = embeddings, l = after decoder block l, before any final norm."""
    workers: int | None = None
    """Forward passes at a time on a CPU, each with its share of torch's threads; None takes one a thread, at most 8.
    A model with hooks is run one pass at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None and self.workers < 1:
            raise SettingsError(f"workers: {self.workers} is not positive; leave it out for the default")
