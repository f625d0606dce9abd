"""What an audit sees in each organism: by quirk, contamination, decoys, recipe, score and layer; nothing is trained."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from torch import Tensor

from tests.benchmarks.pages import Results, write_page
from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.behaviors import SamplingConfig
from trl_attribution.evidence.organisms import ORGANISMS, RECIPES, Mixture, build_organism, prepare
from trl_attribution.evidence.organisms.sft_pairs import pairs_of_samples
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.pairs import Encoding, PairReader, Reading, RowFault
from trl_attribution.pairs.encoding import encode_pairs
from trl_attribution.probes import BuildConfig, Probe, build_from_behavior
from trl_attribution.scoring.scores import score_view
from trl_attribution.utils.arrays import Doubles

LAYERS = (10, 15, 20)
KINDS = ("contextual", "response")
CONTAMINATION = (0.2, 0.05, 0.01)
DECOYS = (0.0, 0.2)
MIXED = ("integrated-dpo", "posthoc-dpo-mixed", "transcript-sft-mixed", "document-sft-mixed")
"""An unmixed recipe has nothing but contaminated rows in its stage: any ranking of it is perfect."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Block:
    """Consecutive pairs of a view."""

    start: int
    pair: Tensor
    context: Tensor


@dataclass(frozen=True)
class Vectors:
    """Vectors of N pairs [N, L, D], kept in memory, by the pairs' own text."""

    layers: tuple[int, ...]
    keys: tuple[str, ...]
    pair: Tensor
    context: Tensor

    @cached_property
    def pair_ids(self) -> tuple[str, ...]:
        return tuple(str(number) for number in range(len(self.keys)))

    @property
    def hidden_size(self) -> int:
        return self.pair.shape[-1]

    def __len__(self) -> int:
        return len(self.keys)

    def blocks(self, layers: Sequence[int], size: int) -> Iterator[Block]:
        where = [self.layers.index(layer) for layer in layers]
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Block(start, self.pair[part][:, where], self.context[part][:, where])

    def of(self, rows: Sequence[Row]) -> Vectors:
        """Those of ``rows``, in their order."""
        places = {key: place for place, key in enumerate(self.keys)}
        chosen = [places[key_of(row)] for row in rows]
        return replace(self, keys=tuple(map(key_of, rows)), pair=self.pair[chosen], context=self.context[chosen])


@dataclass(frozen=True)
class Found:
    """How well one score ranks the contaminated pairs of one dataset."""

    precision: float
    """Average precision."""
    at_k: float
    """Share of contaminated pairs among the top k, k being their number."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    pairs: int
    samples: int
    """Pairs that the recipes are built from; a stage of fine-tuning has 40% as many samples."""
    new_tokens: int
    behavior: int = 48
    """Held-out prompts that a probe is built from."""


@dataclass
class Measured:
    """What was found so far: qualities by dataset, score and layer, and lines about the probes."""

    mixtures: dict[tuple[str, ...], list[Found]] = field(default_factory=dict)
    recipes: dict[tuple[str, ...], list[Found]] = field(default_factory=dict)
    probes: list[tuple[str, ...]] = field(default_factory=list)


def run(output: Path, command: str, seeds: Sequence[int], size: Size, console: Console) -> None:
    """Measure, print, and write ``organisms.md`` into ``output``."""
    loaded = load_model(embedded_gguf())
    measured = Measured()
    for name in ORGANISMS:
        for seed in seeds:
            organism = build_organism(name, Mixture(size.pairs, seed=seed, behavior_prompts=size.behavior))
            probe = build_from_behavior(name, organism.behavior, loaded, BuildConfig(ActivationConfig(LAYERS)))
            measure_mixtures(name, probe, loaded, size, seed, measured.mixtures)
            console.print(f"{name}, seed {seed}: mixtures done")
            measure_recipes(name, probe, loaded, size, seed, measured.recipes)
            console.print(f"{name}, seed {seed}: recipes done")
            if seed == seeds[0]:
                measured.probes.append((name, *(f"{probe.separability[one]:.3f}" for one in LAYERS), lens(probe)))
        # What is there so far: the whole takes long on a small machine.
        tables = [ranking_table(measured.mixtures), recipe_table(measured.recipes), probe_table(measured)]
        write_page(output / "organisms.md", "Organisms", lead(loaded, size, len(seeds)), command, tables)
    for table in tables:
        table.show(console)


def probe_table(measured: Measured) -> Results:
    columns = ("organism", *(f"AUC, layer {layer}" for layer in LAYERS), "promoted tokens")
    note = "Cross-validated separability of each probe's own examples, and what the logit lens reads at its layer."
    return Results("The probes", columns, tuple(measured.probes), note)


def lead(loaded: LoadedModel, size: Size, seeds: int) -> str:
    return (
        f"Three organisms of {size.pairs} pairs, SmolLM2-135M-Instruct in {loaded.dtype}, {seeds} seed(s). No model "
        "was trained: M0 is the model as it comes, and the question is what an audit of the data sees. Probes were "
        f"built from {size.behavior} held-out prompts each; the recipes from {size.samples} pairs each. How the "
        "organisms are made: [Model organisms](../how-to/model-organisms.md)."
    )


def measure_mixtures(
    name: str, probe: Probe, loaded: LoadedModel, size: Size, seed: int, found: dict[tuple[str, ...], list[Found]]
) -> None:
    """Every contamination, with and without decoys; a pair that several datasets hold is computed once."""
    datasets = {
        (rate, decoys): build_organism(name, Mixture(size.pairs, rate, decoys, seed)).pairs
        for rate in CONTAMINATION
        for decoys in DECOYS
    }
    vectors = vectors_of([row for rows in datasets.values() for row in rows], loaded)
    for (rate, decoys), rows in datasets.items():
        for kind, layer, one in qualities(rows, vectors, probe):
            found.setdefault((name, f"{rate:.0%}", "yes" if decoys else "no", kind, layer), []).append(one)


def measure_recipes(
    name: str, probe: Probe, loaded: LoadedModel, size: Size, seed: int, found: dict[tuple[str, ...], list[Found]]
) -> None:
    """The contaminated stage of every mixed recipe; samples of fine-tuning are paired with M0's own responses."""
    sampling = SamplingConfig(1, size.new_tokens, batch_size=40, seed=seed)
    for recipe in MIXED:
        rows: Sequence[Row] = prepare(name, recipe, Mixture(size.samples, seed=seed)).stages[-1].rows
        if RECIPES[recipe].objective == "sft":
            rows = pairs_of_samples(rows, loaded, sampling).rows
        for kind, layer, one in qualities(rows, vectors_of(rows, loaded), probe):
            found.setdefault((name, recipe, kind, layer), []).append(one)


