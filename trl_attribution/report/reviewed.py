"""What reviewers' decisions say of an audit's estimate: how many flagged pairs are right, and how many there are.

Axis letters: N scored pairs, H strata, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trl_attribution.errors import ManifestError
from trl_attribution.manifest.decisions import ReviewDecision, ReviewDecisions
from trl_attribution.report.agreement import verdicts
from trl_attribution.scoring import Outcome
from trl_attribution.scoring.prevalence import Interval, Prevalence
from trl_attribution.utils.text import counted

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_DRAWS = 4000
_PRIOR = 2.0
"""The mixture's opinion of a stratum counts as so many reviewed pairs."""
_OPINION = (0.05, 0.95)
_TAIL = 0.025


@dataclass(frozen=True)
class Reviewed:
    """The estimate with what was reviewed in it; 95% intervals."""

    probe: str
    flagged: int
    read: int
    """Reviewed pairs among those that count: the flagged ones and those right beneath the threshold."""
    unread: int
    """Of the pairs to read first, how many nobody has reviewed."""
    right: Interval
    """Of the flagged pairs, how many push towards the behavior."""
    wrong: Interval
    """Of the flagged pairs, how many do not."""
    count: Interval
    """Of all pairs, how many do."""

    @property
    def sentence(self) -> str:
        """What the reviews come to."""
        left = f"; {self.unread:,} of those to read first are left" if self.unread else ""
        return (
            f"{counted(self.read, 'pair')} reviewed: {self.right} of the {self.flagged:,} flagged push towards "
            f"{self.probe} and {self.wrong} do not; in the whole dataset {self.count} do{left}."
        )


def read_reviews(folder: Path, fingerprint: str) -> dict[str, bool]:
    """By pair id, whether most reviewers in ``folder`` would change the pair.

    Raises:
        ManifestError: a file of decisions is broken, or about another dataset.
    """
    found: list[ReviewDecision] = []
    for path in sorted(folder.glob("decisions.*.jsonl")):
        review = ReviewDecisions.load(path)
        if review.dataset_fingerprint != fingerprint:
            raise ManifestError(f"{path} is about another dataset than this audit. Move it elsewhere.")
        found += review.decisions
    return verdicts(found)


def reviewed(
    outcome: Outcome,
    scores: npt.NDArray[np.float32],
    pair_ids: pa.Array | pa.ChunkedArray,
    reviews: Mapping[str, bool],
) -> Reviewed | None:
    """The estimate of ``outcome`` brought up to date; None where nothing that counts was reviewed.

    Pairs are counted stratum by stratum (:mod:`trl_attribution.scoring.read_first`), taking what was reviewed of one
    for a random sample of it, as the pairs to read first are. The share of a stratum that pushes towards the behavior
    has a Beta distribution: what reviewers confirmed and did not, and the mixture's opinion with the weight of two
    reviewed pairs. The pairs that nobody reviewed are drawn from it, so that a stratum read in full leaves no doubt.
    Beyond the strata, far beneath the threshold, the mixture's estimate stands.

    Args:
        outcome: of the probe.
        scores: [N], at the layer that flags were taken at.
        pair_ids: the N ids.
        reviews: by pair id, whether it is to be filtered or flipped.
    """
    plan, decision = outcome.read_first, outcome.decision
    if decision is None or not plan.strata or not reviews:
        return None
    labels = _labels(pair_ids, reviews, len(scores))
    parts = [_drawn(one, scores, labels, decision.prevalence, number) for number, one in enumerate(plan.strata)]
    beneath = _drawn(plan.beneath, scores, labels, decision.prevalence, len(parts))
    inside = np.concatenate([*plan.strata, plan.beneath])
    read = int((labels[inside] >= 0).sum())
    if not read:
        return None
    right = np.sum(parts, axis=0)
    flagged = sum(map(len, plan.strata))
    beyond = _beyond(decision.prevalence, scores, inside)
    return Reviewed(
        probe=outcome.probe,
        flagged=flagged,
        read=read,
        unread=int((labels[plan.positions] < 0).sum()),
        right=_interval(right),
        wrong=_interval(flagged - right),
        count=_sum(_interval(right + beneath), beyond),
    )


def _labels(pair_ids: pa.Array | pa.ChunkedArray, reviews: Mapping[str, bool], count: int) -> Integers:
    """[N]: 1 for pairs that reviewers would change, 0 for those that they keep, -1 for the others."""
    labels = np.full(count, -1, dtype=np.int64)
    places = pc.index_in(pa.array(list(reviews), pa.string()), value_set=pair_ids).to_pylist()
    for place, confirmed in zip(places, reviews.values(), strict=True):
        if place is not None:
            labels[place] = int(confirmed)
    return labels


def _drawn(
    stratum: Integers, scores: npt.NDArray[np.float32], labels: Integers, prevalence: Prevalence, seed: int
) -> Doubles:
    """[R]: how many pairs of ``stratum`` push towards the behavior."""
    random = np.random.default_rng(seed)
    if not len(stratum):
        return np.zeros(_DRAWS)
    known = labels[stratum]
    confirmed, read = int((known == 1).sum()), int((known >= 0).sum())
    opinion = float(np.clip(prevalence.likely_of(scores[stratum]).mean(), *_OPINION))
    share = random.beta(_PRIOR * opinion + confirmed, _PRIOR * (1 - opinion) + read - confirmed, size=_DRAWS)
    return confirmed + random.binomial(len(stratum) - read, share).astype(np.float64)


def _beyond(prevalence: Prevalence, scores: npt.NDArray[np.float32], inside: Integers) -> Interval:
    """How many of the pairs outside of all strata the mixture takes to push towards the behavior."""
    found, likely = prevalence.count, prevalence.likely_of(scores)
    total = float(likely.sum())
    share = 0.0 if total <= 0 else 1 - float(likely[inside].sum()) / total
    return Interval(found.value * share, found.low * share, found.high * share)


def _interval(values: Doubles) -> Interval:
    low, high = np.quantile(values, (_TAIL, 1 - _TAIL))
    return Interval(float(values.mean()), float(low), float(high))


def _sum(one: Interval, other: Interval) -> Interval:
    return Interval(one.value + other.value, one.low + other.low, one.high + other.high)
