"""Looks the offending pairs up in the dataset: their file and line, and an excerpt of their texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl_attribution.gate.rows.inventory import Inventory, rows_again
from trl_attribution.gate.rows.places import Places
from trl_attribution.gate.rules.drafts import Draft, Offense
from trl_attribution.gate.verdict import EXCERPT_LENGTH, Allowed, Excerpt, Place, RuleResult, Violation
from trl_attribution.pairs.messages import text_of


@dataclass(frozen=True)
class Results:
    """The rule results of a verdict, and what to say about them."""

    rules: tuple[RuleResult, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    place: Place
    excerpt: Excerpt


def finished(drafts: Sequence[Draft], inventory: Inventory, places: Places, most: int) -> Results:
    """Rule results with the worst ``most`` violations of each, read from the dataset once more.

    Raises:
        DataError: the dataset has changed since it was read.
    """
    listed = [offense for draft in drafts for offense in _listed(draft, most)]
    found = _look_up(listed, inventory, places)
    notes = [
        f"{draft.rule}: the worst {most:,} of {len(draft.offenses):,} violations are listed"
        for draft in drafts
        if len(draft.offenses) > most
    ]
    return Results(tuple(_result(draft, most, inventory, places, found) for draft in drafts), tuple(notes))


def _listed(draft: Draft, most: int) -> Iterator[Offense]:
    yield from draft.offenses[:most]
    yield from (offense for offense, _ in draft.allowed)


def _look_up(offenses: Sequence[Offense], inventory: Inventory, places: Places) -> dict[int, _Found]:
    """By row of the dataset, where it stands and what it says."""
    wanted = {
        row: inventory.pair_ids[offense.pair]
        for offense in offenses
        if (row := _row(offense, inventory)) is not None and offense.pair is not None
    }
    return {
        row.index: _Found(
            places.of(row.index, row.location),
            Excerpt(_excerpt(pair.prompt), _excerpt(pair.chosen), _excerpt(pair.rejected)),
        )
        for row, pair in rows_again(inventory.reader, wanted)
    }


def _row(offense: Offense, inventory: Inventory) -> int | None:
    if offense.row is not None:
        return offense.row
    return None if offense.pair is None else int(inventory.rows[offense.pair])


def _result(draft: Draft, most: int, inventory: Inventory, places: Places, found: Mapping[int, _Found]) -> RuleResult:
    def violation(offense: Offense) -> Violation:
        return _violation(offense, inventory, places, found)

    return RuleResult(
        rule=draft.rule,
        severity=draft.severity,
        passed=draft.passed,
        measured=draft.measured,
        limit=draft.limit,
        sentence=draft.sentence,
        violations=tuple(violation(offense) for offense in draft.offenses[:most]),
        allowed=tuple(
            Allowed(violation(offense), entry.reason, entry.expires.isoformat()) for offense, entry in draft.allowed
        ),
    )


def _violation(offense: Offense, inventory: Inventory, places: Places, found: Mapping[int, _Found]) -> Violation:
    row = _row(offense, inventory)
    known = None if row is None else found[row]
    place = None if known is None else known.place
    if offense.bad_row is not None:
        place = places.of(offense.bad_row.row, offense.bad_row.location)
    return Violation(
        message=offense.message,
        pair_id=None if offense.pair is None else inventory.pair_ids[offense.pair],
        place=place,
        probe=offense.probe,
        score=offense.score,
        rank=offense.rank,
        q_value=offense.q_value,
        excerpt=None if known is None else known.excerpt,
    )


def _excerpt(content: str | list[dict[str, Any]]) -> str:
    """The beginning of a text; of a conversation, of its last message."""
    text = content if isinstance(content, str) else (text_of(content[-1]) if content else "")
    return text[:EXCERPT_LENGTH]
