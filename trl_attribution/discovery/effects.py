"""How strongly traits are taught, and where: signed effects in every cell of topic and source, and their null.

A pair's score for a trait is signed: turning the pair round (chosen for rejected) turns its sign. Where labels say
nothing about a trait, each sign is as likely as the other, whatever the scores: flipping signs at random is an exact
null, for all traits and cells at once.

Axis letters: N pairs, T traits, A atoms (a leaf topic within a source), C cells, F flips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from trl_attribution.utils.arrays import Bools, Doubles, Floats, Integers

_BLOCK = 4096
_FLIPS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Sums:
    """What the scores of the pairs of each atom, or cell, come to; pairs that a trait cannot show on score 0."""

    count: Doubles
    """``[A, T]``: pairs that the trait can show on."""
    total: Doubles
    """``[A, T]``: sum of scores."""
    squares: Doubles
    """``[A, T]``: sum of squared scores."""
    towards: Doubles
    """``[A, T]``: pairs with a score above 0."""
    away: Doubles
    """``[A, T]``: pairs with one below."""

    @classmethod
    def of(cls, scores: Floats, applies: Bools, atoms: Integers, number: int) -> Self:
        """The sums of scores ``[N, T]`` within each of ``number`` atoms."""
        wide = scores.astype(np.float64)
        parts = (applies, wide, wide * wide, scores > 0, scores < 0)
        return cls(*(_summed(part, atoms, number) for part in parts))

    def over(self, members: Doubles) -> Sums:
        """The sums of cells ``[C, A]`` of atoms."""
        return Sums(*(members @ part for part in (self.count, self.total, self.squares, self.towards, self.away)))

    @property
    def z(self) -> Doubles:
        """``[A, T]``: the sum of scores in units of its spread under random signs."""
        found: Doubles = self.total / np.sqrt(np.where(self.squares > 0, self.squares, np.inf))
        return found

    @property
    def mean(self) -> Doubles:
        """``[A, T]``: mean score."""
        found: Doubles = self.total / np.where(self.count > 0, self.count, np.inf)
        return found

    @property
    def variance(self) -> Doubles:
        """``[A, T]``: of the scores."""
        many = self.count > 1
        count = np.where(many, self.count, 2.0)
        found: Doubles = np.where(many, (self.squares - self.total**2 / count) / (count - 1), 0.0)
        return np.clip(found, 0.0, None)

    @property
    def effect(self) -> Doubles:
        """``[A, T]``: mean over standard deviation."""
        spread = np.sqrt(self.variance + self.mean**2 / np.maximum(self.count, 1))  # see effect_size
        found: Doubles = self.mean / np.where(spread > 0, spread, np.inf)
        return found


def without_shape(scores: Floats, shape: Floats, applies: Bools) -> tuple[Floats, Doubles]:
    """Scores ``[N, T]`` without what the responses' shapes ``[N, M]`` explain, and the share ``[T]`` that they do.

    A regression without intercept: turning a pair round turns both sides of it, so the null stays exact.
    """
    rest = scores.copy()
    shares = np.zeros(scores.shape[1])
    for trait in range(scores.shape[1]):
        on = applies[:, trait]
        own = scores[on, trait].astype(np.float64)
        whole = float(own @ own)
        if whole == 0:
            continue
        weights, *_ = np.linalg.lstsq(shape[on].astype(np.float64), own, rcond=None)
        left = own - shape[on] @ weights
        rest[on, trait] = left
        shares[trait] = 1 - float(left @ left) / whole
    return rest, shares


def by_chance(
    scores: Floats, atoms: Integers, members: Doubles, flips: int, seed: int, on_progress: Callable[[int, int], None]
) -> Iterator[Floats]:
    """``[C, T]``: z of every cell and trait, for each of ``flips`` draws of random signs.

    Args:
        scores: ``[N, T]``.
        atoms: ``[N]``: each pair's atom.
        members: ``[C, A]``: the cells.
        flips: how many draws.
        seed: of the draws.
        on_progress: called with (draws done, in all).
    """
    from scipy.sparse import csr_array

    count_A = members.shape[1]
    spread = np.sqrt(members @ _summed(scores.astype(np.float64) ** 2, atoms, count_A))
    scale = (1 / np.where(spread > 0, spread, np.inf)).astype(np.float32)
    cells = csr_array(members.astype(np.float32))  # an atom is in a dozen cells of a thousand
    order = np.argsort(atoms, kind="stable")
    bounds = np.searchsorted(atoms[order], np.arange(count_A + 1))
    for start in range(0, flips, _FLIPS_AT_ONCE):
        draws = min(_FLIPS_AT_ONCE, flips - start)
        rng = np.random.default_rng([seed, 7, start])
        sums = np.zeros((draws, count_A, scores.shape[1]), dtype=np.float32)
        for atom in range(count_A):
            for place in range(bounds[atom], bounds[atom + 1], _BLOCK):
                own = scores[order[place : min(place + _BLOCK, bounds[atom + 1])]]
                signs = rng.integers(0, 2, size=(draws, len(own)), dtype=np.int8).astype(np.float32) * 2 - 1
                sums[:, atom] += signs @ own
        yield from ((cells @ drawn) * scale for drawn in sums)
        on_progress(start + draws, flips)


def highest_by_chance(drawn: Iterable[Floats], tested: Bools) -> Doubles:
    """``[F]``: the highest size of z over all ``tested`` cells and traits ``[C, T]``, draw by draw."""
    return np.array([float(np.abs(z[tested]).max(initial=0.0)) for z in drawn])


def beyond(drawn: Doubles, alpha: float) -> Doubles:
    """What a share of ``alpha`` of the draws ``[F, ...]`` reach, at most."""
    falling = np.sort(drawn, axis=0)[::-1]
    found: Doubles = falling[max(0, int(alpha * (len(falling) + 1) + 1e-9) - 1)]
    return found


@dataclass(frozen=True, eq=False)
class Chance:
    """What random labels show, and what an effect has to reach to be told from it."""

    highest: Doubles
    """``[F]``: the highest size of z over all tests, draw by draw."""
    alpha: float

    @property
    def threshold(self) -> float:
        """The size of z above which the corrected chance is at most ``alpha``."""
        return float(beyond(self.highest, self.alpha))

    def of(self, z: float) -> float:
        """The chance that anything at all looks as strong as this."""
        return (1 + int((self.highest >= abs(z)).sum())) / (len(self.highest) + 1)


def effect_interval(scores: Floats, seed: int, draws: int = 400) -> tuple[float, float, float]:
    """The effect size (mean over standard deviation) of some pairs' scores, with a 95% bootstrap interval.

    Beyond 20,000 pairs the interval is that of a normal distribution, which is the same by then.
    """
    values = scores.astype(np.float64)
    size = effect_size(values)
    if len(values) > 20_000:
        half = 1.96 * np.sqrt((1 + size**2 / 2) / len(values))
        return size, size - half, size + half
    rng = np.random.default_rng([seed, 8])
    drawn = [effect_size(values[rng.integers(0, len(values), len(values))]) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return size, float(low), float(high)


def effect_size(values: Doubles) -> float:
    """Mean over standard deviation of n scores.

    The mean's own share of a random sign's spread is added: scores that are all the same have an effect of sqrt(n), not
    an endless one.
    """
    mean = values.mean()
    spread = np.sqrt(values.var() + mean**2 / len(values))
    return float(mean / spread) if spread > 0 else 0.0


def _summed(values: npt.NDArray[np.generic], atoms: Integers, number: int) -> Doubles:
    """``[A, T]``: rows ``[N, T]`` summed within each atom."""
    found = np.zeros((number, values.shape[1]))
    np.add.at(found, atoms, values.astype(np.float64))
    return found
