"""Which effects are told: for each trait the cells that stand out, and what is left of it everywhere else.

Axis letters: T traits, A atoms, C cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from trl_attribution.discovery.effects import Sums
from trl_attribution.discovery.topics import Topics
from trl_attribution.utils.arrays import Bools, Doubles

WHOLE = 0
"""The cell that is the whole dataset comes first."""
_MOST_NARROW = 3
_APART = 4.0
"""How many standard errors a cell's mean has to lie from that of the pairs outside of it to be a place of its own."""
_LEAST_EFFECT = 0.1
_STILL = 2.0
"""How many standard errors have to be left of an effect without the responses' length and format."""
_SIMPLER = 0.05
"""Of two places that explain an effect about as well, the one with fewer conditions is told."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The places that an effect may live in: topics, sources, and topics within sources."""

    members: Doubles
    """``[C, A]``."""
    topics: tuple[int | None, ...]
    """``[C]``; None for all topics."""
    sources: tuple[int | None, ...]
    """``[C]``; None for all sources."""

    @classmethod
    def of(cls, topics: Topics, sources: int) -> Self:
        """The whole, every topic, every source, and every topic within a source; a single source is no place."""
        leaves = topics.members.shape[1]
        members, of_topic, of_source = [], [], []
        for topic, inside in enumerate(topics.members):
            for source in [None, *range(sources)] if sources > 1 else [None]:
                row = np.zeros((leaves, sources))
                row[np.ix_(inside, np.arange(sources) if source is None else [source])] = 1
                members.append(row.ravel())
                of_topic.append(topic or None)
                of_source.append(source)
        return cls(np.array(members), tuple(of_topic), tuple(of_source))

    def conditions(self) -> Doubles:
        """``[C]``: how many of topic and source each cell names."""
        return np.array(
            [(one is not None) + (other is not None) for one, other in zip(self.topics, self.sources, strict=True)],
            dtype=np.float64,
        )


@dataclass(frozen=True, eq=False)
class Place:
    """One effect of one trait."""

    trait: int
    cell: int
    atoms: Bools
    """``[A]``: those that its pairs are in; of the whole, those of other places of the trait are left out."""
    elsewhere: float
    """Effect size outside of it; 0 where it is everywhere."""


def places(scores: Sums, shapeless: Sums, cells: Cells, thresholds: Doubles, fewest: int) -> Iterator[Place]:
    """The effects to tell, trait by trait.

    Args:
        scores: of the atoms.
        shapeless: the same, of scores without what length and format explain.
        cells: the places that were tested.
        thresholds: ``[C, T]``: the size of z that an effect has to reach.
        fewest: pairs that a place has to have.
    """
    for trait in range(scores.total.shape[1]):
        yield from _Trait(trait, scores, shapeless, cells, thresholds[:, trait], fewest).places()


@dataclass(eq=False)
class _Trait:
    trait: int
    scores: Sums
    shapeless: Sums
    cells: Cells
    thresholds: Doubles
    """``[C]``."""
    fewest: int

    def places(self) -> Iterator[Place]:
        left = np.ones(self.cells.members.shape[1])
        for _ in range(_MOST_NARROW):
            found = self._narrowest(left)
            if found is None:
                break
            cell, elsewhere = found
            atoms = (self.cells.members[cell] * left) > 0
            yield Place(self.trait, cell, atoms, elsewhere)
            left = left * ~atoms
        if self._stands(left[None], self.thresholds[[WHOLE]])[0]:
            yield Place(self.trait, WHOLE, left > 0, 0.0)

    def _narrowest(self, left: Doubles) -> tuple[int, float] | None:
        """The cell that stands out most among the atoms that are ``left``, and the effect size outside of it."""
        inside = self.cells.members * left
        within, outside = self._over(inside), self._over(left - inside)
        distance = np.abs(within.mean - outside.mean)
        number, others = np.maximum(within.count, 1), np.maximum(outside.count, 1)
        apart = _ratio(distance, within.variance / number + outside.variance / others)
        stronger = (np.abs(within.mean) > np.abs(outside.mean)) | (within.mean * outside.mean < 0)
        is_apart = stronger & (apart >= _APART) & (outside.count >= self.fewest)
        narrow = self._stands(inside, self.thresholds) & is_apart[:, 0]
        if not narrow.any():
            return None
        # Which place it is, is a matter of one variance for all: the few pairs of a place that are most alike must not
        # win over all of its pairs.
        variance = (number * within.variance + others * outside.variance) / (number + others)
        pull = _ratio(distance, variance * (1 / number + 1 / others))[:, 0]
        merit = np.where(narrow, pull * (1 - _SIMPLER * self.cells.conditions()), -np.inf)
        cell = int(merit.argmax())
        return cell, float(outside.effect[cell, 0])

    def _stands(self, members: Doubles, thresholds: Doubles) -> Bools:
        """``[C]``: whether the effect in each of these cells ``[C, A]`` is one to tell."""
        here, shapeless = self._over(members), members @ self.shapeless.total[:, self.trait]
        spread = np.sqrt(members @ self.shapeless.squares[:, self.trait])
        still = shapeless * np.sign(here.total[:, 0]) >= _STILL * spread
        large = np.abs(here.effect[:, 0]) >= _LEAST_EFFECT
        found: Bools = (here.count[:, 0] >= self.fewest) & (np.abs(here.z[:, 0]) >= thresholds) & large & still
        return found

    def _over(self, members: Doubles) -> Sums:
        own = slice(self.trait, self.trait + 1)
        one = self.scores
        return Sums(*(part[:, own] for part in (one.count, one.total, one.squares, one.towards, one.away))).over(
            members
        )


def _ratio(distance: Doubles, variance: Doubles) -> Doubles:
    """Distances in standard errors; 0 where nothing varies."""
    found: Doubles = distance / np.sqrt(np.where(variance > 0, variance, np.inf))
    return found
