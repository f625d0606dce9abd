"""How fast pair vectors are made, against one sequence at a time and against the machine's matrix-product peak."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from tests.benchmarks.pages import Results, write_page
from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.organisms import OrganismConfig, build_distractor_compliance
from trl_attribution.pairs import EncodedPair, EncodedResponse, Encoding, PairReader, Reading, RowFault, encode_pairs
from trl_attribution.probes import BuildConfig, build_from_behavior

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"
PEAK_SIZE = 2048
PROBE_PROMPTS = 16

Vectors = tuple[Tensor, Tensor]
"""Pair and context vectors [n, D] of one layer."""


@dataclass
class Way:
    """One way to compute pair vectors, and what was measured of it."""

    dtype: torch.dtype
    compute: Callable[[Sequence[EncodedPair]], Vectors]
    seconds: list[float] = field(default_factory=list)
    vectors: dict[int, Vectors] = field(default_factory=dict)
    """By chunk."""

    def rates(self, sizes: Sequence[int]) -> list[float]:
        return [size / seconds for size, seconds in zip(sizes, self.seconds, strict=True)]


@dataclass
class Measured:
    """Everything that one run of the benchmark saw."""

    ways: dict[str, Way]
    sizes: list[int] = field(default_factory=list)
    """Pairs of each round."""
    peaks: dict[torch.dtype, list[float]] = field(default_factory=dict)
    """FLOP/s of a matrix product, by round."""
    flops: dict[str, list[float]] = field(default_factory=dict)
    """Of our ways, by round."""
    tokens_computed: int = 0
    pairs_computed: int = 0


def run(output: Path, command: str, pairs: int, rounds: int, layer: int, console: Console) -> None:
    """Measure, print, and write ``speed.md`` into ``output``."""
    if not DATA.exists():
        sys.exit(f"speed: no preference dataset at {DATA}: put the HH-RLHF harmless-base test split there first")
    exact, fast = load_model(embedded_gguf(), dtype="float32"), load_model(embedded_gguf())
    half = fast if fast.dtype == "bfloat16" else load_model(embedded_gguf(), dtype="bfloat16")
    encoded = read_pairs(exact, pairs)
    engines = {"ours, float32": engine_of(exact, layer), f"ours, {fast.dtype} (default)": engine_of(fast, layer)}
    ways = {
        "one by one, float32": Way(torch.float32, lambda some: one_by_one(exact.model, some, layer)),
        "one by one, bfloat16": Way(torch.bfloat16, lambda some: one_by_one(half.model, some, layer)),
        **{name: Way(engine.dtype, _from_engine(engine)) for name, engine in engines.items()},
    }
    measured = measure(ways, engines, encoded, rounds, console)
    tables = [
        speed_table(measured),
        peak_table(measured),
        token_table(encoded, measured),
        agreement_table(measured, directions(exact, layer)),
    ]
    for table in tables:
        table.show(console)
    lead = (
        f"SmolLM2-135M-Instruct, layer {layer} of {len(engines['ours, float32'].blocks)}, the first {len(encoded)} "
        f"pairs of the HH-RLHF harmless test split, {rounds} rounds of {measured.sizes[0]} pairs. In every round all "
        "ways compute the same pairs one after the other, each round starting with another way, so that what else the "
        "machine does falls on all of them. Numbers are medians over the rounds. Each way has run on the longest pair "
        "before (thread pools, self-check)."
    )
    write_page(output / "speed.md", "Speed", lead, command, tables)


def read_pairs(loaded: LoadedModel, count: int) -> list[EncodedPair]:
    """The first ``count`` pairs that DPO training would keep."""
    pairs = list(islice(PairReader(DATA, Reading(on_bad_row="skip")), 2 * count))
    encoded = encode_pairs(pairs, loaded.tokenizer, Encoding())
    return [one for one in encoded if not isinstance(one, RowFault)][:count]


def engine_of(loaded: LoadedModel, layer: int) -> ActivationEngine:
    return ActivationEngine(loaded.model, ActivationConfig(layers=(layer,)))


@torch.no_grad()
def one_by_one(model: PreTrainedModel, pairs: Sequence[EncodedPair], layer: int) -> Vectors:
    """What the paper's code does: each response by itself, all hidden states, logits; the context on the way."""

    def states(side: EncodedResponse) -> Tensor:
        input_ids = torch.tensor([[*side.prompt_ids, *side.response_ids]])
        found: Tensor = model(input_ids=input_ids, output_hidden_states=True).hidden_states[layer][0]
        return found.float()

    vectors, contexts = [], []
    for pair in pairs:
        chosen, rejected = states(pair.chosen), states(pair.rejected)
        start, other = len(pair.chosen.prompt_ids), len(pair.rejected.prompt_ids)
        vectors.append(chosen[start:].mean(0) - rejected[other:].mean(0))
        contexts.append(chosen[start - 1])
    return torch.stack(vectors), torch.stack(contexts)


