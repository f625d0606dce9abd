"""The verdict for people at a terminal, by rich; texts enter as ``Text`` made visible, never as markup."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from trl_attribution.gate.formats.neutral import sentence, visible
from trl_attribution.gate.formats.wording import (
    evidence,
    excerpt_lines,
    facts,
    failures,
    highest_title,
    more,
    result_word,
    unlisted,
    where,
)
from trl_attribution.gate.verdict import RuleResult, Verdict, Violation
from trl_attribution.utils import tables

SHOWN = 20
"""Violations shown of each broken rule."""
_STYLES = {"pass": "green", "warn": "yellow", "FAIL": "bold red"}
_EXCERPT_STYLES = {"+": "green", "-": "red"}


def render_text(verdict: Verdict, width: int) -> str:
    """The verdict as plain text of at most ``width`` columns, without color."""
    output = io.StringIO()
    console = Console(
        file=output,
        width=width,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(terminal(verdict))
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines()).rstrip() + "\n"


def terminal(verdict: Verdict) -> RenderableType:
    """The verdict for a console of one's own, in color where that has color."""
    headline = Text(sentence(f"{verdict.status}."), style="bold green" if verdict.passed else "bold red")
    headline.append(sentence(verdict.outcome.removeprefix(f"{verdict.status}.")), style="not bold default")
    told = tables.facts((fact.name, visible(fact.value)) for fact in facts(verdict))
    parts = (told, _rules(verdict), *_details(verdict), *_unlisted(verdict), *_notes(verdict))
    return Group(headline, Text(), *parts)


def _rules(verdict: Verdict) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column("rule", overflow="fold", ratio=2)
    table.add_column("result", overflow="fold", ratio=3)
    for rule in verdict.rules:
        word = result_word(rule)
        told = Text(sentence(rule.sentence))
        if rule.allowed:
            told.append(f" ({len(rule.allowed):,} accepted by the allow list)", style="dim")
        table.add_row(Text(word, style=_STYLES[word]), Text(visible(rule.rule)), told)
    return table


def _details(verdict: Verdict) -> Iterator[RenderableType]:
    for rule in failures(verdict):
        if not rule.violations:
            continue
        yield Text(visible(rule.rule), style=_STYLES[result_word(rule)])
        yield from _violations(rule)
        yield Text()


def _unlisted(verdict: Verdict) -> Iterator[RenderableType]:
    for statement in unlisted(verdict):
        yield Text(sentence(highest_title(statement)))
        yield from (_violation(violation) for violation in statement.highest)
        yield Text()


def _violations(rule: RuleResult) -> Iterator[RenderableType]:
    for violation in rule.violations[:SHOWN]:
        yield _violation(violation)
    if len(rule.violations) > SHOWN:
        yield Text(f"  {more(len(rule.violations) - SHOWN)}", style="dim")


def _violation(violation: Violation) -> Text:
    shown = Text("  ")
    place = where(violation)
    if place:
        shown.append(visible(place), style="bold")
        shown.append("  ")
    shown.append(sentence(violation.message))
    facts_line = "  ".join(
        part for part in (evidence(violation), f"pair {violation.pair_id}" * bool(violation.pair_id)) if part
    )
    if facts_line:
        shown.append(f"\n    {visible(facts_line)}", style="dim")
    for line in excerpt_lines(violation):
        shown.append(f"\n    {visible(line)}", style=_EXCERPT_STYLES.get(line[0], ""))
    return shown


def _notes(verdict: Verdict) -> Iterator[RenderableType]:
    for note in verdict.notes:
        yield Text(f"note: {sentence(note)}")
