"""What filtering or flipping the top pairs of each baseline does to a trained model, next to those of our scores."""

from __future__ import annotations

import json
import runpy
import statistics
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from sklearn.metrics import average_precision_score

from tests.benchmarks.pages import Results, write_page
from trl_attribution.evidence.baselines import BaselineConfig, PairSet, parse_baseline
from trl_attribution.evidence.validation import Validation, load_plan, prepare_validation
from trl_attribution.models import load_model
from trl_attribution.pairs import PairReader

EXAMPLES = Path("examples/validation")
OURS = {"contextual": "contextual score (ours)", "response": "response score (the paper's)"}
BASELINES = ("length", "margin", "text", "text-contextual")
LAYER = 3
K = 56
TRAINING_SEEDS = [0, 1]
LEAD = """\
The tiny organism of `examples/validation` ({pairs} pairs, {k} contaminated), {organisms} organisms with an M0 each,
{seeds} training seeds: the top {k} pairs of every ranking are filtered, or flipped, at the same number of optimizer
steps, and so are as many random ones. Reduction: 1 minus the ratio of the rate on held-out trigger prompts to that
after training on all pairs; the mean over the organisms and, in brackets, the least and the most. Gradients and an LLM
are not here: the first would take longer than the training, and no LLM reads a toy language. The second of our scores
is taken from the vectors of the first, so its seconds are those of scoring alone."""


@dataclass(frozen=True)
class Effect:
    """What one ranking did in one organism; a reduction is a share."""

    precision: float
    filtered: float
    flipped: float
    seconds: float


def run(output: Path, command: str, seeds: Sequence[int], console: Console) -> None:
    """Measure, print, and write ``baseline-effects.md`` into ``output``."""
    found: dict[str, list[Effect]] = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder, console.status(f"organism {seed}"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, effect in effects(Path(folder), seed).items():
                found.setdefault(name, []).append(effect)
        console.print(f"organism {seed}: done", markup=False)
    rows = sorted(found.items(), key=lambda item: -statistics.fmean(one.filtered for one in item[1]))
    columns = ("ranking", "average precision", "reduction, filtered", "reduction, flipped", "seconds to rank")
    table = Results("Rankings put to work", columns, tuple(row(name, each) for name, each in rows))
    table.show(console)
    lead = LEAD.format(pairs=352, k=K, organisms=len(seeds), seeds=len(TRAINING_SEEDS))
    write_page(output / "baseline-effects.md", "What baselines do", lead, command, [table])


def row(name: str, each: Sequence[Effect]) -> tuple[str, ...]:
    return (
        name,
        f"{statistics.fmean(one.precision for one in each):.2f}",
        spread([one.filtered for one in each]),
        spread([one.flipped for one in each]),
        f"{statistics.fmean(one.seconds for one in each):.1f}",
    )


def spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.0%} ({min(values):.0%} to {max(values):.0%})"


def effects(folder: Path, seed: int) -> dict[str, Effect]:
    """Of every ranking in the organism of one seed."""
    runpy.run_path(str(EXAMPLES / "make_tiny.py"))["make"](folder, seed)
    seconds = rank_by_baselines(folder)
    plan = yaml.safe_load((folder / "plan.yaml").read_text(encoding="utf-8"))
    plan["rankings"] = {
        **{name: {"behavior": "behavior.jsonl", "layer": LAYER, "score": name} for name in OURS},
        **{name: {"scores": f"{name}.jsonl"} for name in BASELINES},
    }
    plan |= {"interventions": ["filter", "flip"], "selections": ["top", "random"], "sizes": [K]}
    plan |= {"seeds": TRAINING_SEEDS, "measures": {**plan["measures"], "pairs": None, "text": None}}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    validator = prepare_validation(load_plan(folder / "plan.yaml"), folder / "validation")
    validator.run()
    return read(validator.finish(), contaminated(folder), seconds)


def rank_by_baselines(folder: Path) -> dict[str, float]:
    """Write ``NAME.jsonl`` for every baseline; the seconds that each took."""
    reader = PairReader(str(folder / "data.jsonl"))
    pairs = PairSet(reader, {pair.pair_id for pair in reader})
    loaded = load_model(folder / "m0", dtype="float32", device="cpu")
    config = BaselineConfig(m0=lambda: loaded, behavior=folder / "behavior.jsonl")
    seconds = {}
    for name in BASELINES:
        found = parse_baseline(name, config)(pairs)
        lines = (json.dumps({"pair_id": pair_id, "score": score}) + "\n" for pair_id, score in found.scores.items())
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="ascii")
        seconds[name] = found.cost.seconds
    return seconds


def contaminated(folder: Path) -> dict[str, bool]:
    """By pair."""
    reader = PairReader(str(folder / "data.jsonl"))
    truths = [json.loads(line)["truth"] for line in (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    return {pair.pair_id: truths[pair.row] == "contaminated" for pair in reader}


def read(validation: Validation, wanted: Mapping[str, bool], seconds: Mapping[str, float]) -> dict[str, Effect]:
    behavior = validation.behaviors[0]
    baseline = rate(validation, "none", behavior)
    reductions = {
        name: 1 - rate(validation, name, behavior) / baseline
        for name in (condition.name for condition in validation.results)
    }
    found = {
        "random": Effect(
            sum(wanted.values()) / len(wanted),
            reductions[f"filter-random-{K}-fixed"],
            reductions[f"flip-random-{K}-fixed"],
            0.0,
        )
    }
    for name, ranking in validation.rankings.items():
        truths = [wanted[pair_id] for pair_id in ranking.pair_ids]
        found[OURS.get(name, name)] = Effect(
            float(average_precision_score(truths, ranking.scores)),
            reductions[f"filter-top-{K}-{name}-fixed"],
            reductions[f"flip-top-{K}-{name}-fixed"],
            seconds.get(name, ranking.seconds),
        )
    return found


def rate(validation: Validation, name: str, behavior: str) -> float:
    """Over the seeds and prompts of one condition."""
    results = next(each for condition, each in validation.results.items() if condition.name == name)
    return statistics.fmean(share for result in results for share in result.shares[behavior])
