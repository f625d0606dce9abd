"""The part of a model that computes text: the whole of most, the decoder beside a vision tower of others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from trl_attribution.errors import ModelError


@dataclass(frozen=True)
class TextPart:
    """Where a model's text goes through."""

    path: str
    """As ``named_modules`` spells it; empty where it is the whole model."""
    module: nn.Module
    config: PretrainedConfig

    def own_name(self, name: str) -> str | None:
        """What ``name``, of a module or parameter of the whole model, is called within; None where it is outside."""
        if not self.path:
            return name
        inside = name.removeprefix(f"{self.path}.")
        return None if inside == name else inside


def text_part(model: PreTrainedModel) -> TextPart:
    """The outermost module of ``model`` that was built from the text part of its config."""
    config = model.config.get_text_config()
    found = ("", model) if config is model.config else next(_built_from(model, config), ("", model))
    return TextPart(*found, config)


def refuse_encoder_decoder(config: PretrainedConfig) -> None:
    """Say so where prompt and response are not one sequence.

    Raises:
        ModelError: they are not: an encoder reads the prompt, a decoder the response.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{config.model_type} is an encoder-decoder model: its decoder reads a response without the prompt before "
            "it, so that there are no pair vectors. Only decoder-only models can be audited."
        )


def _built_from(model: PreTrainedModel, config: PretrainedConfig) -> Iterator[tuple[str, nn.Module]]:
    own = [(path, module) for path, module in model.named_modules() if path and isinstance(module, PreTrainedModel)]
    yield from ((path, module) for path, module in own if module.config is config)
    yield from ((path, module) for path, module in own if type(module.config) is type(config))  # built from a copy
