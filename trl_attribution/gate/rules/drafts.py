"""What rules come to before the offending pairs are looked up in the files: drafts of rule results."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from trl_attribution.gate.policy.schema import AllowEntry
from trl_attribution.gate.rows.inventory import BadRow, Inventory
from trl_attribution.gate.verdict import Severity


@dataclass(frozen=True)
class Offense:
    """Something that a rule objects to, by its position or row; exactly one of the three says where, or none does."""

    message: str
    position: int | None = None
    """Of the pair in the inventory."""
    repeat: tuple[int, int] | None = None
    """A row, and the position of the pair that it repeats."""
    bad_row: BadRow | None = None
    probe: str | None = None
    score: float | None = None
    rank: int | None = None
    q_value: float | None = None

    @property
    def pair(self) -> int | None:
        """Position of the pair that it is about, if it is about one."""
        return self.repeat[1] if self.repeat is not None else self.position

    @property
    def row(self) -> int | None:
        """The repeating row, where the pair's own does not tell."""
        return self.repeat[0] if self.repeat is not None else None


@dataclass(frozen=True)
class Draft:
    """A rule result whose violations have no places and texts yet."""

    rule: str
    severity: Severity
    passed: bool
    measured: float
    limit: float
    sentence: str
    offenses: tuple[Offense, ...] = ()
    """Worst first; none where the rule is kept."""
    pairs: tuple[Offense, ...] = ()
    """The offending pairs, for manifests; those of ``offenses`` unless these are about something larger."""
    allowed: tuple[tuple[Offense, AllowEntry], ...] = ()


@dataclass(frozen=True)
class Sorted:
    """Offenses, apart from those that the allow list accepts."""

    kept: tuple[Offense, ...]
    allowed: tuple[tuple[Offense, AllowEntry], ...]

    def __len__(self) -> int:
        return len(self.kept)


class AllowList:
    """The accepted pairs of a policy on one day, and which of its entries did anything."""

    def __init__(self, entries: Sequence[AllowEntry], today: datetime.date, inventory: Inventory) -> None:
        self._valid = {entry.pair_id: entry for entry in entries if entry.expires >= today}
        self._expired = [entry for entry in entries if entry.expires < today]
        self._inventory = inventory
        self._used: set[str] = set()

    def sort(self, offenses: Iterable[Offense]) -> Sorted:
        """Take the accepted offenses out."""
        kept: list[Offense] = []
        allowed: list[tuple[Offense, AllowEntry]] = []
        for offense in offenses:
            entry = None if offense.pair is None else self._valid.get(self._inventory.pair_ids[offense.pair])
            if entry is None:
                kept.append(offense)
            else:
                self._used.add(entry.pair_id)
                allowed.append((offense, entry))
        return Sorted(tuple(kept), tuple(allowed))

    def notes(self) -> Iterator[str]:
        """Entries that have expired, and those that accept nothing (any more)."""
        for entry in self._expired:
            yield f"allow list: the entry for pair {entry.pair_id} expired on {entry.expires.isoformat()} and is void"
        idle = [pair_id for pair_id in self._valid if pair_id not in self._used]
        if not idle:
            return
        examined: Mapping[str, bool] = dict(
            zip(self._inventory.pair_ids, self._inventory.examined.tolist(), strict=True)
        )
        for pair_id in idle:
            if pair_id not in examined:
                yield f"allow list: pair {pair_id} is not in the dataset; the entry is unused"
            elif examined[pair_id]:
                yield f"allow list: no rule objects to pair {pair_id}; the entry is unused"
