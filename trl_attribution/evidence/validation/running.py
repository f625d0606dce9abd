"""A validation under way: run the cells that are not done, draw the conclusion."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from trl_attribution.audit.shares import Share
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.validation.cells import M0, Cell, Condition, conditions
from trl_attribution.evidence.validation.conclusions import Conclusion, conclude
from trl_attribution.evidence.validation.costs import Meter, training_flops
from trl_attribution.evidence.validation.interventions import Intervener
from trl_attribution.evidence.validation.measuring import Gauge
from trl_attribution.evidence.validation.plan import ValidationPlan
from trl_attribution.evidence.validation.rankings import Ranking
from trl_attribution.evidence.validation.records import CellFolder, CellResult
from trl_attribution.evidence.validation.selections import Selector
from trl_attribution.evidence.validation.training import Job, StepCount, trainer_of
from trl_attribution.models import LoadedModel
from trl_attribution.utils.arrays import Doubles
from trl_attribution.utils.progress import OnProgress

Say = Callable[[str], None]


@dataclass(frozen=True)
class Validation:
    """A validation of which every cell is done."""

    plan: ValidationPlan
    folder: Path
    results: dict[Condition, list[CellResult]]
    """By condition, a result a seed, in the plan's order."""
    conclusion: Conclusion
    rankings: dict[str, Ranking]
    judges: dict[str, str]
    notes: tuple[str, ...]
    """What a reader should know: pairs left out, prompts seen twice, pairs that point the other way."""
    settings: dict[str, Any]

    @property
    def behaviors(self) -> tuple[str, ...]:
        """Names of the behaviors, in the plan's order."""
        return tuple(self.conclusion.by_behavior)


@dataclass(frozen=True)
class Progressed:
    """How far a validation is."""

    done: int
    """Cells done in this run."""
    missing: tuple[Cell, ...]
    """Cells of the whole plan that are not done yet."""
    elsewhere: int = 0
    """Cells that another process had in hand."""


