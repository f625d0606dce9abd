"""What a scan predicted beside what training did, as sentences and a table; text only ever enters made printable."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trl_attribution.discovery.findings import Agreement, Prediction, TraitChange
from trl_attribution.utils.tables import table
from trl_attribution.utils.text import counted, printable

UNIT = "in units of each trait's spread on M0: what two responses of the traits' examples differ by"


def prediction_view(prediction: Prediction, shown: int) -> RenderableType:
    """How well predicted and measured changes agree, and the traits that were predicted, or did, move most."""
    return Group("", *map(Text, agreement_lines(prediction)), changes_table(prediction, shown))


def agreement_lines(prediction: Prediction) -> Iterator[str]:
    """How well predicted and measured changes agree, and what was not measured, printable."""
    yield f"Predicted against measured, on {counted(prediction.prompts, 'held-out prompt')}, M1's responses minus M0's:"
    yield f"  over traits: {agreement_said(prediction.by_trait)}"
    yield f"  over topics and traits: {agreement_said(prediction.by_topic)}"
    for reason, number in prediction.left_out.items():
        yield f"{counted(number, 'prompt')} not read: {printable(reason, 100)}."
    if prediction.unmeasured:
        yield f"{counted(prediction.unmeasured, 'change')} not measured: too few prompts."


def changes_table(prediction: Prediction, shown: int) -> Table:
    """A line a change, the largest first."""
    columns = ("trait", "where", ">predicted", ">measured")
    return table("Predicted and measured changes", columns, map(change_row, largest(prediction, shown)), UNIT)


def change_row(one: TraitChange) -> tuple[str, str, str, str]:
    """Trait, place, predicted and measured change, printable."""
    measured = "" if one.measured is None else f"{one.measured:+.3f} ± {one.measured_error or 0:.3f}"
    return printable(one.trait, 60), place(one), f"{one.predicted:+.3f} ± {one.predicted_error:.3f}", measured


def agreement_said(one: Agreement | None) -> str:
    """R2, rank correlation and slope in words."""
    if one is None:
        return "too few were measured"
    return f"R2 {one.r2:.2f}, rank correlation {one.rank:+.2f}, slope {one.slope:+.2f}, of {one.number:,}"


def place(one: TraitChange) -> str:
    """Where, printable."""
    if one.topic is None:
        return "everywhere"
    return ", ".join(printable(word, 30) for word in one.words) or "no words of its own"


def largest(prediction: Prediction, shown: int) -> list[TraitChange]:
    """The changes that are farthest from none against their errors, whichever of the two says so."""

    def size(one: TraitChange) -> float:
        both = ((one.predicted, one.predicted_error), (one.measured or 0.0, one.measured_error or 0.0))
        return max(abs(value) / error if error else 0.0 for value, error in both)

    return sorted(prediction.changes, key=size, reverse=True)[:shown]
