"""Vectors on the device: are they right, how fast are they made, in how much memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from tests.benchmarks.device.fields import Field, NotHereError, attempt
from tests.benchmarks.device.shapes import Draw, Shelf, Sizes, norms_and_mlps_compiled
from tests.benchmarks.gauges import matrix_product, one_by_one, seconds, useful_flops
from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.activations.config import Path
from trl_attribution.pairs import EncodedPair

_PATHS: tuple[Path, ...] = ("auto", "fused", "packed", "plain")


@dataclass
class Vectors:
    """The measurements of one run; the peaks are those that shares are of."""

    sizes: Sizes
    shelf: Shelf
    peaks: dict[str, float]

    def fields(self) -> Iterator[Field]:
        """In the order of their worth, should time run out."""
        for dtype in ("bfloat16", "float32"):
            yield Field("peak", dtype, partial(self.peak, dtype), 2)
        yield Field("peak", "copied bytes a second", self.copied, 2)
        for architecture in self.sizes.architectures:
            yield Field("parity", architecture, partial(self.parity, architecture), 25)
        for tokens in self.sizes.pick((300, 200, 500, 1000), (40,)):
            yield Field("speed", f"olmo2-7b, {tokens} tokens", partial(self.speed, "olmo2-7b", tokens), 35)
        for budget in self.sizes.pick((4096, 16384, 65536), (256,)):
            yield Field("memory", f"budget of {budget} tokens", partial(self.memory, budget), 10)
        yield Field("out of memory", "olmo2-7b", self.out_of_memory, 15)
        tokens = self.sizes.pick(300, 40)
        yield Field("speed", f"llama-8b, {tokens} tokens", partial(self.speed, "llama-8b", tokens), 45)

    def peak(self, dtype: str) -> float:
        """FLOP/s."""
        size = self.sizes.pick(8192, 256)
        matrix_product(dtype, size, self.sizes.device)  # warms up
        self.peaks[dtype] = matrix_product(dtype, size, self.sizes.device)
        return self.peaks[dtype]

    def copied(self) -> float:
        """Of a plain copy, read and written."""
        source = torch.empty(self.sizes.pick(2**31, 2**20), dtype=torch.uint8, device=self.sizes.device)
        target = torch.empty_like(source)
        return 2 * source.numel() / min(seconds(lambda: target.copy_(source), self.sizes.device) for _ in range(5))

    def parity(self, architecture: str) -> dict[str, Any]:
        """Least cosine of pair and context vectors to those of one sequence at a time in float32, by dtype and path."""
        layer = self.sizes.layer(architecture)
        # The longest go beyond Gemma's window.
        pairs = [*Draw(8, self.sizes.pick(250, 30)).pairs, *Draw(2, self.sizes.pick(1200, 60), seed=1).pairs]
        found: dict[str, Any] = {"layer": layer}
        exact: tuple[Tensor, Tensor] | None = None
        for dtype in ("float32", "bfloat16"):
            model = self.shelf.model(architecture, dtype)
            naive = _naive(model, pairs, layer)
            exact = naive if exact is None else exact
            found[dtype] = {"naive": _cosines(naive, exact)}
            for path in _PATHS:
                found[dtype][path] = attempt(partial(self._parity_of, model, path, pairs, layer, exact))
        return found

    def _parity_of(
        self,
        model: PreTrainedModel,
        path: Path,
        pairs: Sequence[EncodedPair],
        layer: int,
        exact: tuple[Tensor, Tensor],
    ) -> dict[str, Any]:
        engine = ActivationEngine(model, ActivationConfig(layers=(layer,), path=path))
        vectors = engine.pair_vectors(pairs)
        found = _cosines((vectors.pair[:, 0], vectors.context[:, 0]), exact)
        return {**found, "path": engine.path, "reason": engine.path_reason} if path == "auto" else found

    def speed(self, architecture: str, tokens: int) -> dict[str, Any]:
        """Pairs a second of each way, all on the same pairs in every round, and the share of the measured peak."""
        model, layer = self.shelf.model(architecture, "bfloat16"), self.sizes.layer(architecture)
        draw = Draw(self.sizes.pick(max(64, 38_400 // tokens), 6), tokens)
        few = draw.pairs[: self.sizes.pick(8, 2)]
        ways: dict[str, _Way] = {
            "one by one": _Way(few, lambda pairs: _naive(model, pairs, layer)),
            "padded": self._way(model, layer, "plain", draw.pairs),
            "padded, FlashAttention": self._way(model, layer, "plain", draw.pairs, _flash),
            "packed": self._way(model, layer, "packed", draw.pairs),
            "fused": self._way(model, layer, "fused", draw.pairs),
            "fused, norms and MLPs compiled": self._way(
                model, layer, "fused", draw.pairs, partial(norms_and_mlps_compiled, device=self.sizes.device)
            ),
        }
        engine = ActivationEngine(model, ActivationConfig(layers=(layer,)))
        flops = useful_flops(engine, draw.pairs, sum(pair.tokens for pair in draw.pairs)) / len(draw.pairs)
        warm = {name: attempt(partial(self._round, model, way)) for name, way in ways.items()}
        rounds: dict[str, list[float]] = {name: [] for name, found in warm.items() if isinstance(found, float)}
        for _ in range(self.sizes.pick(3, 1)):
            for name, rates in rounds.items():
                rates.append(self._round(model, ways[name]))
        told = {name: self._told(rates, flops) for name, rates in rounds.items()}
        means = sum(pair.tokens for pair in draw.pairs) / len(draw.pairs)
        return {"layer": layer, "tokens a pair": means, "FLOPs a pair": flops, **warm, **told}

    def _told(self, rates: Sequence[float], flops: float) -> dict[str, Any]:
        peak = self.peaks.get("bfloat16")
        median = statistics.median(rates)
        share = median * flops / peak if peak else "no peak was measured"
        return {"pairs/s": median, "least": min(rates), "most": max(rates), "share of peak": share}

    def _way(
        self,
        model: PreTrainedModel,
        layer: int,
        path: Path,
        pairs: Sequence[EncodedPair],
        around: Callable[[PreTrainedModel], Any] = nullcontext,
    ) -> _Way:
        engine = ActivationEngine(model, ActivationConfig(layers=(layer,), path=path))
        return _Way(pairs, engine.pair_vectors, around)

    def _round(self, model: PreTrainedModel, way: _Way) -> float:
        with way.around(model):
            return len(way.pairs) / seconds(lambda: way.compute(way.pairs), self.sizes.device)

    def memory(self, budget: int) -> dict[str, Any]:
        """What passes of ``budget`` tokens take beyond the model, and how fast they are."""
        model, layer = self.shelf.model("olmo2-7b", "bfloat16"), self.sizes.layer("olmo2-7b")
        tokens = self.sizes.pick(300, 40)
        pairs = Draw(max(2 * budget // tokens, 2), tokens).pairs
        engine = ActivationEngine(model, ActivationConfig(layers=(layer,), token_budget=budget))
        engine.pair_vectors(pairs[: max(1, len(pairs) // 4)])
        before = self._reset_peak()
        took = seconds(lambda: engine.pair_vectors(pairs), self.sizes.device)
        beyond = torch.cuda.max_memory_allocated() - before if self._cuda else "no CUDA device counts it"
        return {"pairs/s": len(pairs) / took, "bytes beyond the model": beyond, "path": engine.path}

    def out_of_memory(self) -> dict[str, Any]:
        """The same vectors when passes do not fit: how often the token budget was halved for it."""
        model, layer = self.shelf.model("olmo2-7b", "bfloat16"), self.sizes.layer("olmo2-7b")
        budget = self.sizes.pick(65_536, 400)
        pairs = Draw(self.sizes.pick(400, 12), self.sizes.pick(300, 40)).pairs
        config = ActivationConfig(layers=(layer,), token_budget=budget)
        free = ActivationEngine(model, config).pair_vectors(pairs)
        engine = ActivationEngine(model, config)
        with self._little_memory(model) as how:
            vectors = engine.pair_vectors(pairs)
        return {
            **_cosines((vectors.pair[:, 0], vectors.context[:, 0]), (free.pair[:, 0], free.context[:, 0])),
            "halvings": engine.budget.halvings,
            "token budget": engine.budget.tokens,
            "how": how,
        }

    @contextmanager
    def _little_memory(self, model: PreTrainedModel) -> Iterator[str]:
        """On CUDA for real; on a CPU passes of many tokens are refused as if there were no more."""
        if self._cuda:
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
            try:
                yield "1 GiB beyond the model"
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)
            return

        def refuse(_module: object, _args: object, kwargs: dict[str, Tensor]) -> None:
            if kwargs["input_ids"].numel() > 200:
                raise torch.OutOfMemoryError("out of memory: more than 200 tokens")

        handle = model.register_forward_pre_hook(refuse, with_kwargs=True)
        try:
            yield "passes of more than 200 tokens refused"
        finally:
            handle.remove()

    @property
    def _cuda(self) -> bool:
        return self.sizes.device != "cpu"

    def _reset_peak(self) -> int:
        if not self._cuda:
            return 0
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()


@dataclass(frozen=True)
class _Way:
    pairs: Sequence[EncodedPair]
    compute: Callable[[Sequence[EncodedPair]], object]
    around: Callable[[PreTrainedModel], Any] = nullcontext


@torch.no_grad()
def _naive(model: PreTrainedModel, pairs: Sequence[EncodedPair], layer: int) -> tuple[Tensor, Tensor]:
    pair, context = one_by_one(model, pairs, layer)
    return pair.cpu(), context.cpu()


@contextmanager
def _flash(model: PreTrainedModel) -> Iterator[None]:
    if not is_flash_attn_2_available():
        raise NotHereError("flash_attn is not installed, or there is no device for it")
    before = model.config._attn_implementation
    model.set_attn_implementation("flash_attention_2")
    with ExitStack() as stack:
        stack.callback(model.set_attn_implementation, before)
        yield


def _cosines(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> dict[str, float]:
    names = ("pair vectors, least cosine", "contexts, least cosine")
    return {
        name: float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).min())
        for name, one, other in zip(names, found, exact, strict=True)
    }