def _from_engine(engine: ActivationEngine) -> Callable[[Sequence[EncodedPair]], Vectors]:
    def compute(pairs: Sequence[EncodedPair]) -> Vectors:
        found = engine.pair_vectors(pairs)
        return found.pair[:, 0], found.context[:, 0]

    return compute


def measure(
    ways: dict[str, Way],
    engines: dict[str, ActivationEngine],
    encoded: Sequence[EncodedPair],
    rounds: int,
    console: Console,
) -> Measured:
    """Run every way on one chunk of the pairs a round; with more rounds than chunks they come round again."""
    longest = max(encoded, key=_longest_side)
    for way in ways.values():
        way.compute([longest])
    matrix_product(torch.float32), matrix_product(torch.bfloat16)
    size = -(-len(encoded) // rounds)
    chunks = [encoded[start : start + size] for start in range(0, len(encoded), size)]
    measured = Measured(ways, flops={name: [] for name in engines})
    for number in range(rounds):
        chunk = chunks[number % len(chunks)]
        measured.sizes.append(len(chunk))
        for dtype in (torch.float32, torch.bfloat16):
            measured.peaks.setdefault(dtype, []).append(matrix_product(dtype))
        for name in _rotated(list(ways), number):
            before = engines[name].stats.tokens_computed if name in engines else 0
            start = time.perf_counter()
            found = ways[name].compute(chunk)
            ways[name].seconds.append(time.perf_counter() - start)
            ways[name].vectors[number % len(chunks)] = found
            if name in engines:
                tokens = engines[name].stats.tokens_computed - before
                measured.flops[name].append(flops(engines[name], chunk, tokens))
                measured.tokens_computed += tokens
                measured.pairs_computed += len(chunk)
        rates = ", ".join(f"{name} {way.rates(measured.sizes)[-1]:.2f}" for name, way in ways.items())
        console.print(f"round {number + 1} of {rounds}, pairs/s: {rates}", markup=False)
    return measured


def _longest_side(pair: EncodedPair) -> int:
    return max(len(side.prompt_ids) + len(side.response_ids) for side in (pair.chosen, pair.rejected))


def _rotated(names: list[str], by: int) -> Iterator[str]:
    return (names[(place + by) % len(names)] for place in range(len(names)))


def matrix_product(dtype: torch.dtype) -> float:
    """FLOP/s of a product of two square matrices: the fastest of five, which is what the machine can do."""
    left, right = (torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return float(2 * PEAK_SIZE**3 / min(seconds))


def flops(engine: ActivationEngine, pairs: Sequence[EncodedPair], tokens: int) -> float:
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


def speed_table(measured: Measured) -> Results:
    """Pairs a second of every way, and how many times the baselines'."""
    base = {torch.float32: measured.ways["one by one, float32"], torch.bfloat16: measured.ways["one by one, bfloat16"]}
    rows = []
    for name, way in measured.ways.items():
        rates = way.rates(measured.sizes)
        rows.append(
            (
                name,
                f"{statistics.median(rates):.2f}",
                f"{min(rates):.2f} to {max(rates):.2f}",
                f"{_times(base[way.dtype], way):.2f}x",
                f"{_times(base[torch.float32], way):.2f}x",
            )
        )
    note = (
        "One by one is what the paper's code does: every response in a forward pass of its own, all hidden states "
        "kept, logits computed. Required: 4x at equal dtype in float32, 8x with the default dtype against float32."
    )
    columns = ("way", "pairs/s", "range", "at equal dtype", "against one by one, float32")
    return Results("Pairs a second", columns, tuple(rows), note)


def _times(base: Way, way: Way) -> float:
    return statistics.median(slow / quick for slow, quick in zip(base.seconds, way.seconds, strict=True))


def peak_table(measured: Measured) -> Results:
    """Achieved FLOP/s against the peak measured in the same round."""
    rows = []
    for name, work in measured.flops.items():
        way = measured.ways[name]
        achieved = [flop / seconds for flop, seconds in zip(work, way.seconds, strict=True)]
        shares = [rate / peak for rate, peak in zip(achieved, measured.peaks[way.dtype], strict=True)]
        rows.append(
            (
                name,
                f"{statistics.median(measured.peaks[way.dtype]) / 1e9:.0f}",
                f"{statistics.median(achieved) / 1e9:.0f}",
                f"{statistics.median(shares):.0%}",
            )
        )
    note = (
        f"Peak: the fastest of five {PEAK_SIZE} x {PEAK_SIZE} matrix products, measured anew in each round. Achieved: "
        "(2 x parameters of the blocks that run x tokens computed + 4 x blocks x attention width x query-key pairs "
        "that causal attention allows) / seconds. Padding inside attention and the self-check count as nothing done. "
        "Goal: 75%."
    )
    return Results(
        "Share of the matrix-product peak", ("way", "peak GFLOP/s", "achieved GFLOP/s", "share"), tuple(rows), note
    )


def token_table(encoded: Sequence[EncodedPair], measured: Measured) -> Results:
    """Tokens that go through the model a pair, against those that a pair has."""
    sides = [side for pair in encoded for side in (pair.chosen, pair.rejected)]
    responses = sum(len(side.response_ids) for side in sides)
    prompts = sum(len(pair.chosen.prompt_ids) for pair in encoded)
    twice = sum(len(side.prompt_ids) for side in sides)
    count = len(encoded)
    rows = (
        ("in a pair, prompt once", f"{(prompts + responses) / count:.1f}"),
        ("of these in the responses", f"{responses / count:.1f}"),
        ("computed one by one", f"{(twice + responses) / count:.1f}"),
        ("computed by ours (every distinct prefix once)", f"{measured.tokens_computed / measured.pairs_computed:.1f}"),
    )
    return Results("Tokens a pair", ("tokens", "a pair"), rows)


def directions(loaded: LoadedModel, layer: int) -> dict[str, Tensor]:
    """Directions [D] to score with: a probe's and a random one."""
    organism = build_distractor_compliance(OrganismConfig(behavior_prompts=PROBE_PROMPTS))
    config = BuildConfig(ActivationConfig(layers=(layer,)), layer=layer)
    probe = build_from_behavior("rude-with-format", organism.behavior, loaded, config)
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(len(probe.at(layer)), generator=generator)
    return {"the organism's probe": probe.at(layer), "a random direction": random}


def agreement_table(measured: Measured, scored: dict[str, Tensor]) -> Results:
    """Every way's vectors and scores against one by one in float32."""
    from scipy.stats import spearmanr

    exact_pair, exact_context = _all(measured.ways["one by one, float32"])
    rows = []
    for name, way in measured.ways.items():
        pair, context = _all(way)
        correlations = [
            float(spearmanr(_cosine(pair, direction), _cosine(exact_pair, direction)).statistic)
            for direction in scored.values()
        ]
        rows.append(
            (
                name,
                f"{float(_cosine(pair, exact_pair).min()):.7f}",
                f"{float(_cosine(context, exact_context).min()):.7f}",
                *(f"{value:.5f}" for value in correlations),
            )
        )
    columns = ("way", "pair vectors: least cosine", "contexts: least cosine", *(f"Spearman, {name}" for name in scored))
    note = "Against one by one in float32. Spearman: of the response scores, with the direction named."
    return Results("Agreement", columns, tuple(rows), note)


def _all(way: Way) -> Vectors:
    parts = [way.vectors[chunk] for chunk in sorted(way.vectors)]
    return torch.cat([pair for pair, _ in parts]), torch.cat([context for _, context in parts])


def _cosine(rows: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(rows.double(), other.double().expand_as(rows), dim=-1)