@dataclass(frozen=True)
class Validator:
    """A plan with all that running its cells takes; :func:`prepare_validation` makes it."""

    plan: ValidationPlan
    folder: Path
    cells: list[Cell]
    loaded: LoadedModel
    """M0."""
    gauge: Gauge
    intervener: Intervener
    selector: Selector
    steps: StepCount
    rankings: dict[str, Ranking]
    records: CellFolder
    settings: dict[str, Any]
    notes: tuple[str, ...]
    """As those of a :class:`Validation`."""
    on_progress: OnProgress
    say: Say

    def run(self, share: Share | None = None) -> Progressed:
        """Run the cells of ``share``, or all, that are not done yet.

        Raises:
            SettingsError: the trainer refuses the data, made another number of steps or diverged, the user's command
                fails, or the budget of an endpoint is too small.
            JudgeError: a judge gives up.
        """
        mine = [cell for place, cell in enumerate(self.cells) if share is None or share.owns(place)]
        self.gauge.check_budget(sum(not self.records.done(cell) for cell in mine))
        done = elsewhere = 0
        for place, cell in enumerate(mine):
            self.on_progress("cells", place, len(mine))
            if self.records.done(cell):
                continue
            self.records.cells.mkdir(parents=True, exist_ok=True)
            try:
                with filelock.FileLock(self.records.cells / f"{cell.name}.lock", timeout=0):
                    if not self.records.done(cell):
                        self.say(f"Cell {place + 1} of {len(mine)}: {cell.condition.title}, seed {cell.seed}")
                        self._run_cell(cell)
                        done += 1
            except filelock.Timeout:
                elsewhere += 1
        self.on_progress("cells", len(mine), len(mine))
        return Progressed(done, self.missing(), elsewhere)

    def merge(self, others: Sequence[Path]) -> int:
        """Take over the cells that other folders have done; their number.

        Raises:
            SettingsError: a folder is of another validation.
        """
        return sum(self.records.take_from(other, self.cells) for other in others)

    def missing(self) -> tuple[Cell, ...]:
        """The plan's cells that are not done."""
        return tuple(cell for cell in self.cells if not self.records.done(cell))

    def finish(self) -> Validation:
        """The conclusion of a validation of which every cell is done.

        Raises:
            SettingsError: cells are missing.
            DataError: a cell's file is broken.
        """
        missing = self.missing()
        if missing:
            raise SettingsError(
                f"{len(missing)} of {len(self.cells)} cells are not done, the first is {missing[0].name}. "
                "Run the plan, or its remaining shares (--cells), again."
            )
        results = {
            condition: [self.records.load(Cell(condition, seed)) for seed in self.plan.seeds]
            for condition in conditions(self.plan)
        }
        shares = {name: _shares(results, name) for name in self.gauge.behaviors}
        return Validation(
            plan=self.plan,
            folder=self.folder,
            results=results,
            conclusion=conclude(shares, self.plan.statistics),
            rankings=self.rankings,
            judges=self.gauge.judges,
            notes=self.notes,
            settings=self.settings,
        )

    def _run_cell(self, cell: Cell) -> None:
        work = self.folder / "work" / cell.name
        shutil.rmtree(work, ignore_errors=True)  # of a killed run
        work.mkdir(parents=True)
        try:
            result, responses = self._trained(cell, work) if cell.condition != M0 else self._untrained(cell)
            self.records.save(result, responses)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _trained(self, cell: Cell, work: Path) -> tuple[CellResult, dict[str, Any]]:
        # Training loads M0 once more, and has a use for the memory.
        self.loaded.model.to("cpu")  # type: ignore[arg-type]  # a decorator hides the method's signature
        dataset = self.intervener.apply(cell, self.selector.choose(cell))
        steps = self.steps.of(len(dataset.rows))
        meter = Meter(self.plan.devices)
        meter.start()
        trained = trainer_of(self.plan, self.folder)(Job(dataset, cell.seed, steps, work))
        batch = self.steps.rows_a_step
        training = meter.stop(training_flops(self.plan, self.loaded, dataset, trained.steps, batch))
        if trained.steps != steps:
            raise SettingsError(
                f"cell {cell.name}: {trained.steps} optimizer steps were made instead of {steps}. "
                "A callback or a limit in training.dpo stops early; conditions can be compared at equal steps only."
            )
        _check_finite(cell, (bool(weight.isfinite().all()) for weight in trained.loaded.model.parameters()))
        return self._measured(cell, trained.loaded, steps, dataset.changes.to_json(), training)

    def _untrained(self, cell: Cell) -> tuple[CellResult, dict[str, Any]]:
        self.loaded.model.to(self.gauge.device)  # type: ignore[arg-type]
        meter = Meter(self.plan.devices)
        meter.start()
        return self._measured(cell, self.loaded, 0, {}, meter.stop())

    def _measured(
        self, cell: Cell, loaded: LoadedModel, steps: int, changes: dict[str, Any], training: Any
    ) -> tuple[CellResult, dict[str, Any]]:
        meter = Meter(self.plan.devices)
        meter.start()
        measured = self.gauge.measure(loaded, cell.seed)
        numbers = (measured.margin, measured.perplexity)
        _check_finite(cell, (math.isfinite(one) for one in numbers if one is not None))
        result = CellResult(
            cell=cell,
            shares={name: one.shares for name, one in measured.responses.items()},
            accuracy=measured.accuracy,
            margin=measured.margin,
            perplexity=measured.perplexity,
            steps=steps,
            changes=changes,
            training=training,
            measuring=meter.stop(),
        )
        return result, measured.texts_to_json()


def _check_finite(cell: Cell, finite: Iterable[bool]) -> None:
    if not all(finite):
        raise SettingsError(
            f"cell {cell.name}: training diverged, what is left is not finite. Lower the learning rate, for all cells."
        )


def _shares(results: dict[Condition, list[CellResult]], measure: str) -> dict[Condition, Doubles]:
    """By condition ``[S, M]``."""
    return {
        condition: np.array([result.shares[measure] for result in each], dtype=np.float64)
        for condition, each in results.items()
    }
