"""M0 and token ids in, mean activations and pair vectors out."""

from trl_attribution.activations.blocks import DecoderBlocks, find_blocks
from trl_attribution.activations.engine import ActivationConfig, ActivationEngine, ActivationStats, PairVectors
from trl_attribution.activations.packing import GroupActivations, PromptGroup

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
