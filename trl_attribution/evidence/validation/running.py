"""A validation under way: prepare the rankings, run the cells that are not done, draw the conclusion."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from trl_attribution.audit.claim import check_folder
from trl_attribution.audit.shares import Share
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.validation.cells import M0, Cell, Condition, cells, conditions, left_out
from trl_attribution.evidence.validation.conclusions import Conclusion, conclude
from trl_attribution.evidence.validation.costs import Meter, training_flops
from trl_attribution.evidence.validation.interventions import Intervener
from trl_attribution.evidence.validation.measuring import Gauge, judge_config
from trl_attribution.evidence.validation.plan import Plan
from trl_attribution.evidence.validation.rankings import Ranking, behavior_prompts, find_ranking
from trl_attribution.evidence.validation.records import RANKING, SOURCES, CellFolder, CellResult
from trl_attribution.evidence.validation.selections import Selector
from trl_attribution.evidence.validation.statistics import Doubles
from trl_attribution.evidence.validation.training import Job, StepCount, dpo_config, step_count, trainer_of
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.pairs import Encoding, Pair, PairReader, Reading, RowFault, dataset_fingerprint
from trl_attribution.pairs.dataset_pass import encoded_pairs
from trl_attribution.utils.distributed import current_ranks

OnProgress = Callable[[str, int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Validation:
    """A validation of which every cell is done."""

    plan: Plan
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


@dataclass
class Validator:
    """Runs a plan in a folder.

    Raises:
        AttributionError: something in the plan cannot be used; nothing is trained then.
    """

    plan: Plan
    folder: Path
    on_progress: OnProgress = lambda _stage, _done, _total: None
    say: Say = lambda _text: None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan = self.plan
        if current_ranks().world > 1:
            raise SettingsError(
                "a validation runs on one process: start it without a launcher. To train on several devices, give "
                "training.command a launcher's command line; to share the cells, use --cells."
            )
        check_folder(self.folder)
        self.cells = cells(plan)
        self.steps: StepCount = step_count(plan, self.folder / "work")
        self.encoding = _encoding(plan, self.folder)
        self.loaded: LoadedModel = load_model(plan.model, plan.dtype, plan.device, plan.trust_remote_code)
        self.device = str(self.loaded.model.device)
        self.pairs, self.fingerprint = self._read_pairs()
        self.gauge = Gauge(plan, self.loaded)
        self.intervener = Intervener(self.pairs, plan.mixed, judge_config(plan.measures))
        self.records = CellFolder(self.folder)
        self._note_left_out()
        self._note_overlaps()
        self.folder.mkdir(parents=True, exist_ok=True)
        # One process makes the audit; those started beside it wait, and find it finished.
        with filelock.FileLock(self.folder / "prepare.lock"):
            self.rankings = {name: self._ranking(name) for name in plan.rankings}
            self.selector = Selector(self.pairs, self.rankings, plan)
            self.settings = self._settings()
            self.records.bind(self.settings)
        self._note_strangers()
        self._note_turned()

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
            notes=tuple(self.notes),
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
        self.loaded.model.to(self.device)  # type: ignore[arg-type]
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

    def _read_pairs(self) -> tuple[list[Pair], str]:
        """The pairs that TRL can train on, and the dataset's fingerprint.

        TRL would drop others without a word, and the steps would not fit. An audit counts them as its dataset's.
        """
        reader = PairReader(self.plan.dataset, _reading(self.plan)).ending_with(self.loaded.tokenizer.eos_token)
        encoded = list(encoded_pairs(reader, self.loaded.tokenizer, self.encoding))
        faults = Counter(found.reason for _, found in encoded if isinstance(found, RowFault))
        faults.update(row.reason for row in reader.skipped)
        if faults:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in faults.most_common())
            if _reading(self.plan).on_bad_row == "error":
                raise SettingsError(
                    f"dataset: {faults.total()} rows cannot be trained on ({reasons}). Mend them, raise max_length, or "
                    "leave them out with `reading: {on_bad_row: skip}`."
                )
            self.notes.append(f"{faults.total():,} rows were left out of the dataset ({reasons}).")
        kept = [pair for pair, found in encoded if not isinstance(found, RowFault)]
        return kept, dataset_fingerprint(pair.pair_id for pair, _ in encoded)

    def _ranking(self, name: str) -> Ranking:
        self.say(f"Ranking {name}")
        return find_ranking(
            name,
            self.plan,
            self.loaded,
            self.encoding,
            self.fingerprint,
            self.folder / "audits",
            self.on_progress,
        )

    def _settings(self) -> dict[str, Any]:
        """All that decides a cell's numbers, and is not in its name."""
        plan = self.plan
        return {
            "model": self.loaded.fingerprint.digest,
            "dtype": self.loaded.dtype,
            "dataset": self.fingerprint,
            "training": plan.training.model_dump(mode="json"),
            "measures": plan.measures.model_dump(
                mode="json", exclude={"pairs", "text", "over_refusal", "judge_calls", "judge_key_env"}
            ),
            "mixed": plan.mixed.model_dump(mode="json"),
            "judges": self.gauge.judges,
            "prompts": self.gauge.digest,
            "held_out": self.gauge.held_out.digest,
            **{f"{RANKING}{name}": _digest(one.pair_ids) for name, one in self.rankings.items()},
            **({SOURCES: self._source_digest()} if "drop_sources" in plan.interventions else {}),
        }

    def _source_digest(self) -> str:
        return _digest(f"{pair.source}\0" for pair in self.pairs)

    def _note_left_out(self) -> None:
        if out := left_out(self.plan):
            self.notes.append(f"Left out by the plan, so not tested: {'; '.join(one.title for one in out)}.")

    def _note_overlaps(self) -> None:
        trained_on = {_key(pair.prompt) for pair in self.pairs}
        asked = {_key(prompt) for one in self.gauge.asked.values() for prompt in one.prompts}
        if both := len(trained_on & asked):
            self.notes.append(
                f"{both:,} test prompts also stand in the dataset: they do not test what was not trained."
            )
        for name, prompts in behavior_prompts(self.plan).items():
            if both := len({_key(prompt) for prompt in prompts} & asked):
                self.notes.append(f"{both:,} test prompts are also examples of the ranking {name}; hold prompts out.")
        if self.gauge.held_out.skipped:
            self.notes.append(
                f"{self.gauge.held_out.skipped:,} held-out rows were left out: unreadable, or too short or long."
            )

    def _note_strangers(self) -> None:
        known = {pair.pair_id for pair in self.pairs}
        for name, ranking in self.rankings.items():
            if strangers := len(set(ranking.pair_ids) - known):
                self.notes.append(f"{strangers:,} scores of {name} are of no pair of the dataset, and are not used.")

    def _note_turned(self) -> None:
        for name, ranking in self.rankings.items():
            most = max(self.plan.sizes, default=0)
            if most > ranking.towards:
                self.notes.append(
                    f"Only {ranking.towards:,} pairs score above 0 in {name}: the top {most:,} hold pairs that push "
                    "the other way, and flipping those teaches the behavior."
                )


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()


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


def _reading(plan: Plan) -> Reading:
    try:
        return Reading(**plan.reading)
    except TypeError as error:
        known = ", ".join(asdict(Reading()))
        raise SettingsError(f"reading: {error}; choose from {known}") from None


def _encoding(plan: Plan, folder: Path) -> Encoding:
    """Truncation as the training's."""
    if plan.training.dpo is None:
        return Encoding(max_length=plan.measures.max_length)
    config = dpo_config(plan, folder / "work", seed=0, steps=1)
    return Encoding(config.max_length, config.truncation_mode)


def _key(prompt: Any) -> str:
    """The same for a text and for the one user message that holds it."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], dict):
        return str(prompt[0].get("content"))
    return str(prompt)
