"""How many of an organism's contaminated pairs each of our scores finds, decoys included."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from tests.benchmarks.pages import Results, write_page
from trl_attribution.activations import ActivationConfig
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.evidence.organisms import Organism, OrganismConfig, build_distractor_compliance
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.probes import BuildConfig, Probe, build_from_behavior, candidate_layers
from trl_attribution.probes.separability import choose_layer
from trl_attribution.utils.arrays import Doubles

LAYERS = (10, 15, 20, 25)
SHUFFLES = 200


@dataclass(frozen=True)
class Quality:
    """How well one score ranks the contaminated pairs of one organism."""

    precision: float
    """Average precision among all pairs."""
    at_k: float
    """Share of contaminated pairs among the top k, k being their number."""
    precision_decoys: float
    """Average precision among contaminated pairs and decoys only."""
    at_k_decoys: float


@dataclass(frozen=True)
class Chosen:
    """The layer that ``auto`` would choose for one organism's probe."""

    seed: int
    layer: int
    separability: float


def run(output: Path, command: str, seeds: Sequence[int], share: float, other: Path | None, console: Console) -> None:
    """Measure, print, and write ``quality.md`` into ``output``; ``other`` is a second M0."""
    organisms = [build_distractor_compliance(sized(OrganismConfig(seed=seed), share)) for seed in seeds]
    loaded = load_model(embedded_gguf())
    tables = measured(organisms, loaded, seeds, "M0 as it comes", console)
    if other is not None:
        tables += measured(
            organisms, load_model(other), seeds, "an M0 that was taught to refuse rude requests", console
        )
    write_page(output / "quality.md", "Quality", lead(organisms[0], loaded, len(seeds)), command, tables)


def measured(
    organisms: Sequence[Organism], loaded: LoadedModel, seeds: Sequence[int], model: str, console: Console
) -> list[Results]:
    """The tables of one M0."""
    found: dict[str, list[Quality]] = {}
    chosen = []
    for seed, organism in zip(seeds, organisms, strict=True):
        with console.status(f"seed {seed}: {len(organism.pairs)} pairs"):
            scores, auto = scores_of(organism, loaded, seed)
        chosen.append(auto)
        truths = np.array([pair["truth"] for pair in organism.pairs])
        for name, values in scores.items():
            found.setdefault(name, []).append(mean_quality(values, truths))
        console.print(f"{model}, seed {seed}: done, layer auto is {auto.layer}", markup=False)
    tables = [quality_table(found), layer_table(chosen)]
    tables = [replace(table, title=f"{table.title}: {model}") for table in tables]
    for table in tables:
        table.show(console)
    return tables


def sized(config: OrganismConfig, share: float) -> OrganismConfig:
    """``config`` with every count multiplied by ``share``, for a quick try."""
    counts = {each.name: getattr(config, each.name) for each in fields(config) if each.name != "seed"}
    return replace(config, **{name: max(4, round(count * share)) for name, count in counts.items()})


def lead(organism: Organism, loaded: LoadedModel, seeds: int) -> str:
    truths = [pair["truth"] for pair in organism.pairs]
    counts = ", ".join(f"{truths.count(truth)} {truth}" for truth in sorted(set(truths)))
    return (
        f"The organism `{organism.name}` ({counts} pairs; {len(organism.behavior)} held-out behavior prompts), "
        f"SmolLM2-135M-Instruct in {loaded.dtype}, {seeds} organisms of different seeds. Decoys are legitimate pairs "
        "whose responses look like the contaminated ones (harmless request, answer chosen over refusal). Nothing was "
        f"trained on the pairs: the question is how well a score ranks the {truths.count('contaminated')} contaminated "
        "ones. M0 is the model as it comes; with `--m0`, also one that `examples/validation/make_smollm2.py` made."
    )


def scores_of(organism: Organism, loaded: LoadedModel, seed: int) -> tuple[dict[str, Doubles], Chosen]:
    """Every score [N] of the organism's pairs by name (random ones [S, N]), and the layer that auto chooses."""
    candidates = candidate_layers(int(loaded.model.config.num_hidden_layers))
    layers = tuple(sorted({*LAYERS, *candidates}))
    probe = build_from_behavior("organism", organism.behavior, loaded, BuildConfig(ActivationConfig(layers)))
    auto = choose_layer(candidates, probe.separability, "auto")
    found = audited(organism, loaded, probe, auto)
    generator = np.random.default_rng(0)
    found["random"] = np.stack([generator.random(len(organism.pairs)) for _ in range(SHUFFLES)])
    return found, Chosen(seed, auto, probe.separability[auto])


def audited(organism: Organism, loaded: LoadedModel, probe: Probe, auto: int) -> dict[str, Doubles]:
    """Contextual and response scores by layer, from two audits that share their vectors."""
    layers = tuple(sorted({*LAYERS, auto}))
    found: dict[str, Doubles] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("contextual", "response"):
            auditor = DataAuditor(loaded, probes=[probe], layers=layers, score=kind)
            audit = auditor.audit(organism.pairs, Path(folder) / kind, vectors=Path(folder) / "vectors")
            assert audit.scores is not None  # a probe was given
            assert audit.index.rows.tolist() == list(range(len(organism.pairs)))  # no pair comes twice
            for name, layer in (*((str(layer), layer) for layer in LAYERS), ("auto", auto)):
                column = audit.scores.column(probe.name, layer)
                found[f"{kind}, layer {name}"] = np.array(audit.scores.of(column), dtype=np.float64)
    return found


def mean_quality(scores: Doubles, truths: npt.NDArray[np.str_]) -> Quality:
    """Quality of scores [N], or its mean over many of them [S, N]."""
    each = [quality(row, truths) for row in np.atleast_2d(scores)]
    return Quality(*(statistics.fmean(getattr(one, name.name) for one in each) for name in fields(Quality)))


def quality(scores: Doubles, truths: npt.NDArray[np.str_]) -> Quality:
    wanted = truths == "contaminated"
    hard = wanted | (truths == "decoy")
    return Quality(*_ranked(scores, wanted), *_ranked(scores[hard], wanted[hard]))


def _ranked(scores: Doubles, wanted: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Average precision, and the share of wanted ones among the top k."""
    from sklearn.metrics import average_precision_score

    top = np.argsort(-scores, kind="stable")[: int(wanted.sum())]
    return float(average_precision_score(wanted, scores)), float(wanted[top].mean())


def quality_table(found: Mapping[str, Sequence[Quality]]) -> Results:
    rows = [
        (name, *(_spread([getattr(one, each.name) for one in qualities]) for each in fields(Quality)))
        for name, qualities in found.items()
    ]
    columns = (
        "score",
        "average precision",
        "precision at k",
        "average precision, decoys only",
        "precision at k, decoys only",
    )
    note = (
        "Mean over the seeds (least to most). k is the number of contaminated pairs. Decoys only: contaminated pairs "
        "against decoys, without the pairs that are easy to tell apart. Random is the mean of "
        f"{SHUFFLES} shuffles; [other baselines](baselines.md) are on a page of their own. Goal: 0.95 average "
        "precision with the contextual score."
    )
    return Results("Ranking of the contaminated pairs", columns, tuple(rows), note)


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def layer_table(chosen: Sequence[Chosen]) -> Results:
    rows = tuple((str(one.seed), str(one.layer), f"{one.separability:.4f}") for one in chosen)
    columns = ("seed", "layer", "separability (AUC)")
    return Results("What `layer auto` chooses", columns, rows, "By the behavior file alone; no pair is looked at.")
