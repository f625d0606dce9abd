"""M0 and token ids in, mean activations and pair vectors out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.activations.blocks import DecoderBlocks, find_blocks
    from trl_attribution.activations.config import ActivationConfig
    from trl_attribution.activations.engine import ActivationEngine, ActivationStats, PairVectors
    from trl_attribution.activations.packing import GroupActivations, PromptGroup
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ActivationConfig",
    "ActivationEngine",
    "ActivationStats",
    "DecoderBlocks",
    "GroupActivations",
    "PairVectors",
    "PromptGroup",
    "find_blocks",
]
