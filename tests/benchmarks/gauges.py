"""What the benchmarks measure with: the paper's way, useful work, and the peak of matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trl_attribution.activations import ActivationEngine
from trl_attribution.pairs import EncodedPair, EncodedResponse

PEAK_SIZE = 2048


def one_by_one(model: PreTrainedModel, pairs: Sequence[EncodedPair], layer: int) -> tuple[Tensor, Tensor]:
    """What the paper's code does: each response by itself, all hidden states, logits; the context on the way."""

    def states(side: EncodedResponse) -> Tensor:
        input_ids = torch.tensor([[*side.prompt_ids, *side.response_ids]], device=model.device)
        found: Tensor = model(input_ids=input_ids, output_hidden_states=True).hidden_states[layer][0]
        return found.float()

    vectors, contexts = [], []
    for pair in pairs:
        chosen, rejected = states(pair.chosen), states(pair.rejected)
        start, other = len(pair.chosen.prompt_ids), len(pair.rejected.prompt_ids)
        vectors.append(chosen[start:].mean(0) - rejected[other:].mean(0))
        contexts.append(chosen[start - 1])
    return torch.stack(vectors), torch.stack(contexts)


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """How long ``work`` takes, until the device has done it."""
    done(device)
    start = time.perf_counter()
    work()
    done(device)
    return time.perf_counter() - start


def done(device: str) -> None:
    """Wait until ``device`` has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def matrix_product(dtype: str, size: int = PEAK_SIZE, device: str = "cpu") -> float:
    """FLOP/s of a product of two square matrices: the fastest of five, which is what the machine can do."""
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    return float(2 * size**3 / min(seconds(lambda: left @ right, device) for _ in range(5)))


def useful_flops(engine: ActivationEngine, pairs: Sequence[EncodedPair], tokens: int) -> float:
    """Useful work: two per parameter and token, and attention over the tokens that a token may see."""
    config = engine.model.config.get_text_config()
    heads: int = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    seen = sum(_seen(pair) for pair in pairs)
    return float(2 * engine.parameters_per_token() * tokens + 4 * max(engine.layers) * width * seen)


def _seen(pair: EncodedPair) -> int:
    """Query-key pairs of a pair's causal attention, its prompt counted once."""
    prompt = len(pair.chosen.prompt_ids)
    responses = [len(side.response_ids) for side in (pair.chosen, pair.rejected)]
    return prompt * (prompt + 1) // 2 + sum(size * prompt + size * (size + 1) // 2 for size in responses)
