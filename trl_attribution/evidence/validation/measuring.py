"""What is measured of every model of a validation, the same way each time."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trl_attribution.behaviors import (
    BehaviorPrompt,
    EndpointConfig,
    EndpointJudge,
    Judge,
    JudgeConfig,
    Prompt,
    SamplingConfig,
    judge_name,
    parse_rule,
    read_prompts,
)
from trl_attribution.behaviors.responses import read_behaviors
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.readouts.behavior_change import resolve_judges
from trl_attribution.evidence.readouts.expression import Shown, responses_to
from trl_attribution.evidence.validation.likelihoods import HeldOut, margins, perplexity, read_held_out
from trl_attribution.evidence.validation.plan import BehaviorPlan, MeasurePlan, ValidationPlan
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding
from trl_attribution.utils.text import printable

OVER_REFUSAL = "over-refusal"


@dataclass(frozen=True)
class Asked:
    """Prompts of one measure, and who judges the responses to them."""

    prompts: tuple[Prompt, ...]
    judge: Judge
    where: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """What one model did."""

    responses: dict[str, Shown]
    """By measure: a behavior's name for its trigger prompts, ``NAME/plain``, ``NAME/control``, ``over-refusal``."""
    accuracy: float | None = None
    """Share of held-out pairs of which the chosen response gained more on the rejected one than it had in M0."""
    margin: float | None = None
    """Mean of that gain in nats; times DPO's beta it is the reward margin."""
    perplexity: float | None = None

    def texts_to_json(self) -> dict[str, Any]:
        """The responses' texts by measure."""
        return {name: [list(texts) for texts in one.texts] for name, one in self.responses.items()}


def judge_config(measures: MeasurePlan) -> JudgeConfig:
    """What the plan says of its judges.

    Raises:
        SettingsError: the variable for an endpoint's key is not set.
    """
    return JudgeConfig(endpoint=EndpointConfig(max_calls=measures.judge_calls, api_key_env=measures.judge_key_env))


@dataclass(frozen=True)
class Gauge:
    """Everything that a plan measures, read and checked; :func:`read_gauge` makes it."""

    measures: MeasurePlan
    behaviors: tuple[str, ...]
    asked: dict[str, Asked]
    """By measure, see :attr:`Measured.responses`."""
    held_out: HeldOut
    reference: list[float]
    """M0's margins of the held-out pairs."""
    device: str
    """Where M0 is measured."""

    @property
    def judges(self) -> dict[str, str]:
        """The name of each measure's judge."""
        return {name: judge_name(one.judge) for name, one in self.asked.items()}

    @property
    def digest(self) -> str:
        """SHA-256 of all prompts in order."""
        prompts = {name: one.prompts for name, one in self.asked.items()}
        return hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()

    def check_budget(self, cells: int) -> None:
        """Refuse what an endpoint's budget may not last for, before anything is trained.

        Raises:
            SettingsError: so many cells may take more calls.
        """
        calls: Counter[int] = Counter()
        for one in self.asked.values():
            if isinstance(one.judge, EndpointJudge):
                calls[id(one.judge)] += len(one.prompts) * self.measures.samples * cells
        most, budget = max(calls.values(), default=0), self.measures.judge_calls
        if most > budget:
            raise SettingsError(
                f"measures.judge_calls: {cells} cells may ask an endpoint {most:,} times, and its budget is "
                f"{budget:,}. Raise it, or lower measures.samples."
            )

    def measure(self, loaded: LoadedModel, seed: int) -> Measured:
        """Measure one model; responses are sampled with ``seed``.

        Raises:
            JudgeError: a judge gives up.
        """
        gains = [margin - was for margin, was in zip(margins(loaded, self.held_out.pairs), self.reference, strict=True)]
        return Measured(
            {name: self._ask(loaded, one, seed) for name, one in self.asked.items()},
            sum(gain > 0 for gain in gains) / len(gains) if gains else None,
            sum(gains) / len(gains) if gains else None,
            perplexity(loaded, self.held_out.texts) if self.held_out.texts else None,
        )

    def _ask(self, loaded: LoadedModel, asked: Asked, seed: int) -> Shown:
        measures = self.measures
        sampling = SamplingConfig(
            measures.samples, measures.max_new_tokens, measures.temperature, measures.batch_size, seed
        )
        return responses_to(loaded, asked.prompts, asked.where, asked.judge, sampling)


def read_gauge(plan: ValidationPlan, loaded: LoadedModel) -> Gauge:
    """Read what ``plan`` measures, before anything is trained.

    Raises:
        SettingsError: two behaviors of one name, or one without a judge.
        ProbeError, DataError: a file cannot be used.
    """
    measures = plan.measures
    judges = judge_config(measures)
    asked: dict[str, Asked] = {}
    behaviors: list[str] = []
    for one in plan.behaviors:
        found = _behaviors(one, judges)
        for name in found.judges:
            if name in behaviors or name == OVER_REFUSAL:
                raise SettingsError(f"behaviors: two are named {printable(name, 80)!r}; rename one")
        behaviors += found.judges
        asked |= found.asked
    if measures.over_refusal is not None:
        prompts = read_prompts(measures.over_refusal.file).prompts
        asked[OVER_REFUSAL] = _asked(prompts, parse_rule(measures.over_refusal.judge, judges))
    held_out = read_held_out(
        measures.pairs, measures.text, loaded, Encoding(max_length=measures.max_length), plan.reading
    )
    reference = margins(loaded, held_out.pairs)
    return Gauge(measures, tuple(behaviors), asked, held_out, reference, str(loaded.model.device))


@dataclass(frozen=True)
class _Behaviors:
    """What one entry of the plan's ``behaviors`` asks."""

    judges: dict[str, Judge]
    """By behavior."""
    asked: dict[str, Asked]


def _behaviors(plan: BehaviorPlan, config: JudgeConfig) -> _Behaviors:
    found = read_behaviors(plan.file)
    judges = resolve_judges(found, parse_rule(plan.judge, config) if plan.judge else None, config)
    asked: dict[str, Asked] = {}
    for one in found:
        rows, judge = one.prompts.prompts, judges[one.name]
        asked[one.name] = _asked(rows, judge)
        plain = [replace(row, prompt=row.plain) for row in rows if row.plain is not None]
        if plain:
            asked[f"{one.name}/plain"] = _asked(plain, judge)
    if plan.control is not None:
        asked |= _controls(plan.control, judges)
    return _Behaviors(judges, asked)


def _controls(file: str, judges: dict[str, Judge]) -> dict[str, Asked]:
    """Control prompts of the behaviors that ``judges`` judge; a file that names none is of the only one."""
    found = read_behaviors(file)
    only = next(iter(judges)) if len(judges) == len(found) == 1 else ""
    asked = {}
    for one in found:
        name = one.name if one.name in judges else only
        if not name:
            known = ", ".join(printable(each, 60) for each in judges)
            raise SettingsError(
                f"behaviors: the control prompts {printable(file)} are of {printable(one.name, 60)!r}, which is "
                f"none of {known}. Give their rows the field `behavior`."
            )
        asked[f"{name}/control"] = _asked(one.prompts.prompts, judges[name])
    return asked


def _asked(rows: Sequence[BehaviorPrompt], judge: Judge) -> Asked:
    return Asked(tuple(row.prompt for row in rows), judge, tuple(row.location for row in rows))
