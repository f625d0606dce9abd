"""How a model is loaded: the settings that every use of a model shares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadConfig:
    """Arguments of :func:`load_model`, as a command line or an audit has them."""

    dtype: str = "auto"
    """What M0 computes in: float32, bfloat16, float16, or auto (bfloat16 where the hardware multiplies it)."""
    device: str = "auto"
    """A torch device; auto takes CUDA, then MPS, then CPU."""
    adapter: str | None = None
    """A PEFT adapter that is part of M0, a folder or a Hub id."""
    quantization: str | None = None
    """M0's weights in 4 or 8 bits: 4bit, 8bit, or the quantization_config of transformers as JSON."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
