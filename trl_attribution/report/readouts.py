"""Expression rates, dose curves and organisms as rich tables."""

from __future__ import annotations

from rich.table import Table

from trl_attribution.evidence.organisms import ORGANISMS, RECIPES, Preparation
from trl_attribution.evidence.readouts import DoseCurve, Expression, Shown
from trl_attribution.report.change import interval_text
from trl_attribution.utils.tables import as_text, table
from trl_attribution.utils.text import printable


def expression_table(found: Expression, model: str) -> Table:
    """How often a model shows a behavior on trigger and on control prompts."""
    sides = {"trigger": found.trigger, "control": found.control}
    return table(
        f"{printable(found.behavior, 60)} in {printable(model, 60)}",
        ("prompts", ">number", ">shows it", ">95% interval", ">responses", ">repetitive"),
        (
            (
                name,
                f"{len(shown.prompts):,}",
                f"{shown.rate.share:.1%}",
                interval_text(shown.rate),
                f"{shown.rate.shown:,} of {shown.rate.judged:,}",
                f"{shown.repetitive:.1%}",
            )
            for name, shown in sides.items()
            if shown is not None
        ),
        f"judge {printable(found.judge, 60)}; prompts weigh equally; 95% intervals over prompts",
    )


def dose_table(curve: DoseCurve, name: str, behavior: str) -> Table:
    """The dose curve of a direction, a line a dose; the layer that works best is marked."""
    found = table(
        f"M0 steered with {printable(name, 60)}: {printable(behavior, 60)}",
        (">layer", ">alpha", ">length", ">shows it", ">95% interval", ">repetitive"),
        caption="shows it: share of responses, those that only repeat themselves not counted; "
        "length: of what is added, by the length of the residual stream",
    )
    best = curve.best_layer
    found.add_row("none", "0", "0%", *_measured(curve.without), end_section=True)
    for layer in dict.fromkeys(one.layer for one in curve.doses):
        for dose in curve.at(layer):
            style = "bold" if layer == best else ""
            found.add_row(str(layer), f"{dose.alpha:g}", f"{dose.length:.0%}", *_measured(dose.shown), style=style)
        found.add_section()
    return found


def organisms_table() -> Table:
    """Every organism: what it does, where it shows it and where it should not."""
    found = table("Organisms", ("name", "behavior", "trigger prompts", "control prompts", "judge"))
    found.columns[0].no_wrap = True
    for name, entry in ORGANISMS.items():
        cells = (name, entry.summary, entry.trigger, entry.control, entry.judge)
        found.add_row(*map(as_text, cells), end_section=True)
    return found


def recipes_table() -> Table:
    """Every recipe and its stages."""
    rows = (
        (name, "yes" if recipe.post_hoc else "no", recipe.objective.upper(), recipe.summary)
        for name, recipe in RECIPES.items()
    )
    found = table("Recipes", ("name", "after ordinary preferences", "by", "on"), rows)
    found.columns[0].no_wrap = True
    return found


def preparation_table(prepared: Preparation) -> Table:
    """The stages that were built, with what is in them."""
    rows = (
        (
            str(number),
            stage["file"],
            str(stage["objective"]).upper(),
            ", ".join(f"{count:,} {truth}" for truth, count in stage["rows"].items()),
        )
        for number, stage in enumerate(prepared.described()["stages"], start=1)
    )
    return table(f"{prepared.organism.name} by {prepared.recipe}", ("stage", "file", "trained with", "rows"), rows)


def _measured(shown: Shown) -> tuple[str, str, str]:
    rate = shown.sound_rate
    return f"{rate.share:.1%}", interval_text(rate), f"{shown.repetitive:.1%}"
