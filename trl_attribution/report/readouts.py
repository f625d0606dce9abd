"""Expression rates, dose curves and organisms as rich tables."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trl_attribution.evidence.organisms import ORGANISMS, RECIPES, Preparation
from trl_attribution.evidence.readouts import DoseCurve, Expression, Shown
from trl_attribution.evidence.readouts.behavior_change import Rate
from trl_attribution.utils.text import printable


def expression_table(found: Expression, model: str) -> Table:
    """How often a model shows a behavior on trigger and on control prompts."""
    table = _table(f"{printable(found.behavior, 60)} in {printable(model, 60)}")
    table.caption = Text(f"judge {printable(found.judge, 60)}; prompts weigh equally; 95% intervals over prompts")
    table.add_column("prompts")
    for column in ("number", "shows it", "95% interval", "responses", "repetitive"):
        table.add_column(column, justify="right")
    sides = {"trigger": found.trigger, "control": found.control}
    for name, shown in sides.items():
        if shown is not None:
            rate = shown.rate
            counts = (
                f"{len(shown.prompts):,}",
                f"{rate.share:.1%}",
                _interval(rate),
                f"{rate.shown:,} of {rate.judged:,}",
            )
            table.add_row(name, *counts, f"{shown.repetitive:.1%}")
    return table


def dose_table(curve: DoseCurve, name: str, behavior: str) -> Table:
    """The dose curve of a direction, a line a dose; the layer that works best is marked."""
    table = _table(f"M0 steered with {printable(name, 60)}: {printable(behavior, 60)}")
    table.caption = (
        "shows it: share of responses, those that only repeat themselves not counted; "
        "length: of what is added, by the length of the residual stream"
    )
    for column in ("layer", "alpha", "length", "shows it", "95% interval", "repetitive"):
        table.add_column(column, justify="right")
    best = curve.best_layer
    table.add_row("none", "0", "0%", *_measured(curve.without), end_section=True)
    layers = list(dict.fromkeys(one.layer for one in curve.doses))
    for layer in layers:
        for dose in curve.at(layer):
            style = "bold" if layer == best else ""
            table.add_row(str(layer), f"{dose.alpha:g}", f"{dose.length:.0%}", *_measured(dose.shown), style=style)
        table.add_section()
    return table


def organisms_table() -> Table:
    """Every organism: what it does, where it shows it and where it should not."""
    table = _table("Organisms")
    table.add_column("name", no_wrap=True)
    for column in ("behavior", "trigger prompts", "control prompts", "judge"):
        table.add_column(column, overflow="fold")
    for name, entry in ORGANISMS.items():
        table.add_row(Text(name), entry.summary, entry.trigger, entry.control, Text(entry.judge), end_section=True)
    return table


def recipes_table() -> Table:
    """Every recipe and its stages."""
    table = _table("Recipes")
    table.add_column("name", no_wrap=True)
    for column in ("after ordinary preferences", "by", "on"):
        table.add_column(column)
    for name, recipe in RECIPES.items():
        table.add_row(name, "yes" if recipe.post_hoc else "no", recipe.objective.upper(), recipe.summary)
    return table


def preparation_table(prepared: Preparation) -> Table:
    """The stages that were built, with what is in them."""
    table = _table(f"{prepared.organism.name} by {prepared.recipe}")
    for column in ("stage", "file", "trained with", "rows"):
        table.add_column(column)
    for number, stage in enumerate(prepared.described()["stages"], start=1):
        rows: Mapping[str, int] = stage["rows"]
        counts = ", ".join(f"{count:,} {truth}" for truth, count in rows.items())
        table.add_row(str(number), Text(stage["file"]), str(stage["objective"]).upper(), counts)
    return table


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", caption_justify="left", box=SIMPLE_HEAD)


def _measured(shown: Shown) -> tuple[str, str, str]:
    rate = shown.sound_rate
    return f"{rate.share:.1%}", _interval(rate), f"{shown.repetitive:.1%}"


def _interval(rate: Rate) -> str:
    return f"{100 * rate.low:.1f} .. {100 * rate.high:.1f}"
