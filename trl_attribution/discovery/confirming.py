"""Which clusters are there, and not only in the items that they were made from.

Axis letters: P items, A items that clusters are made from, B held-out items, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trl_attribution.discovery.clustering import Candidate, candidates
from trl_attribution.discovery.config import DiscoveryConfig
from trl_attribution.scoring import holm
from trl_attribution.utils.arrays import Doubles, Floats, Integers

SUBSAMPLE = 0.8


@dataclass(frozen=True)
class FoundCluster:
    """One tight cluster of the first half of the items, and what the other half says of it."""

    fit: Integers
    """Places among the P items: the members that it was made from."""
    towards: Integers
    """Held-out items that join it."""
    against: int
    """Held-out items that would join it if their direction were turned round."""
    closeness: Doubles
    """Cosine of every member, ``fit`` then ``towards``, with the cluster's center (its own part left out)."""
    tightness: float
    held_out_tightness: float | None
    """Mean cosine between the held-out members; None for fewer than two."""
    stability: float
    p_value: float
    """One-sided sign test on the held-out items."""
    adjusted_p: float
    """Holm's, over the clusters that were tested; 1 for one that was not."""
    fault: str | None
    """Why it is not reported: ``unstable`` or ``not confirmed``; None if it is."""

    @property
    def members(self) -> Integers:
        """All members, in the order of ``closeness``."""
        return np.concatenate([self.fit, self.towards])


@dataclass(frozen=True)
class Split:
    """The items in two random halves."""

    fit: Integers
    held_out: Integers


def split_items(places: Integers, seed: int) -> Split:
    """Halves of ``places``, drawn by ``seed``; the first is the larger of two uneven ones."""
    order = np.random.default_rng(seed).permutation(places)
    middle = (len(order) + 1) // 2
    return Split(np.sort(order[:middle]), np.sort(order[middle:]))


def find_clusters(cosine: Floats, split: Split, config: DiscoveryConfig) -> list[FoundCluster]:
    """Every tight cluster of the first half, tested on the other; the ones to report have no ``fault``.

    Args:
        cosine: ``[P, P]`` between the items' rows.
        split: the halves; items in neither are left out.
        config: what a cluster has to be.

    A held-out item goes to the cluster whose center it has the largest absolute cosine with, and joins it (or, with a
    negative cosine, stands against it) if that is large enough. Where nothing was learned, an item is as likely as the
    same item turned round: before and after, or chosen and rejected, are then names only. Turning one round changes the
    sign of its cosines and nothing else, so the number that join is binomial with chance 1/2, exactly, whatever
    structure the items have. That is the null of flipped signs, in closed form. Holm's correction over the clusters
    keeps the chance of reporting anything that is not there below ``config.alpha``.
    """
    inner = cosine[np.ix_(split.fit, split.fit)]
    found = candidates(inner, config)
    if not found:
        return []
    stability = stabilities(inner, found, config)
    stable = [place for place, value in enumerate(stability) if value >= config.min_stability]
    tests = _hold_out(cosine, split, found, config, stable)
    adjusted = np.ones(len(found))
    adjusted[stable] = holm([tests[place].p_value for place in stable])
    return [
        _cluster(cosine, split, one, tests[place], stability[place], float(adjusted[place]), config)
        for place, one in enumerate(found)
    ]


def stabilities(cosine: Floats, found: Sequence[Candidate], config: DiscoveryConfig) -> list[float]:
    """For each cluster the mean, over random 80% of the items, of its best Jaccard index with what they give."""
    generator = np.random.default_rng([config.seed, 1])
    count = len(cosine)
    total = np.zeros(len(found))
    fewest = max(2, int(config.min_size * SUBSAMPLE))
    for _ in range(config.resamples):
        kept = np.sort(generator.choice(count, size=max(2, round(SUBSAMPLE * count)), replace=False))
        again = [set(kept[one.members].tolist()) for one in candidates(cosine[np.ix_(kept, kept)], config, fewest)]
        there = set(kept.tolist())
        for place, one in enumerate(found):
            own = there.intersection(one.members.tolist())
            total[place] += max((len(own & other) / len(own | other) for other in again), default=0.0)
    return [float(value) for value in total / config.resamples]


@dataclass(frozen=True)
class _Test:
    towards: Integers
    closeness: Doubles
    against: int
    p_value: float


def _hold_out(
    cosine: Floats, split: Split, found: Sequence[Candidate], config: DiscoveryConfig, stable: Sequence[int]
) -> list[_Test]:
    """The held-out items dealt to the stable clusters; a cluster that is not stable gets none."""
    nothing = _Test(np.empty(0, dtype=np.int64), np.empty(0), 0, 1.0)
    tests = [nothing] * len(found)
    if not stable or not len(split.held_out):
        return tests
    held_KB = np.stack([_to_center(cosine, split, found[place]) for place in stable])
    best_B = np.abs(held_KB).argmax(axis=0)
    own_B = held_KB[best_B, np.arange(held_KB.shape[1])]
    for row, place in enumerate(stable):
        # As close as the farthest of its own members, and never farther than tight.
        least = max(config.tightness, float(_own_closeness(cosine, split, found[place]).min()))
        joins = (best_B == row) & (own_B >= least)
        against = int(((best_B == row) & (own_B <= -least)).sum())
        tests[place] = _Test(split.held_out[joins], own_B[joins], against, _sign_test(int(joins.sum()), against))
    return tests


def _sign_test(towards: int, against: int) -> float:
    from scipy.stats import binom

    return float(binom.sf(towards - 1, towards + against, 0.5)) if towards + against else 1.0


def _to_center(cosine: Floats, split: Split, one: Candidate) -> Doubles:
    """Cosine ``[B]`` of every held-out item's row with the mean row of the cluster."""
    members = split.fit[one.members]
    length = np.sqrt(cosine[np.ix_(members, members)].astype(np.float64).sum())
    values: Doubles = cosine[np.ix_(split.held_out, members)].astype(np.float64).sum(axis=1) / length
    return values


def _own_closeness(cosine: Floats, split: Split, one: Candidate) -> Doubles:
    """Cosine of every member's row with the mean row of the other members."""
    members = split.fit[one.members]
    inner = cosine[np.ix_(members, members)].astype(np.float64)
    sums = inner.sum(axis=1)
    rest = np.sqrt(np.clip(inner.sum() - 2 * sums + 1, 1e-12, None))
    values: Doubles = np.clip((sums - 1) / rest, -1.0, 1.0)
    return values


def _cluster(
    cosine: Floats,
    split: Split,
    one: Candidate,
    test: _Test,
    stability: float,
    adjusted: float,
    config: DiscoveryConfig,
) -> FoundCluster:
    fault = None
    if stability < config.min_stability:
        fault = "unstable"
    elif adjusted > config.alpha:
        fault = "not confirmed"
    return FoundCluster(
        fit=split.fit[one.members],
        towards=test.towards,
        against=test.against,
        closeness=np.concatenate([_own_closeness(cosine, split, one), test.closeness]),
        tightness=one.tightness,
        held_out_tightness=_mean_cosine(cosine, test.towards),
        stability=stability,
        p_value=test.p_value,
        adjusted_p=adjusted,
        fault=fault,
    )


def _mean_cosine(cosine: Floats, members: npt.NDArray[np.int64]) -> float | None:
    count = len(members)
    if count < 2:
        return None
    inner = cosine[np.ix_(members, members)].astype(np.float64)
    return float((inner.sum() - np.trace(inner)) / (count * (count - 1)))
