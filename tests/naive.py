"""The method written down as plainly as it can be: one sequence at a time, all hidden states, a Python mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel


@torch.no_grad()
def hidden_states(model: PreTrainedModel, ids: Sequence[int], layers: Sequence[int]) -> Tensor:
    """[L, T, D] float32, the residual stream at ``layers`` (the last layer before the final norm is not in reach)."""
    input_ids = torch.tensor([list(ids)])
    states = model(input_ids=input_ids, output_hidden_states=True, use_cache=False).hidden_states
    if model.config.model_type == "mamba":  # transformers leaves out the embeddings here, and counts from block 1
        states = (model.get_input_embeddings()(input_ids), *states)
    return torch.stack([states[layer][0] for layer in layers]).float()


def mean_activation(
    model: PreTrainedModel, prompt_ids: Sequence[int], response_ids: Sequence[int], layers: Sequence[int]
) -> Tensor:
    """[L, D], mean over the response's tokens, teacher-forced after the prompt."""
    states = hidden_states(model, [*prompt_ids, *response_ids], layers)
    return states[:, len(prompt_ids) :].mean(1)


def context(model: PreTrainedModel, prompt_ids: Sequence[int], layers: Sequence[int]) -> Tensor:
    """[L, D], at the last prompt token."""
    return hidden_states(model, prompt_ids, layers)[:, -1]
