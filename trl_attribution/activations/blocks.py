"""Find a model's decoder blocks by structure, so that no list of model names is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trl_attribution.errors import ModelError
from trl_attribution.models.text_part import refuse_encoder_decoder, text_part
from trl_attribution.utils.distributed import numel


@dataclass(frozen=True)
class DecoderBlocks:
    """The decoder blocks of a model in order; block ``l - 1`` writes the residual stream of layer ``l``."""

    path: str
    """Where the blocks live, as ``named_modules`` spells it: ``model.layers``."""
    blocks: tuple[torch.nn.Module, ...]

    def __len__(self) -> int:
        return len(self.blocks)

    @contextmanager
    def cut_after(self, model: torch.nn.Module, last: int) -> Iterator[None]:
        """Take the blocks above layer ``last`` out of ``model`` for the time of the block."""
        parent_path, _, name = self.path.rpartition(".")
        parent = model.get_submodule(parent_path)
        whole = getattr(parent, name)
        setattr(parent, name, torch.nn.ModuleList(self.blocks[:last]))
        try:
            yield
        finally:
            setattr(parent, name, whole)

    def check_layers(self, layers: tuple[int, ...]) -> None:
        """Refuse layers that the model does not have.

        Raises:
            ModelError: no layer is given, one is given twice, or one lies outside 0..len(self).
        """
        if not layers:
            raise ModelError(f"layers: none given; choose from 0 (embeddings) to {len(self)} (after the last block)")
        if len(set(layers)) != len(layers):
            raise ModelError(f"layers: {list(layers)} names a layer twice; list each once")
        outside = [layer for layer in layers if not 0 <= layer <= len(self)]
        if outside:
            raise ModelError(
                f"layers: {outside} out of range: {self.path!r} holds {len(self)} decoder blocks, "
                f"so choose from 0 (embeddings) to {len(self)} (after the last block)"
            )


def find_blocks(model: PreTrainedModel, path: str | None = None) -> DecoderBlocks:
    """The decoder blocks of ``model``: at ``path`` if given, else found by structure.

    By structure: the ``ModuleList`` of ``config.num_hidden_layers`` modules that holds the most parameters, of those
    that text goes through: a vision tower may be as deep as the decoder.

    Raises:
        ModelError: the model is no decoder, nothing fits, or ``path`` names no list of modules; the message lists the
            candidates.
    """
    refuse_encoder_decoder(model.config)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) > 0
    }
    if path is not None:
        if path not in lists:
            raise ModelError(f"decoder blocks: no list of modules at {path!r}. {_choices(lists)}")
        return DecoderBlocks(path, tuple(lists[path]))
    part = text_part(model)
    expected = getattr(part.config, "num_hidden_layers", None)
    fitting = {
        name: blocks
        for name, blocks in lists.items()
        if part.own_name(name) is not None and (expected is None or len(blocks) == expected)
    }
    if not fitting:
        raise ModelError(
            f"decoder blocks: {type(model).__name__} has no list of {expected} modules "
            f"(config.num_hidden_layers). Name it yourself with blocks_path / --blocks-path. {_choices(lists)}"
        )
    largest = max(fitting, key=lambda name: sum(map(numel, fitting[name].parameters())))
    return DecoderBlocks(largest, tuple(fitting[largest]))


def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The residual stream that goes into a block, from the arguments of its forward hook."""
    stream: Tensor = args[0] if args else kwargs["hidden_states"]
    return stream


def block_output(output: Any) -> Tensor:
    """The residual stream that comes out of a block, from the output its forward hook sees."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def _choices(lists: dict[str, torch.nn.ModuleList]) -> str:
    if not lists:
        return "The model has no lists of modules at all."
    found = ", ".join(f"{name!r} ({len(blocks)})" for name, blocks in sorted(lists.items())[:20])
    return f"Lists of modules found: {found}."
