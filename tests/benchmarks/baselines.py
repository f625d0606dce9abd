"""How well baselines rank an organism's contaminated pairs, next to our scores: the real command's own mechanism."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from tests.benchmarks.pages import Results, write_page
from tests.benchmarks.quality import sized
from trl_attribution.activations import ActivationConfig
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.evidence.baselines import (
    Audited,
    BaselineConfig,
    ComparedRow,
    ScoresFile,
    TruthConfig,
    compare,
    parse_baseline,
)
from trl_attribution.evidence.organisms import Organism, OrganismConfig, build_distractor_compliance
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.probes import BuildConfig, build_from_behavior

LAYER = 20
PLAIN = ("random", "length", "length-chosen", "margin", "text", "text-contextual")
_TERA = 1e12


@dataclass(frozen=True)
class BaselineOptions:
    """What the benchmark runs over."""

    seeds: tuple[int, ...]
    share: float
    """Of the default organism's pairs."""
    sentence: str | None
    """Folder of a sentence model."""
    bergson: str | None
    """An interpreter that has bergson."""
    gradient_share: float = 0.1
    """Of the default organism's pairs, where gradients are computed: they take a second a response."""


def run(output: Path, command: str, options: BaselineOptions, console: Console) -> None:
    """Measure, print, and write ``baselines.md`` into ``output``."""
    loaded = load_model(embedded_gguf())
    names = [*PLAIN]
    if options.sentence is not None:
        names += [f"sentence:{options.sentence}", f"sentence-contextual:{options.sentence}"]
    organisms = [build_distractor_compliance(sized(OrganismConfig(seed=seed), options.share)) for seed in options.seeds]
    found = [measured(organism, loaded, names, None, console) for organism in organisms]
    tables = [quality_table(found, len(organisms[0].pairs))]
    if options.bergson is not None:
        small = build_distractor_compliance(sized(OrganismConfig(seed=options.seeds[0]), options.gradient_share))
        rows = measured(small, loaded, ["length", "margin", "text-contextual", "gradient"], options.bergson, console)
        tables.append(gradient_table(rows, small))
    for table in tables:
        table.show(console)
    write_page(output / "baselines.md", "Baselines", lead(organisms[0], loaded, len(organisms)), command, tables)


def lead(organism: Organism, loaded: LoadedModel, seeds: int) -> str:
    truths = [pair["truth"] for pair in organism.pairs]
    counts = ", ".join(f"{truths.count(truth)} {truth}" for truth in sorted(set(truths)))
    return (
        f"The organism `{organism.name}` ({counts} pairs; {len(organism.behavior)} behavior prompts), "
        f"SmolLM2-135M-Instruct in {loaded.dtype} as it comes, {seeds} organisms of different seeds: the rankings and "
        "costs that `trl-attribution compare` gives. Models and indexes are loaded before the clock starts. No LLM "
        "judge was at hand that would have been fair to show; `endpoint:` runs one."
    )


def measured(
    organism: Organism, loaded: LoadedModel, names: Sequence[str], bergson: str | None, console: Console
) -> list[ComparedRow]:
    """Our two scores and every baseline on one organism."""
    probe = build_from_behavior("organism", organism.behavior, loaded, BuildConfig(ActivationConfig((LAYER,))))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        organism.write(folder)
        data = folder / "data.jsonl"
        for kind in ("contextual", "response"):
            auditor = DataAuditor(loaded, probes=[probe], score=kind)
            auditor.audit(data, folder / kind, vectors=folder / "vectors")
        audited = Audited.open(folder / "contextual")
        scores = folder / "response.parquet"
        scores.write_bytes((folder / "response" / "scores.parquet").read_bytes())
        config = BaselineConfig(
            m0=lambda: loaded,
            model_digest=loaded.fingerprint.digest,
            behavior=folder / "behavior.jsonl",
            bergson=bergson,
        )
        baselines = [parse_baseline(name, config) for name in names]
        with console.status(f"{len(organism.pairs)} pairs"):
            found = compare(audited, data, [*baselines, ScoresFile(scores)], truth=TruthConfig("truth"))
    console.print(f"{len(organism.pairs)} pairs: done", markup=False)
    return [renamed(row) for row in found.rows]


def renamed(row: ComparedRow) -> ComparedRow:
    """The paper's score comes as a file: with its own name, and the cost of the vectors, which both scores share."""
    if row.name == "scores:response.parquet":
        return replace(row, name=f"response score of organism, layer {LAYER}")
    return replace(row, name=row.name.partition(":")[0])


def quality_table(found: Sequence[Sequence[ComparedRow]], pairs: int) -> Results:
    by_name: dict[str, list[ComparedRow]] = {}
    for rows in found:
        for row in rows:
            by_name.setdefault(row.name, []).append(row)
    order = sorted(by_name, key=lambda name: -statistics.fmean(_precision(row) for row in by_name[name]))
    lines = tuple(_line(name, by_name[name]) for name in order)
    note = (
        f"Mean over the datasets (least to most), {pairs} pairs each; k is the number of contaminated pairs. AUC below "
        "0.5: the ranking would be better upside down. Seconds on this machine for all pairs; the response score "
        "shares the contextual score's vectors. `text` is TF-IDF with SVD, `sentence` a sentence model (here "
        "all-MiniLM-L6-v2), both by the response score's formula; `-contextual` by the contextual score's."
    )
    columns = ("ranking", "average precision", "precision at k", "AUC", "seconds", "TFLOPs")
    return Results("Ranking of the contaminated pairs", columns, lines, note)


def gradient_table(rows: Sequence[ComparedRow], organism: Organism) -> Results:
    note = (
        f"One dataset of {len(organism.pairs)} pairs and {len(organism.behavior)} behavior prompts. `gradient` is the "
        "cosine of DPO gradients at M0 by bergson (projection 16, float32, every linear layer), LESS without its "
        "warm-up and without Adam's moments. Its seconds leave out the behavior's gradients."
    )
    columns = ("ranking", "average precision", "precision at k", "AUC", "seconds", "TFLOPs")
    return Results("With gradients", columns, tuple(_line(row.name, [row]) for row in rows), note)


def _line(name: str, rows: Sequence[ComparedRow]) -> tuple[str, ...]:
    qualities = [row.quality for row in rows if row.quality is not None]
    flops = [row.cost.flops for row in rows if row.cost.flops is not None]
    seconds = [row.cost.seconds for row in rows]
    return (
        name,
        _spread([one.average_precision for one in qualities]),
        _spread([one.precision_at_k for one in qualities]),
        _spread([one.auc for one in qualities]),
        f"{statistics.fmean(seconds):.2f}" if max(seconds) > 0 else "shared",
        f"{statistics.fmean(flops) / _TERA:.2f}" if flops else "-",
    )


def _precision(row: ComparedRow) -> float:
    assert row.quality is not None  # the truth is known
    return row.quality.average_precision


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"
