"""How fast pair vectors are made, against one sequence at a time and against the machine's matrix-product peak."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from tests.benchmarks.gauges import PEAK_SIZE, matrix_product
from tests.benchmarks.pages import Results, write_page
from tests.benchmarks.speed_ways import (
    DATA,
    Done,
    OwnProcess,
    Task,
    Way,
    own_processes,
    process,
    read_pairs,
)
from trl_attribution.activations import ActivationConfig
from trl_attribution.evidence.organisms import OrganismConfig, build_distractor_compliance
from trl_attribution.models import embedded_gguf, load_model
from trl_attribution.pairs import EncodedPair
from trl_attribution.probes import BuildConfig, build_from_behavior

PROBE_PROMPTS = 16
EXACT, OURS = "one by one, float32", "ours, default"
WAYS = (
    Way(EXACT, dtype="float32", one_by_one=True),
    Way("one by one, bfloat16", dtype="bfloat16", one_by_one=True),
    Way("ours, float32", dtype="float32"),
    Way(OURS),
)
WITHOUT = (
    Way("one forward pass at a time", workers=1),
    # A variable of the C library's allocator, set to its default, is what makes the engine leave it alone.
    Way("freed memory given back", environment=(("GLIBC_TUNABLES", "glibc.malloc.tcache_count=7"),)),
)
"""The default without one of its parts."""


@dataclass
class Measured:
    """Everything that one run of the benchmark saw: what each way did, by round."""

    rounds: list[Task] = field(default_factory=list)
    done: dict[str, list[Done]] = field(default_factory=dict)
    peaks: dict[str, list[float]] = field(default_factory=dict)
    """FLOP/s of a matrix product by dtype, by round."""

    def rates(self, name: str) -> list[float]:
        """Pairs a second, by round."""
        return [
            (task.stop - task.start) / done.seconds for task, done in zip(self.rounds, self.done[name], strict=True)
        ]

    def dtype(self, name: str) -> str:
        return self.done[name][0].dtype

    def label(self, way: Way) -> str:
        return way.name if way.dtype != "auto" else f"ours, {self.dtype(way.name)} (default)"

    def times(self, name: str, base: str) -> list[float]:
        """How many times as fast as ``base``, by round."""
        return [slow.seconds / quick.seconds for slow, quick in zip(self.done[base], self.done[name], strict=True)]


def run(output: Path, command: str, pairs: int, rounds: int, layer: int, console: Console) -> None:
    """Measure, print, and write ``speed.md`` into ``output``."""
    if not DATA.exists():
        sys.exit(f"speed: no preference dataset at {DATA}: put the HH-RLHF harmless-base test split there first")
    encoded = read_pairs(pairs)
    with own_processes((*WAYS, *WITHOUT)) as processes, process() as products:
        measured = measure(processes, products, len(encoded), rounds, layer, console)
    tables = [
        speed_table(measured),
        parts_table(measured),
        peak_table(measured),
        token_table(encoded, measured),
        agreement_table(measured, directions(layer)),
    ]
    for table in tables:
        table.show(console)
    lead = (
        f"SmolLM2-135M-Instruct, layer {layer} of 30, the first {len(encoded)} pairs of the HH-RLHF harmless test "
        f"split, {rounds} rounds of {measured.rounds[0].stop} pairs. Each way has a process of its own, which has run "
        "the longest pair before (thread pools, self-check) and waits for its turn; in every round all ways compute "
        "the same pairs one after the other, each round starting with another way, so that what else the machine does "
        "falls on all of them. Numbers are medians over the rounds."
    )
    write_page(output / "speed.md", "Speed", lead, command, tables)


def measure(
    processes: Sequence[OwnProcess], products: Executor, pairs: int, rounds: int, layer: int, console: Console
) -> Measured:
    """Run every way on one chunk of the pairs a round; with more rounds than chunks they come round again."""
    size = -(-pairs // rounds)
    chunks = [Task(pairs, layer, start, min(start + size, pairs)) for start in range(0, pairs, size)]
    for one in processes:
        one.compute(Task(pairs, layer, 0, 1))
    measured = Measured(done={one.way.name: [] for one in processes}, peaks={"float32": [], "bfloat16": []})
    for number in range(rounds):
        task = chunks[number % len(chunks)]
        measured.rounds.append(task)
        for dtype, peaks in measured.peaks.items():
            peaks.append(products.submit(matrix_product, dtype).result())
        for one in _rotated(processes, number):
            measured.done[one.way.name].append(one.compute(task))
        rates = ", ".join(f"{name} {measured.rates(name)[-1]:.2f}" for name in measured.done)
        console.print(f"round {number + 1} of {rounds}, pairs/s: {rates}", markup=False)
    return measured


def _rotated(processes: Sequence[OwnProcess], by: int) -> Iterator[OwnProcess]:
    return (processes[(place + by) % len(processes)] for place in range(len(processes)))


def speed_table(measured: Measured) -> Results:
    """Pairs a second of every way, and how many times the baselines'."""
    base = {measured.dtype(way.name): way.name for way in WAYS if way.one_by_one}
    rows = []
    for way in WAYS:
        rates, dtype = measured.rates(way.name), measured.dtype(way.name)
        rows.append(
            (
                measured.label(way),
                f"{statistics.median(rates):.2f}",
                f"{min(rates):.2f} to {max(rates):.2f}",
                f"{statistics.median(measured.times(way.name, base[dtype])):.2f}x",
                f"{statistics.median(measured.times(way.name, EXACT)):.2f}x",
            )
        )
    note = (
        "One by one is what the paper's code does: every response in a forward pass of its own, all hidden states "
        "kept, logits computed. Required: 4x at equal dtype in float32, 8x with the default dtype against float32."
    )
    columns = ("way", "pairs/s", "range", "at equal dtype", "against one by one, float32")
    return Results("Pairs a second", columns, tuple(rows), note)


