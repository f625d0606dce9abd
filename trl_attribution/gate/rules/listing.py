"""Looks the violations that are listed up in the dataset: their file and line, and an excerpt of their texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trl_attribution.gate.rules.docket import Docket, Outcome
from trl_attribution.gate.verdict import EXCERPT_LENGTH, Excerpt, Place, RuleResult, Statement, Violation
from trl_attribution.pairs.messages import text_of


@dataclass(frozen=True)
class _Found:
    place: Place
    excerpt: Excerpt


@dataclass(frozen=True)
class Listed:
    """What a verdict shows, with places and excerpts."""

    rules: tuple[RuleResult, ...]
    statements: tuple[Statement, ...]


def listed(outcomes: Sequence[Outcome], statements: Sequence[Statement], docket: Docket, most: int) -> Listed:
    """The results with the worst ``most`` violations of each, and the statements, read from the dataset once more.

    Raises:
        DataError: the dataset has changed since it was read.
    """
    results = [replace(each.result, violations=each.result.violations[:most]) for each in outcomes]
    violations = [violation for result in results for violation in _violations(result)]
    violations += [violation for statement in statements for violation in statement.highest]
    found = _found(violations, docket)

    def shown(violations: Iterable[Violation]) -> tuple[Violation, ...]:
        return tuple(_shown(violation, found) for violation in violations)

    rules = tuple(
        replace(
            result,
            violations=shown(result.violations),
            allowed=tuple(replace(entry, violation=_shown(entry.violation, found)) for entry in result.allowed),
        )
        for result in results
    )
    return Listed(rules, tuple(replace(each, highest=shown(each.highest)) for each in statements))


def _found(violations: Sequence[Violation], docket: Docket) -> dict[int, _Found]:
    """The place and texts of each row that a violation is about."""
    wanted = {
        violation.place.row: violation.pair_id
        for violation in violations
        if violation.pair_id is not None and violation.place is not None
    }
    return {
        row.index: _Found(
            Place.of(row.index, row.file, row.line),
            Excerpt(*map(_excerpt, pair.shown)),
        )
        for row, pair in docket.inventory.reader.again(wanted, wanted.__getitem__)
    }


def _shown(violation: Violation, found: Mapping[int, _Found]) -> Violation:
    if violation.pair_id is None or violation.place is None:
        return violation
    known = found[violation.place.row]
    return replace(violation, place=known.place, excerpt=known.excerpt)


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
