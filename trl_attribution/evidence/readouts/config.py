"""What a dose curve tries: the settings, checked before a model is there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from trl_attribution.behaviors.encoding import PromptFormat, check_prompt_format
from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.errors import SettingsError

Scale = Literal["vector", "stream"]
Positions = Literal["all", "response"]


@dataclass(frozen=True)
class DoseConfig:
    """What is tried.

    Raises:
        SettingsError: no doses, one that is 0, no number or given twice, or an unknown scale or place.
    """

    alphas: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Doses, such as 0.5,1,2; without any is measured anyway. Negative ones steer away from the behavior."""
    scale: Scale = "vector"
    """A dose of 1: the direction as it is (vector), or one as long as the layer's residual stream (stream)."""
    positions: Positions = "all"
    """Where it is added: every token (all), or the last prompt token and all after it (response)."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(n=1, max_new_tokens=64))
    """Of the responses at each dose."""
    prompt_format: PromptFormat = "auto"
    """Whether a text prompt becomes a user message: chat, text, or auto (chat where M0 has a chat template)."""
    blocks_path: str | None = None
    """Where the decoder blocks live (model.layers), if they are not found by structure."""

    def __post_init__(self) -> None:
        good = all(alpha and math.isfinite(alpha) for alpha in self.alphas)
        if not self.alphas or not good or len(set(self.alphas)) < len(self.alphas):
            raise SettingsError(f"alphas: {list(self.alphas)} must be finite doses other than 0, each once")
        if self.scale not in get_args(Scale):
            raise SettingsError(f"scale: {self.scale!r} is unknown; choose {' or '.join(get_args(Scale))}")
        check_positions(self.positions)
        check_prompt_format(self.prompt_format)


def check_positions(positions: str) -> None:
    """Refuse places that nothing is added at.

    Raises:
        SettingsError: they are unknown.
    """
    if positions not in get_args(Positions):
        raise SettingsError(f"positions: {positions!r} is unknown; choose {' or '.join(get_args(Positions))}")
