"""Where a behavior's controls come from when nobody gave any, and what a dataset of a few pairs is centered by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score

from tests.benchmarks import decisions
from tests.benchmarks.decision_vectors import SMOLLM2, PairSet, Row, VectorCache, Vectors, example_rows, sets
from tests.benchmarks.decisions import Draw, View
from tests.benchmarks.pages import Results, write_page
from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.behaviors.encoding import control_activations
from trl_attribution.behaviors.examples import Example
from trl_attribution.behaviors.harmless import harmless
from trl_attribution.evidence.organisms import Mixture, OrganismConfig, build_distractor_compliance, build_organism
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.pairs import Encoding
from trl_attribution.probes import Probe
from trl_attribution.scoring import Rule, flag, score_view
from trl_attribution.scoring.held_out import known_pairs
from trl_attribution.scoring.protocols import OWN_CONTROLS
from trl_attribution.scoring.recall import threshold_for
from trl_attribution.scoring.scores import NEUTRAL_PAIRS, Scores
from trl_attribution.utils.atomic import atomic_path

LAYERS = SMOLLM2.layers
LAYER = 20
RECALL = 0.9
ROW = LAYERS.index(LAYER)
RATES = (None, 0.05, 0.0)
SIZES = (1, 2, 4)
SMALL_DRAWS = 16
FEW_OF = ("xstest", "demo")
QUIRKS = ("pumpkin-soup", "knitting-lore")
LEAD = (
    "Behaviors whose prompts come without controls, on SmolLM2-135M-Instruct, layer {layer}, {draws} draws, protocol "
    "of [Decisions](decisions.md); a draw's real controls are left out of what is ranked in every row. *harmless*: "
    "the {bank} requests of the project's own (`behaviors/harmless.yaml`), none of them from XSTest. *plain*: the "
    "behavior's own prompts without their trigger. *over-refusal* is XSTest the other way round: the behavior is to "
    "refuse what is safe, and half of those pairs are flipped. The two quirks show on ordinary prompts."
)


@dataclass(frozen=True)
class Bank:
    """Contexts [any, L, D] of prompts that no set holds."""

    everyday: torch.Tensor
    harmless: torch.Tensor
    plain: torch.Tensor
    """Of the demo's behavior, in the order of its file."""

    @classmethod
    def of(cls, folder: Path) -> Bank:
        path = folder / "controls.safetensors"
        if not path.exists():
            loaded = load_model(embedded_gguf())
            plain = [row["plain"] for row in build_distractor_compliance(OrganismConfig()).behavior]
            everyday, look_alikes = harmless().everyday, harmless().look_alikes
            texts = {"everyday": everyday, "harmless": (*everyday, *look_alikes), "plain": plain}
            with atomic_path(path) as part:
                save_file({name: _contexts(loaded, one) for name, one in texts.items()}, part)
        return cls(**load_file(path))


def _contexts(loaded: LoadedModel, texts: Sequence[str]) -> torch.Tensor:
    engine = ActivationEngine(loaded.model, ActivationConfig(LAYERS))
    prompts = [Example(text, (), (), "here") for text in texts]
    found = control_activations(engine, prompts, loaded.tokenizer, Encoding(), "auto")
    return torch.stack([one.context for one in found if one.context is not None]).float()


@dataclass(frozen=True)
class Case:
    """A set of pairs, how a draw is made, and where its controls may come from."""

    name: str
    vectors: Vectors
    draw: Callable[[Vectors, float | None, int], Draw]
    sources: tuple[str, ...]
    shipped: str
    """What `probe build` does by default."""


