"""Effects that other effects explain: what is left of one where pairs that push towards another are taken out of it.

A model's directions are not independent: a pair that answers where the other side refuses moves along many of them. A
place where one trait is told must not tell ten others that are no more than its shadows. The regressions have no
intercept, so that turning pairs round turns all of it and the null stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trl_attribution.utils.arrays import Floats, Integers

_MOST = 3
"""Other effects that one is measured against: those that are most alike."""
_OVERLAP = 0.2
"""Share of an effect's pairs that another has to have for a say."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One effect: a trait on some pairs."""

    trait: int
    members: Integers
    """Places of its pairs."""
    sign: float
    rank: tuple[float, ...]
    """Smallest first: which effects explain and which are explained."""
    is_fact: bool = False
    """Whether it is told whatever else is: what is counted on the text needs no model to be believed."""


def unexplained(candidates: Sequence[Candidate], scores: Floats, threshold: float) -> list[int]:
    """Places of the candidates that reach ``threshold`` beside those before them; ``scores`` are ``[N, T]``."""
    kept: list[int] = []
    for place in sorted(range(len(candidates)), key=lambda one: candidates[one].rank):
        own = candidates[place]
        if own.is_fact:
            kept.append(place)
            continue
        others = _others(own, [candidates[one] for one in kept], scores)
        values = scores[own.members, own.trait].astype(np.float64)
        if others:
            told = scores[own.members][:, others].astype(np.float64)
            weights, *_ = np.linalg.lstsq(told, values, rcond=None)
            values = values - told @ weights
        spread = np.sqrt(values @ values)
        if spread > 0 and own.sign * values.sum() / spread >= threshold:
            kept.append(place)
    return sorted(kept)


def _others(own: Candidate, kept: Sequence[Candidate], scores: Floats) -> list[int]:
    """The traits told on many of its pairs whose scores there are most like its own."""
    values = scores[own.members, own.trait].astype(np.float64)
    alike: dict[int, float] = {}
    for one in kept:
        shared = len(np.intersect1d(one.members, own.members, assume_unique=True))
        if one.trait == own.trait or shared < _OVERLAP * len(own.members):
            continue
        theirs = scores[own.members, one.trait].astype(np.float64)
        length = np.sqrt((theirs @ theirs) * (values @ values))
        alike[one.trait] = abs(float(theirs @ values)) / length if length > 0 else 0.0
    return sorted(alike, key=lambda trait: -alike[trait])[:_MOST]
