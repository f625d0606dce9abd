"""Answers in words: is it supported that the top-ranked pairs cause the behavior?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trl_attribution.evidence.validation.cells import BASELINE, CONTROLS, M0, Condition
from trl_attribution.evidence.validation.plan import StatisticsPlan
from trl_attribution.evidence.validation.statistics import (
    Bootstrap,
    DifferenceTest,
    IntervalEstimate,
    advantage,
    compare,
    reduction,
    seeds_needed,
    share,
)
from trl_attribution.scoring import holm
from trl_attribution.utils.arrays import Doubles

Answer = Literal["supported", "not supported", "undecided"]
_ORDER: tuple[Answer, ...] = ("supported", "undecided", "not supported")
"""A behavior's answer is the first of these that a claim about it has; the plan's the last that a behavior has."""


@dataclass(frozen=True)
class Against:
    """The top pairs against one control."""

    control: str
    """Name of the control's condition."""
    comparison: DifferenceTest
    advantage: IntervalEstimate
    """Reduction by the top pairs minus reduction by the control."""


@dataclass(frozen=True)
class Claim:
    """Changing the top-ranked pairs in one way takes one behavior away, and changing others does not."""

    behavior: str
    condition: Condition
    baseline: IntervalEstimate
    """Share of responses that show the behavior after training on all pairs."""
    reduction: IntervalEstimate
    against: tuple[Against, ...]
    p_value: float
    """The largest over the controls."""
    p_holm: float
    """The same, corrected for the number of claims that decide."""
    decides: bool
    """Whether it counts for the answer; runs of fewer steps are shown beside where there are others."""
    answer: Answer
    reason: str
    seeds: int
    seeds_needed: int | None = None
    """About how many it would take, where more may decide it."""


@dataclass(frozen=True)
class Conclusion:
    """What a whole validation says."""

    answer: Answer
    sentence: str
    by_behavior: Mapping[str, Answer]
    claims: tuple[Claim, ...]

    @property
    def exit_code(self) -> int:
        """0 where supported, else 1."""
        return 0 if self.answer == "supported" else 1


Shares = Mapping[str, Mapping[Condition, Doubles]]
"""By behavior and condition, the share of each prompt's responses that show it ``[S, M]``, seeds in one order."""


def conclude(shares: Shares, settings: StatisticsPlan) -> Conclusion:
    """Answer for every behavior and every condition that changes top-ranked pairs.

    A claim is **supported** if its Holm-corrected p-value is at most ``alpha``, the top pairs' reduction is at least
    ``min_reduction``, and the interval of its advantage over every random control lies above 0. It is **not
    supported** if there are two seeds or more and either the interval of the reduction lies below ``min_reduction``
    or that of the advantage over some control below ``min_advantage``. Otherwise it is **undecided**.
    """
    deciding_steps = _deciding(shares)
    claims = [
        _measured(name, by_condition, condition, settings, condition.steps == deciding_steps)
        for name, by_condition in shares.items()
        for condition in by_condition
        if condition.selection == "top"
    ]
    deciding = [place for place, claim in enumerate(claims) if claim.decides]
    corrected = holm([claims[place].p_value for place in deciding])
    for place, p_holm in zip(deciding, corrected, strict=True):
        claims[place] = replace(claims[place], p_holm=float(p_holm))
    answered = tuple(_answered(claim, shares[claim.behavior], settings, len(deciding)) for claim in claims)
    by_behavior = {
        name: min((one.answer for one in answered if one.behavior == name and one.decides), key=_ORDER.index)
        for name in shares
    }
    overall = max(by_behavior.values(), key=_ORDER.index)
    return Conclusion(overall, _sentence(overall, answered), by_behavior, answered)


def control_conditions(condition: Condition, known: Sequence[Condition]) -> list[Condition]:
    """The random controls of a condition that changes top-ranked pairs, among those ``known``."""
    return [
        other
        for other in known
        if other.selection in CONTROLS
        and (other.intervention, other.size, other.steps) == (condition.intervention, condition.size, condition.steps)
        and other.ranking in ("", condition.ranking)
    ]


def _deciding(shares: Shares) -> str:
    steps = {condition.steps for each in shares.values() for condition in each if condition.selection == "top"}
    return "fixed" if "fixed" in steps else "short"


