"""Which tokens a direction promotes: the model's own final norm and LM head applied to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trl_attribution.activations import find_blocks
from trl_attribution.errors import ModelError
from trl_attribution.utils.distributed import full_parameter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def promoted_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    direction: Tensor,
    count: int = 10,
    blocks_path: str | None = None,
) -> list[str]:
    """The ``count`` tokens whose logits ``direction`` ``[D]`` raises most, as raw text, best first.

    Empty when the model has no LM head of that width. A final norm's bias is taken out (the logits of a zero
    direction are subtracted): it promotes the same tokens whatever the direction. ``blocks_path`` is where the
    decoder blocks live, if they are not found by structure. Ranks that share one model all have to call this.
    """
    head: nn.Module | None = model.get_output_embeddings()
    norm = final_norm(model, blocks_path)
    rows = torch.stack([direction, torch.zeros_like(direction)])
    if head is None or getattr(head, "weight", None) is None:
        return []
    with torch.no_grad(), _whole(head) as weights:
        if weights["weight"].shape[-1] != direction.shape[0]:
            return []
        rows = rows.to(weights["weight"].device, weights["weight"].dtype)
        if norm is not None:
            with _whole(norm) as norm_weights:
                rows = functional_call(norm, norm_weights, (rows,))
        logits = functional_call(head, weights, (rows,)).float()
    promoted = logits[0] - logits[1]
    known = min(promoted.shape[0], len(tokenizer))
    best = promoted[:known].topk(min(count, known)).indices.tolist()
    return [str(tokenizer.decode([token])) for token in best]


@contextmanager
def _whole(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The module's parameters by name, in one piece each where ranks hold pieces."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(full_parameter(parameter)) for name, parameter in module.named_parameters()}


def final_norm(model: PreTrainedModel, blocks_path: str | None = None) -> nn.Module | None:
    """The norm between the last decoder block and the LM head: the last norm beside the list of blocks."""
    try:
        path = find_blocks(model, blocks_path).path
    except ModelError:
        return None
    beside = model.get_submodule(path.rpartition(".")[0]).named_children()
    norms = [module for name, module in beside if _is_norm(name, module)]
    return norms[-1] if norms else None


def _is_norm(name: str, module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() or "norm" in name
