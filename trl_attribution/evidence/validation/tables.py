"""A validation as rich tables. Names from files only ever enter as ``Text`` made printable, never as markup."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trl_attribution.evidence.validation.conclusions import Answer, Claim
from trl_attribution.evidence.validation.document import ConditionSummary, costs, summaries
from trl_attribution.evidence.validation.measuring import OVER_REFUSAL
from trl_attribution.evidence.validation.running import Validation
from trl_attribution.evidence.validation.statistics import IntervalEstimate
from trl_attribution.utils.tables import table
from trl_attribution.utils.text import printable

_MOST = 10.0
_STYLES: dict[Answer, str] = {"supported": "bold green", "not supported": "bold red", "undecided": "bold yellow"}


def validation_tables(validation: Validation) -> RenderableType:
    """Rates by condition, the claims, what it cost, and the answer."""
    notes = [Text(f"Note: {printable(note, 400)}", style="yellow") for note in validation.notes]
    return Group(
        *(_rates_table(validation, behavior) for behavior in validation.behaviors),
        _side_effects_table(summaries(validation)),
        _claims_table(validation),
        _cost_table(validation),
        *notes,
        answer_line(validation),
    )


def answer_line(validation: Validation) -> Text:
    """The answer in one sentence."""
    conclusion = validation.conclusion
    return Text(conclusion.sentence, style=_STYLES[conclusion.answer])


def _rates_table(validation: Validation, behavior: str) -> Table:
    judge = printable(validation.judges[behavior], 60)
    beside = [name for name in ("plain", "control") if f"{behavior}/{name}" in validation.judges]
    reductions = {one.condition: one.reduction for one in validation.conclusion.claims if one.behavior == behavior}
    return table(
        f"{printable(behavior, 60)}: responses that show it, by {judge}",
        ("condition", ">with trigger", *(f">{name}" for name in beside), ">reduction"),
        (
            (
                one.condition.title,
                _with_interval(one.shares[behavior]),
                *(_with_interval(one.shares[f"{behavior}/{name}"]) for name in beside),
                _with_interval(reductions[one.condition]) if one.condition in reductions else "",
            )
            for one in summaries(validation)
        ),
    )


def _side_effects_table(rows: list[ConditionSummary]) -> Table:
    return table(
        "Side effects",
        ("condition", ">over-refusal", ">accuracy", ">margin", ">perplexity", ">steps"),
        (
            (
                one.condition.title,
                _with_interval(one.shares[OVER_REFUSAL]) if OVER_REFUSAL in one.shares else "-",
                _number(one.accuracy, ".1%"),
                _number(one.margin, ".2f"),
                _number(one.perplexity, ".2f"),
                f"{one.steps:,}",
            )
            for one in rows
        ),
    )


def _claims_table(validation: Validation) -> Table:
    return table(
        "Top-ranked pairs against random ones",
        ("claim", ">advantage", ">p", ">p (Holm)", "answer"),
        (
            (
                f"{printable(claim.behavior, 40)}: {claim.condition.title}",
                "\n".join(_with_interval(one.advantage) for one in claim.against) or "-",
                f"{claim.p_value:.2g}",
                f"{claim.p_holm:.2g}" if claim.decides else "-",
                Text.assemble((claim.answer, _STYLES[claim.answer]), f": {_reason(claim)}"),
            )
            for claim in validation.conclusion.claims
        ),
    )


def _reason(claim: Claim) -> str:
    needed = f"; about {claim.seeds_needed} seeds" if claim.seeds_needed else ""
    aside = "" if claim.decides else " (shown beside, does not decide)"
    return f"{claim.reason}{needed}{aside}"


def _cost_table(validation: Validation) -> Table:
    plan = validation.plan
    return table(
        "Cost",
        ("part", ">device-seconds", ">FLOPs", ">peak memory", f">money ({printable(plan.currency, 10)})"),
        (
            (
                name,
                f"{cost.device_seconds:,.0f}",
                f"{cost.flops:.2e}" if cost.flops else "-",
                f"{cost.peak_memory_bytes / 2**30:.2f} GiB" if cost.peak_memory_bytes else "-",
                _number(cost.money(plan), ".2f"),
            )
            for name, cost in costs(validation).items()
        ),
    )


def _with_interval(estimate: IntervalEstimate) -> str:
    return f"{estimate.value:.0%} ({percent(estimate.low)} to {percent(estimate.high)})"


def percent(bound: float) -> str:
    """A bound of an interval; with two seeds that differ, a ratio of rates is as good as unbounded."""
    return f"{'below -' if bound < 0 else 'above '}1,000%" if abs(bound) > _MOST else f"{bound:.0%}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
