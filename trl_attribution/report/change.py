"""Before and after as rich tables: rates of behaviors, and drift by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from rich.table import Table
from rich.text import Text

from trl_attribution.utils.tables import table
from trl_attribution.utils.text import counted, printable

if TYPE_CHECKING:
    from trl_attribution.evidence.readouts.behavior_change import BehaviorChange, BehaviorRates, Rate, RateDifference
    from trl_attribution.evidence.readouts.drift import LayerDrift


def rates_table(changes: Sequence[BehaviorChange | BehaviorRates]) -> Table:
    """One line a behavior: how often M0 and M1 show it, and the difference; bold where its interval excludes 0."""
    rows = (
        (
            Text.assemble(printable(one.name, 60), (f"\n{printable(one.judge, 60)}", "dim")),
            f"{one.prompts:,}",
            f"{one.prompts_changed:,}",
            _rate(one.before),
            _rate(one.after),
            _difference(one.difference),
        )
        for one in (_rates(each) for each in changes)
    )
    return table(
        "Behaviors before and after",
        ("behavior", ">prompts", ">changed", ">M0", ">M1", ">difference"),
        rows,
        "per cent of responses, prompts weighing equally; below them 95% intervals over prompts",
    )


def drift_table(drifts: Sequence[LayerDrift]) -> Table:
    """One line a layer, with a bar for how far it moved beside the one that moved most."""
    samples = drifts[0].samples if drifts else 0
    most = max((one.norm for one in drifts), default=0.0)
    rows = (
        (
            str(one.layer),
            f"{one.norm:.2%}",
            f"{one.direction_consistency:.2f}",
            f"{one.cosine:.4f}",
            Text("█" * round(20 * one.norm / most) if most else "", style="cyan"),
        )
        for one in drifts
    )
    return table(
        "Drift from M0 to M1 by layer",
        (">layer", ">moved", ">same way", ">cosine", ""),
        rows,
        f"mean activations of {counted(samples, 'response')}, same tokens",
    )


def interval_text(rate: Rate) -> str:
    """The bounds in per cent."""
    return f"{100 * rate.low:.1f} .. {100 * rate.high:.1f}"


def _rate(rate: Rate) -> Text:
    text = Text(f"{rate.share:.1%}")
    text.append(f"\n{interval_text(rate)}", style="dim")
    text.append(f"\n{rate.shown:,} of {rate.judged:,}", style="dim")
    return text


def _difference(difference: RateDifference) -> Text:
    sure = difference.low > 0 or difference.high < 0
    text = Text(f"{difference.share:+.1%}", style="bold" if sure else "")
    text.append(f"\n{100 * difference.low:+.1f} .. {100 * difference.high:+.1f}", style="dim")
    return text


def _rates(change: BehaviorChange | BehaviorRates) -> BehaviorRates:
    """The numbers alone, told by what it has: its class would bring PyTorch with it."""
    rates: Any = getattr(change, "rates", None)
    return cast("BehaviorRates", rates if rates is not None else change)
