"""What a card should do, worked out on paper: FLOPs and bytes counted on real shapes without weights.

Nothing is computed: tensors lie on the meta device, and every operation of the blocks up to the layer is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, PreTrainedModel

from tests.benchmarks.device.fields import Field
from tests.benchmarks.device.shapes import Draw, Sizes
from tests.benchmarks.gauges import useful_flops
from trl_attribution.activations import ActivationConfig, ActivationEngine, PromptGroup
from trl_attribution.activations.packing import pack

BATCH_TOKENS = 16_384
_MATRIX_PRODUCTS = {"mm", "addmm", "bmm", "linear", "_grouped_mm"}


@dataclass(frozen=True)
class Card:
    """What is assumed of a card."""

    peak: float
    """FLOP/s of a large bfloat16 matrix product."""
    bandwidth: float
    """Bytes a second, of what elementwise operations read and write."""
    attention: float = 0.4
    """Share of the peak that attention reaches."""


@dataclass(frozen=True)
class Paper:
    """The estimate for one architecture and length of pairs."""

    card: Card
    architecture: str = "olmo2-7b"
    tokens: int = 300

    def fields(self) -> Iterator[Field]:
        yield Field("paper", f"{self.architecture}, {self.tokens} tokens", self.estimate)

    def estimate(self) -> dict[str, Any]:
        """Seconds a pair, part by part, and what they come to: as it is, and with norms and MLPs compiled."""
        sizes = Sizes(tiny=False, device="meta")
        layer, draw = sizes.layer(self.architecture), Draw(54, self.tokens)
        tokens = sum(pair.tokens for pair in draw.pairs) / len(draw.pairs)
        model = sizes.model(self.architecture, "bfloat16")
        engine = ActivationEngine(model, ActivationConfig(layers=(layer,)))
        flops = useful_flops(engine, draw.pairs, 0) / len(draw.pairs), 2 * engine.parameters_per_token() * tokens
        attention, linear = flops
        moved = {name: bytes_a_token(model, layer, fused=fused) * tokens for name, fused in _WAYS.items()}
        host = _packing_seconds(draw) / len(draw.pairs)
        work = linear / self.card.peak + attention / (self.card.attention * self.card.peak)
        told: dict[str, Any] = {
            "assumed": {"peak": self.card.peak, "bandwidth": self.card.bandwidth, "attention": self.card.attention},
            "layer": layer,
            "tokens a pair": tokens,
            "FLOPs a pair, linear": linear,
            "FLOPs a pair, attention": attention,
            "seconds a pair of packing, on this CPU": host,
        }
        for name, bytes_a_pair in moved.items():
            seconds = work + bytes_a_pair / self.card.bandwidth + host
            told[name] = {
                "bytes a pair": bytes_a_pair,
                "pairs/s": 1 / seconds,
                "share of peak": (linear + attention) / self.card.peak / seconds,
            }
        return told


_WAYS = {"one operation at a time": False, "norms and MLPs compiled": True}


def bytes_a_token(model: PreTrainedModel, layer: int, *, fused: bool) -> float:
    """What the elementwise operations of ``layer`` blocks read and write; attention itself counts as one copy.

    ``fused`` counts norms and MLPs as one kernel each between matrix products.
    """
    AttentionInterface.register("paper", _copied)
    model.config._attn_implementation = "paper"
    decoder = model.base_model
    decoder.layers = torch.nn.ModuleList(decoder.layers[:layer])
    ids = torch.zeros(1, BATCH_TOKENS, dtype=torch.long, device="meta")
    counter = _Bytes()
    with _fused_parts(model, counter) if fused else torch.no_grad(), torch.no_grad(), counter:
        decoder(input_ids=ids, position_ids=ids, use_cache=False)
    return counter.total / BATCH_TOKENS


class _Bytes(TorchDispatchMode):
    """Counts what operations read and write, unless they are views, or products that the peak stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0
        self.off = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not self.off and name not in _MATRIX_PRODUCTS and not func.is_view:
            self.total += sum(map(_size, _tensors((args, kwargs, found))))
        return found


@contextmanager
def _fused_parts(model: PreTrainedModel, counter: _Bytes) -> Iterator[None]:
    handles = []

    def begin(*_: object) -> None:
        counter.off = True

    def end(part: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        counter.off = False
        if type(part).__name__.endswith("Norm"):
            counter.total += _size(args[0]) + _size(output)
        else:  # gate and up are read, their product is written
            counter.total += 3 * _size(args[0]) / args[0].shape[-1] * model.config.intermediate_size

    for part in model.modules():
        if type(part).__name__.endswith(("Norm", "MLP")):
            handles += [part.register_forward_pre_hook(begin), part.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copied(module: object, query: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
    return query.transpose(1, 2).contiguous(), None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _packing_seconds(draw: Draw) -> float:
    """Of laying out one batch, which no device work hides today: the fastest of five."""
    groups = [
        PromptGroup(pair.chosen.prompt_ids, [pair.chosen.response_ids, pair.rejected.response_ids])
        for pair in draw.pairs
    ]
    return min(_timed(lambda: pack(groups, torch.device("cpu"), fused=True)) for _ in range(5))


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
