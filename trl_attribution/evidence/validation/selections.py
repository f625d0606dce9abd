"""Which pairs, or which sources, a cell changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trl_attribution.errors import SettingsError
from trl_attribution.evidence.validation.cells import BASELINE, Cell
from trl_attribution.evidence.validation.plan import ValidationPlan
from trl_attribution.evidence.validation.rankings import Ranking
from trl_attribution.manifest.weights import score_weights
from trl_attribution.pairs import Pair, whole_text

NEIGHBORS = 5
"""A length-matched pair is drawn from so many of the nearest in length."""
_STREAMS = {"random": 1, "length_matched_random": 2}


@dataclass(frozen=True)
class Chosen:
    """What one cell changes."""

    pair_ids: frozenset[str]
    sources: tuple[str, ...] = ()
    """The sources that are dropped, for ``drop_sources``."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """By pair, for ``weight``."""


class Selector:
    """Chooses pairs of one dataset by the rankings of one plan.

    Raises:
        SettingsError: a size is more than there is, or a ranking misses pairs of the dataset.
    """

    def __init__(self, pairs: Sequence[Pair], rankings: Mapping[str, Ranking], plan: ValidationPlan) -> None:
        self._pairs = list({pair.pair_id: pair for pair in reversed(pairs)}.values())[::-1]
        self._ids = [pair.pair_id for pair in self._pairs]
        self._rankings = {name: self._checked(ranking) for name, ranking in rankings.items()}
        self._sources = sorted({pair.source for pair in self._pairs})
        self._flagged = {name: one.flagged for name, one in rankings.items()}
        self._scores = {name: dict(zip(one.pair_ids, one.scores, strict=True)) for name, one in rankings.items()}
        sizes = [*plan.counts, *(self._by_rule(name) for name in rankings if "rule" in plan.sizes)]
        if sizes and max(sizes) >= len(self._ids):
            raise SettingsError(f"sizes: {max(sizes)} of {len(self._ids)} different pairs leave nothing to compare")
        if "drop_sources" in plan.interventions and max(plan.source_sizes) >= len(self._sources):
            raise SettingsError(
                f"source_sizes: {max(plan.source_sizes)} of {len(self._sources)} sources leave nothing to train on"
            )

    def choose(self, cell: Cell) -> Chosen:
        """The pairs that ``cell`` changes: the same for the same cell, dataset and ranking, on every machine."""
        condition = cell.condition
        if condition == BASELINE:
            return Chosen(frozenset())
        if condition.intervention == "drop_sources":
            sources = self._choose_sources(cell)
            return Chosen(frozenset(pair.pair_id for pair in self._pairs if pair.source in sources), tuple(sources))
        size = condition.size or self._by_rule(condition.ranking)
        found = self._choose_pairs(cell, size)
        weights = self._top_weights(condition.ranking, size) if condition.intervention == "weight" else []
        return Chosen(frozenset(found), weights=dict(zip(found, weights, strict=bool(weights))))

    def _choose_pairs(self, cell: Cell, size: int) -> list[str]:
        condition = cell.condition
        if condition.selection == "random":
            return _drawn(self._ids, size, cell)
        ranked = self._rankings[condition.ranking]
        if condition.selection == "bottom":
            return ranked[-size:]
        top = ranked[:size]
        return top if condition.selection == "top" else self._matched(top, cell)

    def _top_weights(self, ranking: str, size: int) -> list[float]:
        """The weights of the top pairs, by score. Controls get the same ones, so that as much is taken away.

        Raises:
            SettingsError: they are all 1.
        """
        weights = score_weights([self._scores[ranking][pair_id] for pair_id in self._rankings[ranking][:size]])
        if all(weight == 1 for weight in weights):
            raise SettingsError(
                f"interventions: the top {size} pairs of rankings.{ranking} have one score, or none above 0, so that "
                "weight would change nothing. Take another size, or leave weight out (leave_out: ['weight-*'])."
            )
        return weights

    def _by_rule(self, ranking: str) -> int:
        """How many pairs the default rule flags."""
        flagged = self._flagged[ranking]
        if not flagged:
            raise SettingsError(
                f"sizes: by rankings.{ranking} the default rule flags no pair of this dataset, so there is nothing to "
                "filter or flip. Give a number of pairs instead of rule."
            )
        return flagged

    def _checked(self, ranking: Ranking) -> list[str]:
        known = set(self._ids)
        ranked = [pair_id for pair_id in dict.fromkeys(ranking.pair_ids) if pair_id in known]
        missing = len(known) - len(ranked)
        if missing:
            raise SettingsError(
                f"rankings.{ranking.name}: {missing} of {len(known)} pairs of the dataset have no score. "
                "Score the whole dataset."
            )
        return ranked

    def _choose_sources(self, cell: Cell) -> list[str]:
        """Sources by the mean percentile of their pairs in the ranking, or at random."""
        condition = cell.condition
        if condition.selection == "random":
            return _drawn(self._sources, condition.size, cell)
        place = {pair_id: place for place, pair_id in enumerate(self._rankings[condition.ranking])}
        mean = {
            source: float(np.mean([place[pair.pair_id] for pair in self._pairs if pair.source == source]))
            for source in self._sources
        }
        order = sorted(self._sources, key=lambda source: (mean[source], source))
        return order[: condition.size] if condition.selection == "top" else order[-condition.size :]

    def _matched(self, top: Sequence[str], cell: Cell) -> list[str]:
        """For each top pair another one, not of the top, whose two responses are about as long."""
        lengths = {pair.pair_id: (_log_length(pair.chosen), _log_length(pair.rejected)) for pair in self._pairs}
        others = [pair_id for pair_id in self._ids if pair_id not in set(top)]
        if len(others) < len(top):
            raise SettingsError(
                f"sizes: {len(top)} of {len(self._ids)} pairs leave too few to match by length; take at most half"
            )
        of_others = np.array([lengths[pair_id] for pair_id in others])
        free = np.ones(len(others), dtype=bool)
        generator = _generator(cell)
        found = []
        for pair_id in generator.permutation(np.array(top, dtype=object)):
            distance = np.abs(of_others - np.array(lengths[str(pair_id)])).sum(axis=1)
            distance[~free] = np.inf
            nearest = np.argsort(distance, kind="stable")[: min(NEIGHBORS, int(free.sum()))]
            place = int(generator.choice(nearest))
            free[place] = False
            found.append(others[place])
        return found


def _drawn(items: Sequence[str], count: int, cell: Cell) -> list[str]:
    """``count`` different items; filter and flip of one seed and size draw the same ones."""
    places = _generator(cell).permutation(len(items))[:count]
    return [items[int(place)] for place in places]


def _generator(cell: Cell) -> np.random.Generator:
    return np.random.default_rng([cell.seed, cell.condition.size, _STREAMS[cell.condition.selection]])


def _log_length(response: str | Sequence[dict[str, Any]]) -> float:
    return math.log1p(len(whole_text(response)))
