"""The residual stream token by token, for what cannot be said of a mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trl_attribution.activations.blocks import find_blocks
from trl_attribution.activations.passes import ForwardPass
from trl_attribution.activations.running import runner_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def token_streams(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], layers: Sequence[int], blocks_path: str | None = None
) -> Iterator[dict[int, Tensor]]:
    """For each of ``sequences`` (token ids, in order), the stream ``[T, D]`` at each layer; float32 on the CPU.

    Raises:
        ModelError: the decoder blocks are not found, or a layer is out of range.
    """
    blocks = find_blocks(model, blocks_path)
    blocks.check_layers(tuple(layers))
    runner = runner_for(model, blocks, max(layers))
    forward = ForwardPass(runner, blocks, layers)
    for ids in sequences:
        with runner.session():  # closed before anything is handed out: its modes are not the caller's
            found = forward.streams(torch.tensor([list(ids)], device=runner.device))
        yield {layer: stream.clone() for layer, stream in found.items()}  # of inference mode, which gradients refuse