def parts_table(measured: Measured) -> Results:
    """What the default gains from parts of it that matter on a CPU alone."""
    rows = []
    for way in WITHOUT:
        gains = measured.times(OURS, way.name)
        rates = measured.rates(way.name)
        rows.append(
            (
                way.name,
                f"{statistics.median(rates):.2f}",
                f"{statistics.median(gains):.2f}x",
                f"{min(gains):.2f} to {max(gains):.2f}",
            )
        )
    note = "The default against itself without one part; the range is that of the rounds."
    return Results("Parts of the default on a CPU", ("without it", "pairs/s", "gain", "range"), tuple(rows), note)


def peak_table(measured: Measured) -> Results:
    """Achieved FLOP/s against the peak measured in the same round."""
    rows = []
    for way in WAYS:
        if way.one_by_one:
            continue
        peaks = measured.peaks[measured.dtype(way.name)]
        achieved = [one.flops / one.seconds for one in measured.done[way.name]]
        shares = [rate / peak for rate, peak in zip(achieved, peaks, strict=True)]
        rows.append(
            (
                f"ours, {measured.dtype(way.name)}",
                f"{statistics.median(peaks) / 1e9:.0f}",
                f"{statistics.median(achieved) / 1e9:.0f}",
                f"{statistics.median(shares):.0%}",
            )
        )
    note = (
        f"Peak: the fastest of five {PEAK_SIZE} x {PEAK_SIZE} matrix products in a process of its own, in each round. "
        "Achieved: (2 x parameters of the blocks that run x tokens computed + 4 x blocks x attention width x "
        "query-key pairs that causal attention allows) / seconds. Padding inside attention counts as nothing done. "
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
    computed = sum(one.tokens for one in measured.done[OURS]) / sum(task.stop - task.start for task in measured.rounds)
    rows = (
        ("in a pair, prompt once", f"{(prompts + responses) / count:.1f}"),
        ("of these in the responses", f"{responses / count:.1f}"),
        ("computed one by one", f"{(twice + responses) / count:.1f}"),
        ("computed by ours (every distinct prefix once)", f"{computed:.1f}"),
    )
    return Results("Tokens a pair", ("tokens", "a pair"), rows)


def directions(layer: int) -> dict[str, Tensor]:
    """Directions [D] to score with: a probe's and a random one."""
    loaded = load_model(embedded_gguf(), dtype="float32")
    organism = build_distractor_compliance(OrganismConfig(behavior_prompts=PROBE_PROMPTS))
    config = BuildConfig(ActivationConfig(layers=(layer,)), layer=layer)
    probe = build_from_behavior("rude-with-format", organism.behavior, loaded, config)
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(len(probe.at(layer)), generator=generator)
    return {"the organism's probe": probe.at(layer), "a random direction": random}


def agreement_table(measured: Measured, scored: dict[str, Tensor]) -> Results:
    """Every way's vectors and scores against one by one in float32."""
    from scipy.stats import spearmanr

    exact_pair, exact_context = _all(measured, EXACT)
    rows = []
    for way in WAYS:
        pair, context = _all(measured, way.name)
        correlations = [
            float(spearmanr(_cosine(pair, direction), _cosine(exact_pair, direction)).statistic)
            for direction in scored.values()
        ]
        rows.append(
            (
                measured.label(way),
                f"{float(_cosine(pair, exact_pair).min()):.7f}",
                f"{float(_cosine(context, exact_context).min()):.7f}",
                *(f"{value:.5f}" for value in correlations),
            )
        )
    columns = ("way", "pair vectors: least cosine", "contexts: least cosine", *(f"Spearman, {name}" for name in scored))
    note = "Against one by one in float32. Spearman: of the response scores, with the direction named."
    return Results("Agreement", columns, tuple(rows), note)


def _all(measured: Measured, name: str) -> tuple[Tensor, Tensor]:
    """Pair and context vectors [n, D] of the whole dataset, each chunk once."""
    chunks = {task.start: done for task, done in zip(measured.rounds, measured.done[name], strict=True)}
    ordered = [chunks[start] for start in sorted(chunks)]
    pair, context = (
        torch.cat([torch.from_numpy(getattr(one, part)) for one in ordered]) for part in ("pair", "context")
    )
    return pair, context


def _cosine(rows: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(rows.double(), other.double().expand_as(rows), dim=-1)