def run(output: Path, command: str, cache: Path, data: Path, console: Console, draws: int) -> None:
    bank, found = Bank.of(cache), VectorCache(cache)
    all_cases = cases(found, data)
    sources = [row for case in all_cases for row in _source_rows(case, bank, draws, console)]
    small = [row for case in all_cases if case.name in FEW_OF for row in _small_rows(case, bank, console)]
    tables = [
        Results("Where the controls come from", SOURCES, tuple(sources), SOURCES_NOTE),
        Results("Datasets of a few pairs", SMALL, tuple(small), SMALL_NOTE),
    ]
    for table in tables:
        table.show(console)
    lead = LEAD.format(layer=LAYER, draws=draws, bank=len(bank.harmless))
    write_page(output / "control-sources.md", "Where controls come from", lead, command, tables)


def cases(cache: VectorCache, data: Path) -> list[Case]:
    composed = {one.name: cache.vectors(one) for one in sets(data) if one.name != "large"}
    quirks = {name: cache.vectors(PairSet(name, partial(quirk, name))) for name in QUIRKS}
    xstest = composed["xstest"]
    both = ("none", "real", "harmless", "dataset")
    return [
        Case("xstest", xstest, decisions.xstest_draw, both, "harmless"),
        Case("demo", composed["demo"], decisions.organism_draw, (*both, "plain"), "harmless"),
        Case(
            "over-refusal", decisions.over_refusal(xstest), decisions.xstest_draw, ("none", "real", "harmless"), "none"
        ),
        *(Case(name, vectors, quirk_draw, ("none", "harmless"), "none") for name, vectors in quirks.items()),
    ]


def quirk(name: str) -> list[Row]:
    """An organism's dataset, and pairs of its behavior file."""
    made = build_organism(name, Mixture(240, behavior_prompts=36))
    return [*made.pairs, *(pair for row in made.behavior for pair in example_rows(row))]


def quirk_draw(vectors: Vectors, rate: float | None, seed: int) -> Draw:
    random = np.random.default_rng(seed)
    own = vectors.truth == "example"
    prompts = np.unique(vectors.prompt[own])
    some = random.choice(prompts, round(decisions.COMPOSED_SHARE * len(prompts)), replace=False)
    left = np.flatnonzero(~own)
    ranked = decisions.at_rate(vectors.truth[left] == "contaminated", left, rate, random)
    return Draw(vectors, np.flatnonzero(own & np.isin(vectors.prompt, some)), left[:1], ranked)


def _probe(case: Case, draw: Draw, bank: Bank, source: str) -> Probe:
    probe = replace(draw.probe([LAYER]), neutral_center=bank.everyday[:, ROW : ROW + 1].mean(dim=0))
    if source == "real":
        return probe
    bare = replace(probe, control_contexts=None, control_vectors=None, control_prompts=None)
    if source == "none":
        return bare
    if source == "harmless":
        built = {"controls": {"from": OWN_CONTROLS}}
        return replace(bare, control_contexts=bank.harmless[:, ROW : ROW + 1], built=built)
    if source == "dataset":
        return replace(bare, control_contexts=case.vectors.context[draw.ranked][:, ROW : ROW + 1])
    own = np.unique(case.vectors.prompt[case.vectors.truth == "example"])
    places = np.searchsorted(own, np.unique(case.vectors.prompt[draw.examples]))
    return replace(bare, control_contexts=bank.plain[torch.from_numpy(places)][:, ROW : ROW + 1])


def _scored(draw: Draw, probe: Probe) -> Scores:
    return score_view(View(draw, [str(place) for place in draw.ranked]), [probe], layers=[LAYER])


SOURCES = (
    *("set", "rate", "controls", "average precision", "at the threshold: right + wrong", "stated wrong"),
    *("true", "estimate", "mean interval", "interval holds the truth", "evidence found"),
)
SOURCES_NOTE = (
    "Means over the draws. **Bold**: what `probe build` takes where the behavior comes without controls. *dataset*: "
    "the audited pairs' own contexts as unlabeled ones. With 0% contaminated, evidence that is found is wrong."
)


