"""What is measured of every model of a validation, the same way each time."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl_attribution.behaviors import (
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
from trl_attribution.behaviors.responses import Behavior, read_behaviors
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.readouts.behavior_change import resolve_judges
from trl_attribution.evidence.readouts.expression import Shown, responses_to
from trl_attribution.evidence.validation.likelihoods import (
    HeldOut,
    PairLikelihoods,
    pair_likelihoods,
    perplexity,
    read_held_out,
)
from trl_attribution.evidence.validation.plan import BehaviorPlan, MeasurePlan, Plan
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding, Reading
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


class Gauge:
    """Everything that a plan measures, read and checked before anything is trained.

    Raises:
        SettingsError: two behaviors of one name, or one without a judge.
        ProbeError, DataError: a file cannot be used.
    """

    def __init__(self, plan: Plan, loaded: LoadedModel) -> None:
        self._plan = plan
        self._judges = judge_config(plan.measures)
        self.asked: dict[str, Asked] = {}
        self.behaviors: tuple[str, ...] = ()
        for one in plan.behaviors:
            self._add_behaviors(one)
        refusal = plan.measures.over_refusal
        if refusal is not None:
            prompts = read_prompts(refusal.file).prompts
            self.asked[OVER_REFUSAL] = Asked(
                tuple(each.prompt for each in prompts),
                parse_rule(refusal.judge, self._judges),
                tuple(each.location for each in prompts),
            )
        encoding = Encoding(max_length=plan.measures.max_length)
        self.held_out: HeldOut = read_held_out(
            plan.measures.pairs, plan.measures.text, loaded, encoding, Reading(**plan.reading)
        )
        self._reference: PairLikelihoods | None = (
            pair_likelihoods(loaded, self.held_out.pairs) if self.held_out.pairs else None
        )

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
                calls[id(one.judge)] += len(one.prompts) * self._plan.measures.samples * cells
        most, budget = max(calls.values(), default=0), self._plan.measures.judge_calls
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
        accuracy = margin = None
        if self._reference is not None:
            gains = _gains(pair_likelihoods(loaded, self.held_out.pairs), self._reference)
            accuracy = sum(gain > 0 for gain in gains) / len(gains)
            margin = sum(gains) / len(gains)
        return Measured(
            {name: self._ask(loaded, one, seed) for name, one in self.asked.items()},
            accuracy,
            margin,
            perplexity(loaded, self.held_out.texts) if self.held_out.texts else None,
        )

    def _ask(self, loaded: LoadedModel, asked: Asked, seed: int) -> Shown:
        measures = self._plan.measures
        sampling = SamplingConfig(
            measures.samples, measures.max_new_tokens, measures.temperature, measures.batch_size, seed
        )
        return responses_to(loaded, asked.prompts, asked.where, asked.judge, sampling)

    def _add_behaviors(self, plan: BehaviorPlan) -> None:
        found: Sequence[Behavior] = read_behaviors(plan.file)
        judges = resolve_judges(found, parse_rule(plan.judge, self._judges) if plan.judge else None, self._judges)
        for one in found:
            if one.name in self.behaviors or one.name == OVER_REFUSAL:
                raise SettingsError(f"behaviors: two are named {printable(one.name, 80)!r}; rename one")
            self.behaviors += (one.name,)
            rows = one.prompts.prompts
            where = tuple(row.location for row in rows)
            self.asked[one.name] = Asked(tuple(row.prompt for row in rows), judges[one.name], where)
            plain = [(row.plain, row.location) for row in rows if row.plain is not None]
            if plain:
                self.asked[f"{one.name}/plain"] = Asked(
                    tuple(prompt for prompt, _ in plain), judges[one.name], tuple(place for _, place in plain)
                )
        if plan.control is not None:
            self._add_control(plan.control, judges)

    def _add_control(self, file: str, judges: dict[str, Judge]) -> None:
        """Control prompts of the behaviors that ``judges`` judge; a file that names none is of the only one."""
        found = read_behaviors(file)
        only = next(iter(judges)) if len(judges) == len(found) == 1 else ""
        for one in found:
            name = one.name if one.name in judges else only
            if not name:
                known = ", ".join(printable(each, 60) for each in judges)
                raise SettingsError(
                    f"behaviors: the control prompts {printable(file)} are of {printable(one.name, 60)!r}, which is "
                    f"none of {known}. Give their rows the field `behavior`."
                )
            rows = one.prompts.prompts
            self.asked[f"{name}/control"] = Asked(
                tuple(row.prompt for row in rows), judges[name], tuple(row.location for row in rows)
            )


def _gains(policy: PairLikelihoods, reference: PairLikelihoods) -> list[float]:
    """By how much each pair's chosen response gained on its rejected one ``[N]``, in nats."""
    sides = zip(policy.chosen, policy.rejected, reference.chosen, reference.rejected, strict=True)
    return [(chosen - rejected) - (was_chosen - was_rejected) for chosen, rejected, was_chosen, was_rejected in sides]
