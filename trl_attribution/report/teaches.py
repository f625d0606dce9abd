"""What a scan found, as the page shows it: groups and facts of findings, their commands, the numbers of the chart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from trl_attribution.discovery.findings import Finding, ScanResult
from trl_attribution.report.facts import Fact
from trl_attribution.report.findings import Findings
from trl_attribution.report.scan import apply_command, interval, unnamed_text
from trl_attribution.utils.kinds import PAIR, ExampleKind
from trl_attribution.utils.text import counted, printable

CARDS = 12
"""Findings whose cards are open; the others' are folded."""
_LABEL = 60
_NEAR_NOTHING = 0.05
_WIDE = "On all prompts, or on all but those that a narrow effect of the same trait is about."
_NARROW = (
    "In one topic, one source, or one topic within a source; elsewhere is the effect on all other pairs. An evaluation "
    "over all prompts would miss most of these."
)
_GROUPS = ((False, "Across the dataset", _WIDE), (True, "Narrow effects", _NARROW))


@dataclass(frozen=True)
class FindingGroup:
    """Findings that stand in one table."""

    narrow: bool
    title: str
    hint: str
    findings: tuple[tuple[int, Finding], ...]
    """Each with its number, which is that of its manifest."""


def finding_groups(result: ScanResult) -> list[FindingGroup]:
    """Narrow effects apart from those that the whole dataset has; the group with the first finding comes first."""
    numbered = tuple(enumerate(result.findings, start=1))
    groups = [
        FindingGroup(narrow, title, hint, tuple(one for one in numbered if one[1].everywhere != narrow))
        for narrow, title, hint in _GROUPS
    ]
    return sorted((one for one in groups if one.findings), key=lambda one: one.findings[0][0])


def finding_facts(one: Finding, kind: ExampleKind = PAIR) -> list[Fact]:
    """The numbers of one finding."""
    size, low, high = interval(one)
    lines = [
        ("prompts with", _words(one)),
        ("sources", "; ".join(f"{printable(row.source, 60)}, {row.pushing:,} of {row.pairs:,}" for row in one.sources)),
        ("effect", f"d = {size:.2f}, 95% interval {low:.2f} to {high:.2f}"),
        ("elsewhere", "" if one.elsewhere is None else elsewhere_text(one)),
        (kind.several, f"about {one.pushing_low:,} to {one.pushing_high:,} of {one.pairs:,} push this way (95%)"),
        ("chance of that", f"p {one.adjusted_p:.2g}, corrected for all that was tested"),
        ("length and format", f"explain {one.shape_share:.0%} of the trait's scores" if one.shape_share else ""),
        ("trait", f"{printable(one.trait, 60)}, {one.direction}"),
    ]
    return [(name, value) for name, value in lines if value]


def elsewhere_text(one: Finding) -> str:
    """The effect on the pairs outside of a finding's place, and which way it goes there."""
    outside = one.elsewhere or 0.0
    if abs(outside) < _NEAR_NOTHING:
        return "none"
    return f"d = {abs(outside):.2f}" + ("" if outside * one.effect > 0 else ", the other way")


def looked_for(result: ScanResult) -> list[Fact]:
    """What was looked at and found nothing, and what could not be looked at, as names and printable values."""
    lines = [
        ("found nothing", ", ".join(printable(name, 60) for name in result.absent)),
        ("cannot be told", ", ".join(printable(one.trait, 60) for one in result.untold)),
        ("explained", f"{counted(result.explained, 'effect')}, by those that are listed" if result.explained else ""),
        ("looked at", f"{result.tests:,} places and traits, {counted(result.topics, 'topic')}, layer {result.layer}"),
        *((f"cluster {printable(one.cluster, 20)}", unnamed_text(one, result.examples)) for one in result.unnamed),
    ]
    return [(name, value) for name, value in lines if value]


def finding_command(found: Findings, one: Finding, action: Literal["filter", "weight"] = "filter") -> str:
    """The command that acts on the examples of a finding; empty where it cannot be shown as it is."""
    return apply_command(one, found.folder, found.info.dataset.argument, action)


def effects_data(result: ScanResult) -> list[dict[str, Any]]:
    """What the chart of findings draws."""
    return list(_effects(result))


def _effects(result: ScanResult) -> Iterator[dict[str, Any]]:
    for number, one in enumerate(result.findings, start=1):
        size, low, high = interval(one)
        label = printable(one.says, _LABEL)
        yield {"number": number, "label": label, "size": size, "low": low, "high": high, "harmful": one.harmful}


def _words(one: Finding) -> str:
    return ", ".join(printable(word, 30) for word in one.words)
