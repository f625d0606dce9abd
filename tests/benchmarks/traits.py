"""Which of the package's traits can be told on a model and at a layer, and what is counted on the text beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from tests.benchmarks.pages import Results, write_page
from tests.benchmarks.scan import HH_FILE, Row, readable_rows
from trl_attribution.activations import find_blocks
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.discovery.traits.measures import measured, take_measures
from trl_attribution.discovery.traits.panel import Panel, build_panel
from trl_attribution.discovery.traits.trait import packaged_traits
from trl_attribution.evidence.organisms import build_distractor_compliance
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.pairs import PairReader, whole_text

DEPTHS = (1 / 2, 2 / 3, 5 / 6)
HH_PAIRS = 300


@dataclass(frozen=True)
class Told:
    """The traits at one layer of a model."""

    model: str
    layer: int
    depth: int
    panel: Panel
    agreement: dict[str, dict[str, float]]
    """By dataset and trait: rank correlation of the probe with what is counted."""


def run(output: Path, command: str, cache: Path, data: Path, other: Path | None, console: Console) -> None:
    datasets: dict[str, list[Row]] = {"demo": list(build_distractor_compliance().pairs)}
    if (data / HH_FILE).exists():
        datasets["HH-RLHF"] = list(islice(readable_rows(data / HH_FILE), HH_PAIRS))
    models = {"SmolLM2-135M-Instruct": embedded_gguf(), **({} if other is None else {other.stem: other})}
    found: list[Told] = []
    for name, path in models.items():
        console.print(f"{name}: reading the traits' examples and {len(datasets)} datasets")
        found += told(name, load_model(path), datasets, cache / "traits" / name)
    tables = [overview(found), by_trait(found), agreement(found, tuple(datasets))]
    for table in tables:
        table.show(console)
    lead = (
        "The package's traits on "
        + " and ".join(models)
        + ", at a half, two thirds (where a scan looks) and five sixths of their depth. Nothing was chosen by this."
    )
    write_page(output / "traits.md", "Traits", lead, command, tables)


def told(name: str, model: LoadedModel, datasets: dict[str, list[Row]], folder: Path) -> list[Told]:
    depth = len(find_blocks(model.model).blocks)
    layers = [round(depth * share) for share in DEPTHS]
    panels = {
        layer: build_panel(packaged_traits(), DataAuditor(model, layers=[layer]), layer, lambda *_: None, folder)
        for layer in layers
    }
    known: dict[int, dict[str, dict[str, float]]] = {layer: {} for layer in layers}
    for dataset, original in datasets.items():
        rows = original if model.encoder.chat_template else in_plain_text(original)
        made = DataAuditor(model, layers=layers).audit(rows, folder / dataset, results=False)
        counts = {pair.pair_id: measured(pair) for pair in PairReader(rows)}
        view = made.store.select(made.index.pair_ids)
        measures = np.stack([counts[pair_id] for pair_id in made.index.pair_ids])
        for layer, panel in panels.items():
            scores = panel.scores(view.layer(layer).double().numpy()).astype(np.float32)
            known[layer][dataset] = take_measures(panel.traits, scores, measures)
    return [Told(name, layer, depth, panel, known[layer]) for layer, panel in panels.items()]


def in_plain_text(rows: Sequence[Row]) -> list[Row]:
    """The same pairs for a model that knows no messages."""
    return [
        {
            "prompt": f"{whole_text(one.prompt)}\n",
            "chosen": whole_text(one.chosen),
            "rejected": whole_text(one.rejected),
        }
        for one in PairReader(rows)
    ]


def overview(found: Sequence[Told]) -> Results:
    """How many traits are told, by model and layer."""
    rows = []
    for one in found:
        checks = one.panel.separability
        told_here = [check for check in checks if check.tells]
        rows.append(
            (
                one.model,
                f"{one.layer} of {one.depth}",
                f"{len(told_here)} of {len(checks)}",
                f"{np.mean([check.sign for check in checks]):.0%}",
                f"{np.mean([check.specific for check in checks if check.specific is not None]):.2f}",
                ", ".join(check.trait for check in checks if not check.tells) or "none",
            )
        )
    columns = ("model", "layer", "told", "right, mean", "specific, mean", "cannot tell")
    note = (
        "Right: share of held-out examples that point the right way. Specific: chance that a held-out example lies "
        "further along the direction than one of another trait. A trait is told where both are at least 0.8."
    )
    return Results("How many can be told", columns, tuple(rows), note)


def by_trait(found: Sequence[Told]) -> Results:
    """Right and specific, trait by trait."""
    names = [check.trait for check in found[0].panel.separability]
    rows = []
    for name in names:
        checks = [next(check for check in one.panel.separability if check.trait == name) for one in found]
        rows.append((name, *(f"{c.sign:.0%} / {'' if c.specific is None else f'{c.specific:.2f}'}" for c in checks)))
    columns = ("trait", *(_place(one) for one in found))
    return Results("Trait by trait", columns, tuple(rows), "Right / specific, as above.")


def agreement(found: Sequence[Told], datasets: Sequence[str]) -> Results:
    """Probes against counts."""
    rows = [
        (dataset, trait, *(_number(one.agreement[dataset].get(trait)) for one in found))
        for dataset in datasets
        for trait in sorted({trait for one in found for trait in one.agreement[dataset]})
    ]
    columns = ("dataset", "trait", *(_place(one) for one in found))
    note = (
        "Rank correlation over the pairs of the probe's score with what is counted on the texts; a scan takes the count"
        f" where there is one. The demo's dataset, and the first {HH_PAIRS} pairs of HH-RLHF harmless-base, test split."
        " Empty: no pair has any, or the trait is not told there."
    )
    return Results("Probes against what is counted", columns, tuple(rows), note)


def _place(one: Told) -> str:
    return f"{one.model}, {one.layer}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
