"""The study of scores: every option on organisms where choices were made, and on others that no choice saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from tests.benchmarks.pages import Results, write_page
from tests.benchmarks.score_options import DRAWS, OPTIONS, Doubles, Option, average_precision, scenes
from tests.benchmarks.score_vectors import (
    DEVELOPMENT,
    OTHER_M0,
    OTHER_ORGANISM,
    OTHER_SEED,
    Vectors,
    study_cases,
    vectors_of,
)
from trl_attribution.models import LoadedModel

RATES = (0.20, 0.05, 0.01)
DEFAULT = "contextual score (the default)"
CLEAR = 0.01
"""A difference of average precision that counts as better or worse."""
LEAD = (
    "What else the score could be, on the same vectors: average precision for the contaminated pairs at 20%, 5% and 1% "
    "contamination, with decoys (harmless request, answer chosen over refusal) and without. Every dataset is all clean "
    "pairs of an organism and contaminated ones drawn from its 90 (new draws where not all are taken); every score is "
    "taken at the layer that `auto` chooses from the behavior file among 15 and 20 (of 10, 15, 20 and 25, those at the "
    "depth where `auto` looks; 2 and 3 of the 4 layers of the tiny M0), unless its name says otherwise. What to try "
    "together was chosen on the development organisms; nothing was changed after the other tables were seen, except "
    "that the lines of fixed layers were added."
)
NOTES = {
    DEVELOPMENT: (
        f"Last column: in how many cells (organism, rate, decoys) the option differs from the default by more than "
        f"{CLEAR}, to the better and to the worse."
    ),
    OTHER_SEED: "An organism of another seed, the same M0.",
    OTHER_M0: "Another seed, and M0 after an epoch of SFT that teaches it to refuse rude requests.",
    OTHER_ORGANISM: "The organism in a toy language, on its own M0 of 0.2 million parameters: nothing is shared.",
}


@dataclass(frozen=True)
class Cell:
    """One organism at one rate, with decoys or without."""

    vectors: Vectors
    rate: float
    decoys: bool

    def precision(self, option: Option, draws: int = DRAWS) -> float:
        """Mean average precision over the draws, at the layer that ``auto`` chooses."""
        drawn = scenes(self.vectors, self.rate, int(self.vectors.auto), draws, decoys=self.decoys)
        return float(np.mean([average_precision(option(scene), scene.wanted) for scene in drawn]))


@dataclass(frozen=True)
class Measured:
    """Average precision of every option in every cell."""

    cells: tuple[Cell, ...]
    values: dict[str, Doubles]
    """[cells] by option."""

    def difference(self, option: str) -> Doubles:
        """[cells], from the default."""
        return np.asarray(self.values[option] - self.values[DEFAULT])


def measure(organisms: Sequence[Vectors], draws: int, options: Mapping[str, Option] = OPTIONS) -> Measured:
    cells = tuple(Cell(one, rate, decoys) for one in organisms for rate in RATES for decoys in (True, False))
    values = {name: np.array([cell.precision(option, draws) for cell in cells]) for name, option in options.items()}
    return Measured(cells, values)


def by_rate(found: Measured, title: str, note: str = "") -> Results:
    """Means over the organisms, and how often an option beats the default."""
    columns = ["option"]
    picks = []
    for decoys in (True, False):
        for rate in RATES:
            columns.append(f"{rate:.0%}" + ("" if decoys else ", no decoys"))
            picks.append([cell.rate == rate and cell.decoys == decoys for cell in found.cells])
    lines = []
    for name, values in found.values.items():
        apart = found.difference(name)
        against = "" if name == DEFAULT else f"{(apart > CLEAR).sum()} : {(apart < -CLEAR).sum()}"
        lines.append((name, *(f"{values[pick].mean():.3f}" for pick in picks), against))
    return Results(title, (*columns, "better : worse"), tuple(lines), note)


def run(output: Path, command: str, cache: Path, console: Console, draws: int = DRAWS) -> None:
    """Compute what ``cache`` lacks, measure, print, and write ``score-options.md`` into ``output``."""
    cache.mkdir(parents=True, exist_ok=True)
    models: dict[str, LoadedModel] = {}
    groups: dict[str, list[Vectors]] = {}
    for case in study_cases(cache):
        with console.status(case.name):
            groups.setdefault(case.group, []).append(vectors_of(case, cache, models))
    tables = [by_rate(measure(groups[name], draws), name, NOTES.get(name, "")) for name in groups]
    for table in tables:
        table.show(console)
    write_page(output / "score-options.md", "Other scores", LEAD, command, tables)
