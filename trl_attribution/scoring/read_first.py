"""Which pairs a person reads first, and how many: a sample with the most places where the scores leave most doubt.

A pair that is like the examples with likelihood p is in doubt by ``sqrt(p (1 - p))``. The pairs that reach the
threshold are cut by score into strata of equal doubt in sum, so that those near the threshold lie in narrow strata and
the top ones in a wide one; a further stratum, with as much doubt, holds the pairs right beneath the threshold. As many
pairs from each, drawn at random, is Neyman's allocation: of all samples of that size, it leaves the least doubt about
how many of the flagged pairs are wrong.

Axis letters: N scored pairs, S pairs of the strata.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trl_attribution.scoring.prevalence import Prevalence
from trl_attribution.utils.arrays import Doubles, Integers

MARGIN = 0.15
"""The share of the flagged pairs that is wrong is confirmed to within this, with 95% confidence."""
TOP = 10
"""Read where nothing is flagged, and at the least."""
STRATA = 4
"""Of the pairs that reach the threshold."""
_DOUBT = (0.05, 0.95)
"""Likelihoods beyond these are not relied on: the mixture is a model."""
_DEVIATIONS = 1.959963984540054


@dataclass(frozen=True)
class ReadFirst:
    """Pairs to read first, in order, and the strata that they are a sample of."""

    positions: Integers
    """The pairs to read, by position among the N scored ones; every beginning of them takes strata in turn."""
    strata: tuple[Integers, ...] = ()
    """Positions of the flagged pairs by stratum, highest scores first; none where nothing is flagged."""
    beneath: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Positions of the stratum beneath the threshold."""

    def __len__(self) -> int:
        return len(self.positions)


def read_first(
    scores: npt.NDArray[np.floating],
    flagged: npt.NDArray[np.bool_],
    pair_ids: Sequence[str] | pa.Array,
    prevalence: Prevalence | None,
) -> ReadFirst:
    """Choose them among ``scores`` [N], of which ``flagged`` [N] are flagged.

    Within a stratum the order is that of the pair ids, which are digests: at random, and the same for everybody. Where
    nothing is flagged, or nothing is known to reckon with, it is the :data:`TOP` pairs.
    """
    falling = np.argsort(-scores, kind="stable")
    if prevalence is None or not flagged.any():
        return ReadFirst(falling[:TOP])
    likely = np.clip(prevalence.likely_of(scores), *_DOUBT)
    doubt = np.sqrt(likely * (1 - likely))
    inside, outside = falling[flagged[falling]], falling[~flagged[falling] & (scores[falling] > 0)]
    cut = np.cumsum(doubt[inside])
    place = np.minimum((cut * STRATA / cut[-1] - 1e-9).astype(np.int64), STRATA - 1)
    beneath = outside[: int(np.searchsorted(np.cumsum(doubt[outside]), cut[-1] / STRATA)) + 1][: len(inside)]
    strata = tuple(inside[place == number] for number in range(STRATA) if (place == number).any())
    each = math.ceil(_enough(doubt[inside]) / len(strata))
    sample = [_at_random(one, pair_ids)[:each] for one in (*strata, beneath)]
    return ReadFirst(_in_turn(sample), strata, beneath)


def _enough(doubt: Doubles) -> int:
    """How many of the flagged pairs say how many of them are wrong to within the margin."""
    variance = (MARGIN * len(doubt) / _DEVIATIONS) ** 2
    wanted = math.ceil(float(doubt.sum()) ** 2 / (variance + float((doubt**2).sum())))
    return min(len(doubt), max(TOP, wanted))


def _at_random(positions: Integers, pair_ids: Sequence[str] | pa.Array) -> Integers:
    if isinstance(pair_ids, (pa.Array, pa.ChunkedArray)):
        names: Sequence[str] = pair_ids.take(pa.array(positions)).to_pylist()
    else:
        names = [pair_ids[int(position)] for position in positions]
    return positions[sorted(range(len(positions)), key=lambda place: names[place])]


def _in_turn(parts: Sequence[Integers]) -> Integers:
    turn = np.concatenate([np.arange(len(part)) for part in parts])
    return np.concatenate(parts)[np.argsort(turn, kind="stable")].astype(np.int64)
