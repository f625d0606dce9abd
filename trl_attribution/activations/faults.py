"""What a model's own code raises when it is handed a stream that it cannot take."""

from __future__ import annotations

from trl_attribution.activations.attention import UnsupportedAttentionError

MODEL_FAULTS = (
    UnsupportedAttentionError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)
