"""How a probe is built: the settings, checked before a model is there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from trl_attribution.activations.config import ActivationConfig
from trl_attribution.behaviors.encoding import PromptFormat, check_prompt_format
from trl_attribution.errors import ProbeError
from trl_attribution.pairs import Encoding


@dataclass(frozen=True)
class BuildConfig:
    """How a probe is built; stored with it.

    Raises:
        ProbeError: the layer is none of the probe's.
    """

    activations: ActivationConfig = field(default_factory=lambda: ActivationConfig(()))
    """Layers of the probe (by default ``layer``, else those of ``candidate_layers``), and how the model is run."""
    layer: int | Literal["auto"] = "auto"
    """The layer that flags are taken at; ``auto`` goes by separability: from the controls, else of the two sides."""
    prompt_format: PromptFormat = "auto"
    """Whether a text prompt becomes a user message: chat, text, or auto (chat where M0 has a chat template)."""
    encoding: Encoding = field(default_factory=Encoding)
    """Truncation, as in DPO training."""
    top_tokens: int = 10
    """Tokens kept from the logit lens."""
    propose_controls: bool = True
    """Whether a behavior that comes without controls gets harmless requests of the project's own, where they are any:
    where it is to comply with what is to be turned down."""

    def __post_init__(self) -> None:
        check_prompt_format(self.prompt_format)
        # The L axis is always ascending, however the layers were listed; a layer that is not there fails early.
        layers = tuple(sorted(self.activations.layers)) or (() if self.layer == "auto" else (self.layer,))
        object.__setattr__(self, "activations", replace(self.activations, layers=layers))
        if self.layer != "auto" and self.layer not in layers:
            listed = ", ".join(map(str, layers))
            raise ProbeError(f"layer {self.layer} is not among the probe's layers {listed}; choose one, or 'auto'")

    def on(self, model: Any) -> BuildConfig:
        """The same with the layers that are worth trying on ``model`` where none are named."""
        if self.activations.layers:
            return self
        layers = candidate_layers(int(model.config.get_text_config().num_hidden_layers))
        return replace(self, activations=replace(self.activations, layers=layers))

    def described(self) -> dict[str, Any]:
        """The settings that decide the probe's numbers, as plain values."""
        return {
            "layers": list(self.activations.layers),
            "prompt_format": self.prompt_format,
            "encoding": asdict(self.encoding),
        }


def candidate_layers(blocks: int) -> tuple[int, ...]:
    """Layers worth trying on a model of ``blocks`` decoder blocks: from half of its depth to about 0.8.

    That is 16 to 26 of 32, where the paper looked.
    """
    return tuple(range(max(1, -(-blocks // 2)), max(1, blocks * 26 // 32) + 1))
