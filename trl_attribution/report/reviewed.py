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

from trl_attribution.errors import ManifestError
from trl_attribution.manifest.decisions import ReviewDecision, ReviewDecisions
from trl_attribution.report.agreement import verdicts
from trl_attribution.scoring import Outcome
from trl_attribution.scoring.prevalence import Interval, Prevalence
from trl_attribution.utils import arrow
from trl_attribution.utils.arrays import Doubles, Integers
from trl_attribution.utils.kinds import PAIR, ExampleKind

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
    kind: ExampleKind = PAIR
    """What the sentence calls an example."""

    @property
    def sentence(self) -> str:
        """What the reviews come to."""
        left = f"; {self.unread:,} of those to read first are left" if self.unread else ""
        return (
            f"{self.kind.counted(self.read)} reviewed: {self.right} of the {self.flagged:,} flagged push towards "
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


@dataclass(frozen=True)
class Stratum:
    """Pairs that are much alike by their scores."""

    pair_ids: frozenset[str]
    opinion: float
    """The mixture's: how likely one of them pushes towards the behavior."""

    def drawn(self, reviews: Mapping[str, bool], seed: int) -> Doubles:
        """[R]: how many of them do."""
        if not self.pair_ids:
            return np.zeros(_DRAWS)
        read = [reviews[pair_id] for pair_id in self.pair_ids & reviews.keys()]
        yes, no = sum(read), len(read) - sum(read)
        random = np.random.default_rng(seed)
        share = random.beta(_PRIOR * self.opinion + yes, _PRIOR * (1 - self.opinion) + no, size=_DRAWS)
        return yes + random.binomial(len(self.pair_ids) - len(read), share).astype(np.float64)


@dataclass(frozen=True)
class Reviewable:
    """What reviews of one probe's pairs are counted by.

    Pairs are counted stratum by stratum (:mod:`trl_attribution.scoring.read_first`), taking what was reviewed of one
    for a random sample of it, as the pairs to read first are. The share of a stratum that pushes towards the behavior
    has a Beta distribution: what reviewers confirmed and did not, and the mixture's opinion with the weight of two
    reviewed pairs. The pairs that nobody reviewed are drawn from it, so that a stratum read in full leaves no doubt.
    Beyond the strata, far beneath the threshold, the mixture's estimate stands.
    """

    probe: str
    strata: tuple[Stratum, ...]
    """Of the flagged pairs."""
    beneath: Stratum
    beyond: Interval
    """How many of the pairs outside of all strata push towards the behavior, by the mixture."""
    first: frozenset[str]
    """The pairs to read first."""
    kind: ExampleKind

    @classmethod
    def of(
        cls, outcome: Outcome, scores: npt.NDArray[np.float32], pair_ids: pa.Array | pa.ChunkedArray
    ) -> Reviewable | None:
        """For ``outcome`` of ``scores`` [N]; None where nothing is flagged or the probe keeps no pairs of its own."""
        plan = outcome.read_first
        if outcome.decision is None or not plan.strata:
            return None
        prevalence = outcome.decision.prevalence

        def ids(positions: Integers) -> frozenset[str]:
            return frozenset(pair_ids.take(arrow.places(positions)).to_pylist())

        def stratum(positions: Integers) -> Stratum:
            likely = prevalence.likely_of(scores[positions])
            return Stratum(ids(positions), float(np.clip(likely.mean(), *_OPINION)) if len(likely) else 0.0)

        inside = np.concatenate([*plan.strata, plan.beneath])
        return cls(
            probe=outcome.probe,
            strata=tuple(stratum(one) for one in plan.strata),
            beneath=stratum(plan.beneath),
            beyond=_beyond(prevalence, scores, inside),
            first=ids(plan.positions),
            kind=outcome.kind,
        )

    def reviewed(self, reviews: Mapping[str, bool]) -> Reviewed | None:
        """The estimate with ``reviews`` in it: by pair id, whether it is to be changed; None where none counts."""
        inside = self.beneath.pair_ids.union(*(one.pair_ids for one in self.strata))
        read = len(inside & reviews.keys())
        if not read:
            return None
        right = np.sum([one.drawn(reviews, seed) for seed, one in enumerate(self.strata)], axis=0)
        beneath = self.beneath.drawn(reviews, len(self.strata))
        flagged = sum(len(one.pair_ids) for one in self.strata)
        return Reviewed(
            probe=self.probe,
            flagged=flagged,
            read=read,
            unread=len(self.first - reviews.keys()),
            right=_interval(right),
            wrong=_interval(flagged - right),
            count=_sum(_interval(right + beneath), self.beyond),
        )


def _beyond(prevalence: Prevalence, scores: npt.NDArray[np.float32], inside: Integers) -> Interval:
    found, likely = prevalence.count, prevalence.likely_of(scores)
    total = float(likely.sum())
    share = 0.0 if total <= 0 else 1 - float(likely[inside].sum()) / total
    return Interval(found.value * share, found.low * share, found.high * share)


def _interval(values: Doubles) -> Interval:
    low, high = np.quantile(values, (_TAIL, 1 - _TAIL))
    return Interval(float(values.mean()), float(low), float(high))


def _sum(one: Interval, other: Interval) -> Interval:
    return Interval(one.value + other.value, one.low + other.low, one.high + other.high)
