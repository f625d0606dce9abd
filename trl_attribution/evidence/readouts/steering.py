"""Steering: a direction added to the residual stream of one layer while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trl_attribution.activations import find_blocks
from trl_attribution.activations.blocks import block_input, block_output
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.readouts.config import Positions, check_positions
from trl_attribution.utils.distributed import is_sharded

_Change = Callable[[Tensor], Tensor]


@contextmanager
def steered(
    model: PreTrainedModel,
    layer: int,
    vector: Tensor,
    positions: Positions = "all",
    blocks_path: str | None = None,
) -> Iterator[None]:
    """Add ``vector`` ``[D]`` to the residual stream of ``layer`` in every pass within the block.

    The hook comes off when the block ends, whatever ended it. With ``response`` the model has to be run as generation
    runs it: the prompt in one pass, padded on the left, then a token a pass.

    Raises:
        ModelError: the decoder blocks are not found, or there is no such layer.
        SettingsError: the vector is not of the model's width or not finite, positions are unknown, or ranks share
            the model.
    """
    check_positions(positions)
    width = int(model.config.get_text_config().hidden_size)
    if vector.shape != (width,) or not torch.isfinite(vector).all():
        raise SettingsError(f"steering: the vector has shape {list(vector.shape)}; it must be [{width}] and finite")
    added_D = vector.detach()

    def change(stream_BTD: Tensor) -> Tensor:
        there = added_D.to(stream_BTD.device, stream_BTD.dtype)
        if positions == "all":
            return stream_BTD + there
        steered_BTD = stream_BTD.clone()
        steered_BTD[:, -1] += there
        return steered_BTD

    with _changing(model, layer, change, blocks_path):
        yield


class StreamMeter:
    """Measures the mean length of a layer's residual stream at the tokens that a model generates."""

    def __init__(self) -> None:
        self._total = 0.0
        self._tokens = 0

    @property
    def mean(self) -> float:
        """Over all tokens seen, 0 before the first."""
        return self._total / self._tokens if self._tokens else 0.0

    @contextmanager
    def on(self, model: PreTrainedModel, layer: int, blocks_path: str | None = None) -> Iterator[None]:
        """Measure within the block; the model computes what it always does.

        Raises:
            ModelError: the decoder blocks are not found, or there is no such layer.
        """

        def look(stream_BTD: Tensor) -> Tensor:
            # The last position is a generated token, or the prompt's last; padding is on the left.
            lengths_B = stream_BTD[:, -1].float().norm(dim=-1)
            self._total += float(lengths_B.sum())
            self._tokens += len(lengths_B)
            return stream_BTD

        with _changing(model, layer, look, blocks_path):
            yield


@contextmanager
def _changing(model: PreTrainedModel, layer: int, change: _Change, blocks_path: str | None) -> Iterator[None]:
    """Put the residual stream of ``layer`` through ``change`` in every pass."""
    if is_sharded(model):
        raise SettingsError("steering: ranks share this model; steer one that a process holds whole")
    blocks = find_blocks(model, blocks_path)
    blocks.check_layers((layer,))

    def before(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = change(block_input(args, kwargs))
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    def after(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        changed = change(block_output(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    if layer == 0:
        handle = blocks.blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = blocks.blocks[layer - 1].register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
