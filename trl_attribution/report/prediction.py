"""What a scan predicted beside what training did, as sentences and a table; text only ever enters made printable."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from trl_attribution.discovery.findings import Agreement, Prediction, TraitChange
from trl_attribution.utils.tables import table
from trl_attribution.utils.text import counted, printable


def prediction_view(prediction: Prediction, shown: int) -> RenderableType:
    """How well predicted and measured changes agree, and the traits that were predicted, or did, move most."""
    lines = [
        f"Predicted against measured, on {counted(prediction.prompts, 'held-out prompt')}, M1's responses minus M0's:",
        f"  over traits: {agreement_said(prediction.by_trait)}",
        f"  over topics and traits: {agreement_said(prediction.by_topic)}",
    ]
    lines += [f"{counted(number, 'prompt')} not read: {reason}." for reason, number in prediction.left_out.items()]
    if prediction.unmeasured:
        lines.append(f"{counted(prediction.unmeasured, 'change')} not measured: too few prompts.")
    rows = [
        (
            printable(one.trait, 60),
            place(one),
            f"{one.predicted:+.3f} ± {one.predicted_error:.3f}",
            "" if one.measured is None else f"{one.measured:+.3f} ± {one.measured_error or 0:.3f}",
        )
        for one in largest(prediction, shown)
    ]
    caption = "in units of each trait's spread on M0: what two responses of the traits' examples differ by"
    return Group(
        "",
        *(Text(line) for line in lines),
        table("Predicted and measured changes", ("trait", "where", ">predicted", ">measured"), rows, caption),
    )


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