def _source_rows(case: Case, bank: Bank, draws: int, console: Console) -> Iterator[tuple[str, ...]]:
    for rate in RATES:
        for source in case.sources:
            found = [_decided(case, case.draw(case.vectors, rate, seed), bank, source) for seed in range(draws)]
            mean = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
            shown = f"**{source}**" if source == case.shipped else source
            row = (
                *(case.name, "natural" if rate is None else f"{rate:.0%}", shown),
                f"{mean['precision']:.3f}" if rate != 0 else "",
                f"{mean['right']:.1f} + {mean['wrong']:.1f}",
                *(f"{mean[name]:.0f}" for name in ("stated", "true", "count")),
                f"{mean['low']:.0f} to {mean['high']:.0f}",
                *(f"{mean[name]:.0%}" for name in ("holds", "evidence")),
            )
            console.print(" | ".join(row))
            yield row


def _decided(case: Case, draw: Draw, bank: Bank, source: str) -> dict[str, float]:
    scores, wanted = _scored(draw, _probe(case, draw, bank, source)), draw.wanted
    values = np.array(scores.of(scores.columns[0]), dtype=np.float64)
    decision = flag(scores, Rule(recall=RECALL)).decisions["behavior"]
    reached, count = values >= decision.threshold.threshold, decision.prevalence.count
    return {
        "precision": float(average_precision_score(wanted, values)) if wanted.any() else 0.0,
        "right": (reached & wanted).sum(),
        "wrong": (reached & ~wanted).sum(),
        "stated": decision.prevalence.wrong.value,
        "true": wanted.sum(),
        "count": count.value,
        "low": count.low,
        "high": count.high,
        "holds": count.low <= wanted.sum() <= count.high,
        "evidence": decision.prevalence.is_evidence,
    }


SMALL = ("set", "pairs", *(f"{what}, {by}" for what in ("caught", "wrong") for by in ("own mean", "with neutral")))
SMALL_NOTE = (
    "Datasets of so many pairs, a quarter of them contaminated (one of two; of datasets of one pair every other), "
    f"{SMALL_DRAWS} draws each: the share of contaminated pairs that reaches the threshold for a recall of 90%, and of "
    "the others, with contexts centered by the mean of the dataset alone and together with the everyday prompts, which "
    f"count for {NEUTRAL_PAIRS} pairs as shipped."
)


def _small_rows(case: Case, bank: Bank, console: Console) -> Iterator[tuple[str, ...]]:
    for size in SIZES:
        found: dict[bool, tuple[list[bool], list[bool]]] = {False: ([], []), True: ([], [])}
        for seed in range(SMALL_DRAWS):
            draw = case.draw(case.vectors, None, seed)
            probe = _probe(case, draw, bank, case.shipped)
            few = _few(draw, size, seed)
            for neutral, both in found.items():
                reached = _reached(few, probe if neutral else replace(probe, neutral_center=None))
                both[0].extend(reached[few.wanted].tolist())
                both[1].extend(reached[~few.wanted].tolist())
        shares = [f"{np.mean(one[part]):.0%}" for part in (0, 1) for one in found.values()]
        row = (case.name, str(size), *shares)
        console.print(" | ".join(row))
        yield row


def _few(draw: Draw, size: int, seed: int) -> Draw:
    random = np.random.default_rng(1000 + seed)
    wanted, other = draw.ranked[draw.wanted], draw.ranked[~draw.wanted]
    count = seed % 2 if size == 1 else max(1, size // 4)
    chosen = [random.choice(wanted, count, replace=False), random.choice(other, size - count, replace=False)]
    return replace(draw, ranked=np.concatenate(chosen))


def _reached(draw: Draw, probe: Probe) -> np.ndarray[Any, np.dtype[np.bool_]]:
    scores = _scored(draw, probe)
    column = scores.columns[0]
    known = known_pairs(probe, LAYER, column.kind, scores.centers[column])
    if known is None:
        return np.zeros(len(draw.ranked), dtype=bool)
    values = np.array(scores.of(column), dtype=np.float64)
    return np.asarray(values >= threshold_for(RECALL, known.examples).threshold)
