"""What an effect has to reach to be told: beyond all that chance shows, or to be the name of a place that teaches.

A few dozen pairs that all push one way come to a z of no more than the square root of their number, which is little
beside what thousands of tests of traits and places show by chance. So a place is asked first whether it teaches
anything at all, whatever it is called: one test of all its pair vectors. Where it does, it is given a name by less: the
trait whose direction explains it best, if that stands out among the traits of this place alone and is large. Effects
and places share the chance of telling anything at all where labels are random.

Axis letters: N pairs, T traits, C cells, D hidden size, K components, F draws, n pairs of a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from trl_attribution.discovery.effects import Chance, Sums, beyond, by_chance
from trl_attribution.discovery.scan_config import ScanConfig
from trl_attribution.discovery.selecting import WHOLE
from trl_attribution.discovery.traits.panel import Panel, unit
from trl_attribution.utils.arrays import Bools, Doubles, Floats

if TYPE_CHECKING:
    from trl_attribution.discovery.telling import Scanned

_TESTS = 2
"""Of an effect, and of a place: each gets its part of the chance that anything at all is found."""
_COMPONENTS = 64
_RIDGE = 3.0
"""In units of the mean eigenvalue of the pair vectors' second moments."""
_LARGE = 1.0
"""Of a name: how far its place leads, in units of what all pairs' scores spread by. Any place leads along most traits a
little, since a model's directions are not independent."""
_MISNAMED = 0.05
"""Chance that a place that teaches something gets a name where none of the traits is taught."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Directions in one dataset's pair vectors; turning pairs round leaves them as they are."""

    components: Doubles
    """``[D, K]``: along which the pairs vary most."""
    names: Doubles
    """``[T, D]``: the traits' directions, less of what this dataset's pairs vary by whatever they teach."""

    @classmethod
    def of(cls, pairs: Doubles, panel: Panel) -> Self:
        """From a sample of pair vectors ``[n, D]``."""
        from scipy.linalg import eigh

        rows = unit(pairs)
        size = rows.shape[1]
        moments = rows.T @ rows / max(1, len(rows))
        _, components = eigh(moments, subset_by_index=[max(0, size - _COMPONENTS), size - 1])
        penalty = _RIDGE * max(np.trace(moments) / size, 1e-12)
        return cls(components, unit(np.linalg.solve(moments + penalty * np.eye(size), panel.directions.T).T))


@dataclass(frozen=True, eq=False)
class Standing:
    """What random labels show, and what each effect has to reach."""

    chance: Chance
    """Of any effect at all."""
    places: Chance
    """Of a place that teaches anything."""
    taught: Doubles
    """``[C]``: how much each place teaches, in standard deviations of chance."""
    thresholds: Doubles
    """``[C, T]``: the size of z that a trait has to reach to be the name of a place; without end where it is none."""

    @classmethod
    def of(
        cls,
        scanned: Scanned,
        tested: Bools,
        config: ScanConfig,
        on_progress: Callable[[int, int], None],
    ) -> Self:
        """From draws of random labels; ``tested`` is ``[C, T]``."""
        traits, members = scanned.scores.shape[1], scanned.cells.members
        both = np.concatenate([scanned.scores, scanned.components], axis=1)
        drawn: list[float] = []
        within: list[Floats] = []
        powers: list[Floats] = []
        for z in by_chance(both, scanned.atoms, members, config.flips, config.seed, on_progress):
            in_place = np.abs(np.where(tested, z[:, :traits], 0.0)).max(axis=1, initial=0.0)
            drawn.append(float(in_place.max()))
            within.append(in_place)
            powers.append((z[:, traits:] ** 2).sum(axis=1))
        everything = np.ones(scanned.components.shape, dtype=bool)
        whole = Sums.of(scanned.components, everything, scanned.atoms, members.shape[1])
        large = tested.any(axis=1)
        middle, spread = np.mean(powers, axis=0), np.std(powers, axis=0)
        scale = np.where(large & (spread > 0), 1 / np.where(spread > 0, spread, 1.0), 0.0)
        taught = ((whole.over(members).z ** 2).sum(axis=1) - middle) * scale
        each = config.alpha / _TESTS
        chance = Chance(np.array(drawn), each)
        places = Chance(((np.array(powers) - middle) * scale).max(axis=1), each)
        names = beyond(np.array(within), _MISNAMED)
        least = np.where(taught >= places.threshold, names, np.inf)
        return cls(chance, places, taught, np.where(_names(scanned, tested), least[:, None], np.inf))

    def chance_of(self, cell: int, z: float) -> float:
        """The chance that anything at all looks as strong as this effect, or as the place that it is the name of."""
        found = self.chance.of(z)
        if abs(z) < self.chance.threshold:
            found = min(found, self.places.of(self.taught[cell]))
        return min(1.0, _TESTS * found)


def _names(scanned: Scanned, tested: Bools) -> Bools:
    """``[C, T]``: the probed trait that each narrow place teaches most, if much, and its plain scores say too."""
    plain, fits = (
        Sums.of(scores, scanned.applies, scanned.atoms, scanned.cells.members.shape[1]).over(scanned.cells.members)
        for scores in (scanned.scores, scanned.fits)
    )
    spread = np.sqrt(fits.squares[WHOLE] / np.maximum(fits.count[WHOLE], 1))
    probed = np.array([not one.measure for one in scanned.traits], dtype=bool)
    sizes = np.where(tested & probed, fits.z, 0.0)  # what a place leads away from says little of what it is
    first = (sizes > 0) & (sizes == sizes.max(axis=1, initial=0.0, keepdims=True))
    found: Bools = first & (plain.total > 0) & (fits.mean >= _LARGE * spread)
    found[WHOLE] = False
    return found
