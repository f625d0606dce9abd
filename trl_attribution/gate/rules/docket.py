"""What the rules judge, and what they come to."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from trl_attribution.gate.policy.rules import Limited
from trl_attribution.gate.policy.schema import AllowEntry
from trl_attribution.gate.rows.inventory import Inventory
from trl_attribution.gate.verdict import Allowed, Place, RuleResult, Violation
from trl_attribution.utils.arrays import Integers


@dataclass(frozen=True)
class Sorted:
    """Violations, apart from those that the allow list accepts."""

    kept: tuple[Violation, ...]
    allowed: tuple[Allowed, ...] = ()

    def __len__(self) -> int:
        return len(self.kept)


@dataclass(frozen=True)
class Outcome:
    """What a rule comes to."""

    result: RuleResult
    """With all violations; those of pairs have a row, and no file or text yet."""
    pairs: tuple[Violation, ...] = ()
    """The offending pairs, for manifests."""


def outcome(
    name: str, rule: Limited, passed: bool, measured: float, limit: float, sentence: str, found: Sorted
) -> Outcome:
    """A rule's outcome; one that is kept has no violations: what it counts is within the limit."""
    kept = () if passed else found.kept
    return Outcome(RuleResult(name, rule.severity, passed, measured, limit, sentence, kept, found.allowed), kept)


class AllowList:
    """The accepted pairs of a policy on one day, and which of its entries did anything."""

    def __init__(self, entries: Sequence[AllowEntry], today: datetime.date) -> None:
        self._valid = {entry.pair_id: entry for entry in entries if entry.expires >= today}
        self._expired = [entry for entry in entries if entry.expires < today]
        self._used: set[str] = set()

    def sort(self, violations: Iterable[Violation]) -> Sorted:
        """Take the accepted violations out."""
        kept: list[Violation] = []
        allowed: list[Allowed] = []
        for violation in violations:
            entry = self._valid.get(violation.pair_id or "")
            if entry is None:
                kept.append(violation)
            else:
                self._used.add(entry.pair_id)
                allowed.append(Allowed(violation, entry.reason, entry.expires.isoformat()))
        return Sorted(tuple(kept), tuple(allowed))

    def notes(self, inventory: Inventory) -> Iterator[str]:
        """Entries that have expired, and those that accept nothing (any more)."""
        for entry in self._expired:
            yield f"allow list: the entry for pair {entry.pair_id} expired on {entry.expires.isoformat()} and is void"
        idle = [pair_id for pair_id in self._valid if pair_id not in self._used]
        examined = dict(zip(inventory.pair_ids, inventory.examined.tolist(), strict=True)) if idle else {}
        for pair_id in idle:
            if pair_id not in examined:
                yield f"allow list: pair {pair_id} is not in the dataset; the entry is unused"
            elif examined[pair_id]:
                yield f"allow list: no rule objects to pair {pair_id}; the entry is unused"


@dataclass(frozen=True)
class Docket:
    """What the rules judge: the E examined pairs, and how to speak of them."""

    inventory: Inventory
    examined: Integers
    """[E], positions, rising."""
    allow: AllowList
    noun: str
    """``pairs``, or ``new pairs`` where only those are examined."""

    @property
    def total(self) -> str:
        """Such as "500 new pairs"."""
        return f"{len(self.examined):,} {self.noun}"

    def violation(self, message: str, position: int, row: int | None = None) -> Violation:
        """An offending pair, by its position in the inventory; ``row`` is the one at fault if not its own."""
        inventory = self.inventory
        place = Place(None, None, int(inventory.rows[position]) if row is None else row)
        return Violation(message, inventory.pair_ids[position], place)
