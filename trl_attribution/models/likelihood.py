"""How likely a model finds given responses, in batches whose logits fit into memory.

Axis letters: B sequences of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl_attribution.pairs import EncodedPair, EncodedResponse

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Logits of a batch are the largest thing in memory: bytes that they may take in float32.
_LOGIT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class LogProbs:
    """Of the tokens of n responses, each given its prompt."""

    sums: tuple[float, ...]
    tokens: tuple[int, ...]
    computed: int
    """Tokens that went through the model, padding included."""


def response_log_probs(
    model: PreTrainedModel, responses: Sequence[EncodedResponse], token_budget: int = 2048
) -> LogProbs:
    """Log probability of each response's tokens given its prompt, in nats, without any sampling settings.

    Sequences are padded on the right, where a causal model never looks, and run in batches of similar length.

    Args:
        model: a causal language model.
        responses: token ids; a first token without any prompt before it is not counted, since nothing predicts it.
        token_budget: tokens in one forward pass, padding included; fewer where the vocabulary is large.
    """
    import torch

    from trl_attribution.models.loading import evaluating

    budget = logits_budget(model, token_budget)
    sums, computed = [0.0] * len(responses), 0
    with torch.inference_mode(), evaluating(model):
        for places in _batches([len(one.prompt_ids) + len(one.response_ids) for one in responses], budget):
            batch = [responses[place] for place in places]
            found, tokens = padded_sums(model, batch)
            computed += tokens
            for place, value in zip(places, found, strict=True):
                sums[place] = value
    return LogProbs(tuple(sums), tuple(len(one.response_ids) for one in responses), computed)


@dataclass(frozen=True)
class PairMargins:
    """How much likelier a model finds the chosen responses of N pairs than the rejected ones."""

    values: list[float]
    """``[N]``, in nats."""
    computed: int
    """Tokens that went through the model, padding included."""


def pair_margins(
    model: PreTrainedModel, pairs: Sequence[EncodedPair], token_budget: int, *, per_token: bool = False
) -> PairMargins:
    """``log p(chosen) - log p(rejected)`` of each pair, each given its prompt; of their means over tokens if asked."""
    found = response_log_probs(model, [side for pair in pairs for side in (pair.chosen, pair.rejected)], token_budget)
    values = [total / count if per_token else total for total, count in zip(found.sums, found.tokens, strict=True)]
    return PairMargins([values[place] - values[place + 1] for place in range(0, len(values), 2)], found.computed)


def logits_budget(model: PreTrainedModel, token_budget: int) -> int:
    """``token_budget``, or as many tokens as have logits that fit into memory."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    return max(1, min(token_budget, _LOGIT_BYTES // (4 * vocabulary)))


def forward_flops(model: PreTrainedModel, tokens: int) -> int:
    """Of ``tokens`` through the linear layers of the whole model, the LM head included."""
    return 2 * linear_parameters(model) * tokens


def linear_parameters(model: PreTrainedModel) -> int:
    """Those that a token is multiplied by: of the decoder blocks and the LM head."""
    embeddings = model.get_input_embeddings()
    head = model.get_output_embeddings()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    lookups = sum(parameter.numel() for parameter in embeddings.parameters())
    # Looking a row up costs nothing; where the head is the same matrix, multiplying by it does.
    tied = head is not None and head.weight is embeddings.weight
    return parameters if tied else parameters - lookups


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Places of sequences of similar length, whose padded batch stays within ``budget`` tokens; longest first."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def padded_sums(model: PreTrainedModel, batch: Sequence[EncodedResponse]) -> tuple[list[float], int]:
    """Sums of log probabilities [B] of a batch padded on the right, and the tokens computed; within inference mode."""
    import torch

    width = max(len(one.prompt_ids) + len(one.response_ids) for one in batch)
    input_ids = torch.zeros(len(batch), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, one in enumerate(batch):
        ids = [*one.prompt_ids, *one.response_ids]
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
    # A token is predicted at the place before it.
    first = max(0, min(len(one.prompt_ids) for one in batch) - 1)
    options: dict[str, Any] = {"use_cache": False}
    if keeps_some_logits(model):
        options["logits_to_keep"] = width - first
    logits: torch.Tensor = model(
        input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device), **options
    ).logits
    logits = logits[:, -(width - first) :]
    sums = []
    for row, one in enumerate(batch):
        start = max(1, len(one.prompt_ids))
        stop = len(one.prompt_ids) + len(one.response_ids)
        sums.append(sum_of_targets(logits[row, start - 1 - first : stop - 1 - first], input_ids[row, start:stop]))
    return sums, input_ids.numel()


def keeps_some_logits(model: PreTrainedModel) -> bool:
    """Whether the model can be asked for the logits of some places alone."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def sum_of_targets(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Log probability of ``targets`` [T] by ``logits`` [T, V], one after the other."""
    predicted = logits.float()
    chosen = predicted.gather(1, targets.to(logits.device).unsqueeze(1)).squeeze(1)
    return float((chosen - predicted.logsumexp(dim=1)).double().sum())
