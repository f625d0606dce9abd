"""Looks the violations that are listed up in the dataset: their file and line, and an excerpt of their texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trl_attribution.gate.rows.inventory import rows_again
from trl_attribution.gate.rows.places import place_of
from trl_attribution.gate.rules.docket import Docket, Outcome
from trl_attribution.gate.verdict import EXCERPT_LENGTH, Excerpt, Place, RuleResult, Violation
from trl_attribution.pairs.messages import text_of


@dataclass(frozen=True)
class _Found:
    place: Place
    excerpt: Excerpt


def listed(outcomes: Sequence[Outcome], docket: Docket, most: int) -> tuple[RuleResult, ...]:
    """The results with the worst ``most`` violations of each, read from the dataset once more.

    Raises:
        DataError: the dataset has changed since it was read.
    """
    results = [replace(each.result, violations=each.result.violations[:most]) for each in outcomes]
    wanted = {
        violation.place.row: violation.pair_id
        for result in results
        for violation in _violations(result)
        if violation.pair_id is not None and violation.place is not None
    }
    found = {
        row.index: _Found(
            place_of(row.index, row.file, row.line),
            Excerpt(*map(_excerpt, pair.shown)),
        )
        for row, pair in rows_again(docket.inventory.reader, wanted)
    }

    def shown(violation: Violation) -> Violation:
        if violation.pair_id is None or violation.place is None:
            return violation
        known = found[violation.place.row]
        return replace(violation, place=known.place, excerpt=known.excerpt)

    return tuple(
        replace(
            result,
            violations=tuple(shown(violation) for violation in result.violations),
            allowed=tuple(replace(entry, violation=shown(entry.violation)) for entry in result.allowed),
        )
        for result in results
    )


def cut_notes(outcomes: Sequence[Outcome], most: int) -> Iterator[str]:
    """A sentence for each rule with more violations than are listed."""
    for result in (each.result for each in outcomes):
        if len(result.violations) > most:
            yield f"{result.rule}: the worst {most:,} of {len(result.violations):,} violations are listed"


def _violations(result: RuleResult) -> Iterator[Violation]:
    yield from result.violations
    yield from (entry.violation for entry in result.allowed)


def _excerpt(content: str | list[dict[str, Any]]) -> str:
    """The beginning of a text; of a conversation, of its last message."""
    text = content if isinstance(content, str) else (text_of(content[-1]) if content else "")
    return text[:EXCERPT_LENGTH]
