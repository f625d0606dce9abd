"""Models with random weights in the shapes of real ones, and pairs of random tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from trl_attribution.pairs import EncodedPair, EncodedResponse

_FULL: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo2-1b": (
        "olmo2",
        dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=16, vocab_size=100352),
    ),
    "olmo2-7b": (
        "olmo2",
        dict(
            hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=100352
        ),
    ),
    "llama-8b": (
        "llama",
        dict(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128256,
        ),
    ),
    "gemma3-1b": (
        "gemma3_text",
        dict(
            hidden_size=1152,
            intermediate_size=6912,
            num_hidden_layers=26,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
            sliding_window=512,
            vocab_size=262144,
        ),
    ),
    "olmoe-7b": (
        "olmoe",
        dict(
            hidden_size=2048,
            intermediate_size=1024,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=16,
            num_experts=64,
            num_experts_per_tok=8,
            vocab_size=50304,
        ),
    ),
}
_TINY: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, vocab_size=512
)
_TINY_OF_ITS_OWN: dict[str, dict[str, Any]] = {
    "llama-8b": dict(num_key_value_heads=2),
    "gemma3-1b": dict(
        num_key_value_heads=1, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2
    ),
    "olmoe-7b": dict(num_key_value_heads=4, num_experts=4, num_experts_per_tok=2),
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured: on a real device, or at toy size."""

    tiny: bool
    device: str

    architectures = tuple(_FULL)

    def pick(self, full: Any, tiny: Any) -> Any:
        """The one or the other."""
        return tiny if self.tiny else full

    def layer(self, architecture: str) -> int:
        """Five eighths of the depth: 20 of 32."""
        return max(1, self.blocks(architecture) * 5 // 8)

    def blocks(self, architecture: str) -> int:
        """Decoder blocks."""
        return int((_TINY if self.tiny else _FULL[architecture][1])["num_hidden_layers"])

    def model(self, architecture: str, dtype: str) -> PreTrainedModel:
        """A model with random weights, made on the device; the same in every dtype but for rounding."""
        from transformers import AutoConfig

        kind, shape = _FULL[architecture]
        if self.tiny:
            # Of a scale at which a wrong mask shows.
            shape = {**_TINY, **_TINY_OF_ITS_OWN.get(architecture, {}), "initializer_range": 0.15}
        config = AutoConfig.for_model(kind, **shape, max_position_embeddings=4096, pad_token_id=0, eos_token_id=2)
        torch.manual_seed(0)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return model.to(getattr(torch, dtype)).eval()


@dataclass
class Shelf:
    """The model in use, and no other: two large ones do not fit."""

    sizes: Sizes
    _held: tuple[str, str, PreTrainedModel] | None = None

    def model(self, architecture: str, dtype: str) -> PreTrainedModel:
        """The model, made when it is not the one in use."""
        if self._held is None or self._held[:2] != (architecture, dtype):
            self.clear()
            self._held = (architecture, dtype, self.sizes.model(architecture, dtype))
        return self._held[2]

    def clear(self) -> None:
        """Give its memory back; what was compiled for its shapes would only count against the next one's."""
        self._held = None
        torch.compiler.reset()
        if self.sizes.device != "cpu":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Draw:
    """Pairs of about ``tokens`` tokens each, six tenths of them the prompt's, with lengths that vary."""

    count: int
    tokens: int
    seed: int = 0

    @cached_property
    def pairs(self) -> list[EncodedPair]:
        generator = torch.Generator().manual_seed(self.seed)

        def ids(about: float) -> list[int]:
            length = max(1, round(about * (0.7 + 0.6 * float(torch.rand((), generator=generator)))))
            return torch.randint(3, 500, (length,), generator=generator).tolist()

        found = []
        for number in range(self.count):
            prompt = ids(0.6 * self.tokens)
            sides = [EncodedResponse(prompt, ids(0.2 * self.tokens)) for _ in range(2)]
            found.append(EncodedPair(f"{number:032x}", *sides))
        return found


@contextmanager
def norms_and_mlps_compiled(model: PreTrainedModel, device: str) -> Iterator[None]:
    """Fuse what is bound by memory, block by block; attention is left as it is."""
    parts = [part for part in model.modules() if type(part).__name__.endswith(("Norm", "MLP"))]
    for part in parts:
        part.compile(dynamic=True, backend="inductor" if device != "cpu" else "eager")
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None
