"""The cells of a validation: every training run that a plan asks for, each once and under a name of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from trl_attribution.errors import SettingsError
from trl_attribution.evidence.validation.plan import ValidationPlan
from trl_attribution.utils.text import printable

CONTROLS = ("random", "length_matched_random")
"""Selections that the ranking has to beat."""


@dataclass(frozen=True, order=True)
class Condition:
    """What is done to the dataset before training, whatever the seed."""

    intervention: str
    """``m0`` for no training at all, ``none`` for training on all pairs, or an intervention of the plan."""
    selection: str = ""
    size: int = 0
    """Pairs, or sources for ``drop_sources``; 0 for as many pairs as the default rule flags."""
    ranking: str = ""
    """Which ranking selects, or says how many; empty for a selection that needs none."""
    steps: str = "fixed"

    @property
    def name(self) -> str:
        """Letters, digits and dashes: ``filter-top-80-contextual-fixed``."""
        trained = self.intervention not in ("m0", "none")
        size = str(self.size or "rule") if trained else ""
        parts = (self.intervention, self.selection, size, self.ranking)
        return "-".join([*(part.replace("_", "-") for part in parts if part), *([self.steps] if trained else [])])

    @property
    def title(self) -> str:
        """For people: ``filter top 80 by contextual``."""
        if self.intervention == "m0":
            return "M0, not trained"
        if self.intervention == "none":
            return "all pairs"
        by = f" by {self.ranking}" if self.ranking else ""
        short = ", fewer steps" if self.steps == "short" else ""
        size = f"{self.size:,}" if self.size else "as many as the rule flags"
        return f"{self.intervention} {self.selection.replace('_', ' ')} {size}{by}{short}"


@dataclass(frozen=True, order=True)
class Cell:
    """One training run."""

    condition: Condition
    seed: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.condition.name}-seed-{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


M0 = Condition("m0")
BASELINE = Condition("none")


def conditions(plan: ValidationPlan) -> list[Condition]:
    """Every condition that the plan runs, M0 and all pairs first.

    Raises:
        SettingsError: a pattern of ``leave_out`` leaves nothing out, or together they leave no top pairs to test.
    """
    out = set(left_out(plan))
    kept = [condition for condition in dict.fromkeys(_changed(plan)) if condition not in out]
    if not any(condition.selection == "top" for condition in kept):
        raise SettingsError("leave_out: it leaves no condition with the top pairs, which are what is put to the test")
    return [M0, BASELINE, *kept]


def left_out(plan: ValidationPlan) -> list[Condition]:
    """The conditions that ``leave_out`` takes from the plan.

    Raises:
        SettingsError: a pattern leaves nothing out; the names it could be are listed.
    """
    changed = list(dict.fromkeys(_changed(plan)))
    for pattern in plan.leave_out:
        if not any(fnmatchcase(condition.name, pattern) for condition in changed):
            names = ", ".join(condition.name for condition in changed)
            raise SettingsError(f"leave_out: {printable(pattern, 80)!r} is no condition's name; the plan's are {names}")
    return [one for one in changed if any(fnmatchcase(one.name, pattern) for pattern in plan.leave_out)]


def cells(plan: ValidationPlan) -> list[Cell]:
    """Every cell of the plan: seed by seed, so that what is done first can be looked at first."""
    each = conditions(plan)
    return [Cell(condition, seed) for seed in plan.seeds for condition in each]


def _changed(plan: ValidationPlan) -> Iterator[Condition]:
    for intervention in plan.interventions:
        sizes = plan.source_sizes if intervention == "drop_sources" else plan.sizes
        # No pair goes, so there are no fewer steps.
        steps = sorted(plan.steps)[:1] if intervention == "weight" else plan.steps
        for size in (0 if size == "rule" else size for size in sizes):
            for selection in plan.selections:
                # Sources have no length to be matched by.
                if intervention == "drop_sources" and selection == "length_matched_random":
                    continue
                # Weights are those of a ranking's top pairs, whichever pairs get them.
                alike = selection == "random" and size and intervention != "weight"
                for ranking in [""] if alike else list(plan.rankings):
                    yield from (Condition(intervention, selection, size, ranking, one) for one in steps)