def _measured(
    name: str, by_condition: Mapping[Condition, Doubles], condition: Condition, settings: StatisticsPlan, decides: bool
) -> Claim:
    baseline_SM, top_SM = by_condition[BASELINE], by_condition[condition]
    seeds, prompts = top_SM.shape
    bootstrap = Bootstrap.drawn(seeds, prompts, settings.resamples, settings.seed)
    against = tuple(
        Against(
            control.name,
            compare(top_SM, by_condition[control], bootstrap, settings.resamples, settings.seed),
            advantage(top_SM, by_condition[control], baseline_SM, bootstrap),
        )
        for control in control_conditions(condition, list(by_condition))
    )
    p_value = max((_towards(one.comparison) for one in against), default=1.0)
    return Claim(
        behavior=name,
        condition=condition,
        baseline=share(baseline_SM, bootstrap),
        reduction=reduction(top_SM, baseline_SM, bootstrap),
        against=against,
        p_value=p_value,
        p_holm=p_value,
        decides=decides,
        answer="undecided",
        reason="",
        seeds=seeds,
    )


def _towards(comparison: DifferenceTest) -> float:
    """A difference the wrong way round is no evidence, however clear it is."""
    return comparison.p_value if comparison.difference.value > 0 else 1.0


def _answered(claim: Claim, by_condition: Mapping[Condition, Doubles], settings: StatisticsPlan, claims: int) -> Claim:
    """The claim with its answer; how many seeds it takes is reckoned with the strictest level of the correction."""
    answer, reason = _answer(claim, by_condition, settings)
    needed = None
    if answer == "undecided" and claim.against and claim.seeds >= 2:
        alpha = settings.alpha / max(1, claims)
        each = [
            seeds_needed((by_condition[control] - by_condition[claim.condition]).mean(axis=1), alpha)
            for control in control_conditions(claim.condition, list(by_condition))
        ]
        known = [count for count in each if count is not None]
        needed = max(known) if len(known) == len(each) else None
    return replace(claim, answer=answer, reason=reason, seeds_needed=needed)


def _answer(claim: Claim, by_condition: Mapping[Condition, Doubles], settings: StatisticsPlan) -> tuple[Answer, str]:
    reduced, least = claim.reduction, settings.min_reduction
    grown = by_condition[BASELINE].mean() - (by_condition[M0].mean() if M0 in by_condition else 0.0)
    if grown <= 0:
        return "undecided", "training on all pairs does not bring the behavior out, so there is nothing to take away"
    if not claim.against:
        return (
            "undecided",
            "there is no random control to compare with; add one to selections, or take it out of leave_out",
        )
    if claim.seeds < 2:
        return "undecided", "one seed says nothing about other training runs; add seeds"
    if reduced.high < least:
        return "not supported", f"the reduction is at most {reduced.high:.0%}, below the {least:.0%} asked for"
    weak = [one for one in claim.against if one.advantage.high < settings.min_advantage]
    if weak:
        most = f"the advantage is at most {weak[0].advantage.high:.0%}, below {settings.min_advantage:.0%}"
        return "not supported", f"{weak[0].control} does about as much: {most}"
    if claim.p_holm > settings.alpha:
        return "undecided", f"p = {claim.p_holm:.2g} after correction is above {settings.alpha:g}"
    if reduced.value < least:
        return "undecided", f"the reduction of {reduced.value:.0%} is below the {least:.0%} asked for, its interval not"
    if any(one.advantage.low <= 0 for one in claim.against):
        return "undecided", "the interval of the advantage over a random control reaches 0"
    return "supported", f"reduced by {reduced.value:.0%}, every random control by less, p = {claim.p_holm:.2g}"


def _sentence(answer: Answer, claims: Sequence[Claim]) -> str:
    if answer == "supported":
        return "Supported: the top-ranked pairs cause the behavior."
    if answer == "not supported":
        return "Not supported: changing the top-ranked pairs does not take the behavior away as it should."
    needed = [one.seeds_needed for one in claims if one.decides and one.answer == "undecided" and one.seeds_needed]
    if needed:
        return f"Undecided, more seeds needed: about {min(needed)}."
    return "Undecided: " + next(one.reason for one in claims if one.decides and one.answer == "undecided") + "."