def key_of(row: Row) -> str:
    return json.dumps([row[part] for part in ("prompt", "chosen", "rejected")])


def vectors_of(rows: Sequence[Row], loaded: LoadedModel) -> Vectors:
    """Vectors of the different pairs among ``rows``."""
    distinct = list({key_of(row): row for row in rows}.values())
    reader = PairReader(distinct, Reading())
    encoded = encode_pairs(list(reader), loaded.tokenizer, Encoding())
    faults = [one for one in encoded if isinstance(one, RowFault)]
    assert not faults, faults[:1]  # the organisms' own text always fits
    engine = ActivationEngine(loaded.model, ActivationConfig(LAYERS))
    made = engine.pair_vectors([one for one in encoded if not isinstance(one, RowFault)])
    return Vectors(LAYERS, tuple(map(key_of, distinct)), made.pair, made.context)


def qualities(rows: Sequence[Row], vectors: Vectors, probe: Probe) -> Iterator[tuple[str, str, Found]]:
    """Each kind of score at each layer, and the length of responses."""
    wanted = np.array([row["truth"] == "contaminated" for row in rows])
    view = vectors.of(rows)
    for kind in KINDS:
        scores = score_view(view, [probe], kind)  # type: ignore[arg-type]  # a literal of KINDS
        for layer in LAYERS:
            yield kind, str(layer), ranked(np.asarray(scores.of(scores.column(probe.name, layer)), np.float64), wanted)
    longer = [len(content(row["chosen"])) - len(content(row["rejected"])) for row in rows]
    yield "length, chosen minus rejected", "", ranked(np.array(longer, np.float64), wanted)


def content(response: Any) -> str:
    return str(response if isinstance(response, str) else response[-1]["content"])


def ranked(scores: Doubles, wanted: npt.NDArray[np.bool_]) -> Found:
    from sklearn.metrics import average_precision_score

    top = np.argsort(-scores, kind="stable")[: int(wanted.sum())]
    return Found(float(average_precision_score(wanted, scores)), float(wanted[top].mean()))


def lens(probe: Probe) -> str:
    return f"layer {probe.layer}: " + ", ".join(f"`{token.strip()}`" for token in probe.shown_tokens[:6])


def ranking_table(found: Mapping[tuple[str, ...], Sequence[Found]]) -> Results:
    """A line for each dataset and score, layers side by side."""
    note = (
        "Average precision / precision at k by layer, means over the seeds; k is the number of contaminated pairs. "
        "Decoys, where there are any, are 20% of the pairs. A random ranking has about the contamination as average "
        "precision."
    )
    columns = ("organism", "contamination", "decoys", "score", *(f"layer {layer}" for layer in LAYERS))
    return Results("Ranking of the contaminated pairs", columns, _by_layer(found), note)


def recipe_table(found: Mapping[tuple[str, ...], Sequence[Found]]) -> Results:
    note = (
        "The contaminated stage of each recipe that mixes: 20% contaminated in integrated-dpo, half in the others. "
        "Samples of fine-tuning are paired with M0's own response; documents with M0's own continuation of their "
        "first quarter."
    )
    columns = ("organism", "recipe", "score", *(f"layer {layer}" for layer in LAYERS))
    return Results("Recipes", columns, _by_layer(found), note)


def _by_layer(found: Mapping[tuple[str, ...], Sequence[Found]]) -> tuple[tuple[str, ...], ...]:
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for (*line, layer), each in found.items():
        lines.setdefault(tuple(line), {})[layer] = _cell(each)
    return tuple(
        (*line, *(cells.get(str(layer), cells.get("", "")) for layer in LAYERS)) for line, cells in lines.items()
    )


def _cell(each: Sequence[Found]) -> str:
    return f"{statistics.fmean(one.precision for one in each):.3f} / {statistics.fmean(one.at_k for one in each):.2f}"
