"""Steering: a direction added to the residual stream of one layer while the model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trl_attribution.activations.changing import changed_stream
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.readouts.config import Positions, check_positions


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

    with changed_stream(model, layer, change, blocks_path):
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

        with changed_stream(model, layer, look, blocks_path):
            yield
