"""Before and after as rich tables: rates of behaviors, and drift by layer."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trl_attribution.evidence.readouts.behavior_change import BehaviorChange, Difference, Rate
from trl_attribution.evidence.readouts.drift import LayerDrift
from trl_attribution.utils.text import counted, printable


def rates_table(changes: Sequence[BehaviorChange]) -> Table:
    """One line a behavior: how often M0 and M1 show it, and the difference; bold where its interval excludes 0."""
    table = Table(
        title="Behaviors before and after",
        title_justify="left",
        box=SIMPLE_HEAD,
        caption="per cent of responses, prompts weighing equally; below them 95% intervals over prompts",
        caption_justify="left",
    )
    table.add_column("behavior")
    for column in ("prompts", "changed", "M0", "M1", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for change in changes:
        behavior = Text(printable(change.behavior.name, 60))
        behavior.append(f"\n{printable(change.judge, 60)}", style="dim")
        table.add_row(
            behavior,
            f"{len(change.behavior.prompts.prompts):,}",
            f"{len(change.changed.examples):,}",
            _rate(change.before),
            _rate(change.after),
            _difference(change.difference),
        )
    return table


def drift_table(drifts: Sequence[LayerDrift]) -> Table:
    """One line a layer, with a bar for how far it moved beside the one that moved most."""
    samples = drifts[0].samples if drifts else 0
    table = Table(title="Drift from M0 to M1 by layer", title_justify="left", box=SIMPLE_HEAD)
    table.caption = f"mean activations of {counted(samples, 'response')}, same tokens"
    table.caption_justify = "left"
    for column in ("layer", "moved", "same way", "cosine"):
        table.add_column(column, justify="right")
    table.add_column("")
    most = max((one.norm for one in drifts), default=0.0)
    for one in drifts:
        table.add_row(
            str(one.layer),
            f"{one.norm:.2%}",
            f"{one.direction_consistency:.2f}",
            f"{one.cosine:.4f}",
            Text("█" * round(20 * one.norm / most) if most else "", style="cyan"),
        )
    return table


def _rate(rate: Rate) -> Text:
    text = Text(f"{rate.share:.1%}")
    text.append(f"\n{100 * rate.low:.1f} .. {100 * rate.high:.1f}", style="dim")
    text.append(f"\n{rate.shown:,} of {rate.judged:,}", style="dim")
    return text


def _difference(difference: Difference) -> Text:
    sure = difference.low > 0 or difference.high < 0
    text = Text(f"{difference.share:+.1%}", style="bold" if sure else "")
    text.append(f"\n{100 * difference.low:+.1f} .. {100 * difference.high:+.1f}", style="dim")
    return text
