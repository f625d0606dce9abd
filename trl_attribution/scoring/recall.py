"""A threshold with a stated recall: where the behavior's own held-out pairs lie, and how often others lie there too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trl_attribution.errors import SettingsError
from trl_attribution.scoring.rule import check_recall
from trl_attribution.utils.arrays import Doubles, Integers

CONFIDENCE = 0.95


@dataclass(frozen=True)
class KnownScores:
    """Scores of E pairs of which it is known what they are, each prompt with the same say.

    Raises:
        SettingsError: no pair, another number of prompts than scores, or a score that is not finite.
    """

    scores: Doubles
    """[E]"""
    prompts: Integers
    """[E], equal for pairs of the same prompt: those are no independent witnesses."""
    flips: Doubles | None = None
    """[E], of the same pairs with chosen and rejected swapped; None where that negates every score exactly."""

    def __post_init__(self) -> None:
        flips = self.scores if self.flips is None else self.flips
        fits = self.scores.shape == self.prompts.shape == flips.shape
        if not len(self.scores) or not fits or not np.isfinite([self.scores, flips]).all():
            raise SettingsError(
                f"known pairs need one finite score and one prompt each, not {self.scores.shape} and "
                f"{self.prompts.shape}: give at least one pair"
            )

    @property
    def number_of_prompts(self) -> int:
        """How many different prompts there are."""
        return len(np.unique(self.prompts))

    @property
    def weights(self) -> Doubles:
        """[E] of sum 1: every prompt has the same, divided among its pairs."""
        _, place, count = np.unique(self.prompts, return_inverse=True, return_counts=True)
        return np.asarray(1.0 / count[place] / len(count))

    def flipped(self) -> KnownScores:
        """The same pairs with chosen and rejected swapped."""
        return KnownScores(-self.scores if self.flips is None else self.flips, self.prompts, self.scores)

    def others(self) -> tuple[Doubles, ...]:
        """[E] each: what other pairs of the same prompts score, flipped ones and those that lean neither way.

        Of most kinds the latter score 0, as neutral pairs do; of a one-sided score they lie halfway to the flips.
        """
        flips = self.flipped().scores
        return (flips,) if self.flips is None else (flips, (self.scores + flips) / 2)


@dataclass(frozen=True)
class Rate:
    """A share between 0 and 1 and the interval that it lies in."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RecallThreshold:
    """The score at which a stated share of pairs like the examples is caught."""

    threshold: float
    asked: float
    recall: Rate
    """What is to be expected of a further pair like the examples; lower than asked where there are few prompts."""


def threshold_for(recall: float, examples: KnownScores) -> RecallThreshold:
    """The highest threshold that catches ``recall`` of further pairs like the cross-validated ``examples``.

    With n prompts, a further prompt's score lies above the j-th lowest with chance ``1 - j / (n + 1)``, and the share
    of all further ones that does is distributed as ``Beta(n + 1 - j, j)``; several pairs of one prompt count as parts
    of one. No shape is assumed, only that the further pairs are like the examples.

    Raises:
        SettingsError: ``recall`` does not lie between 0 and 1.
    """
    check_recall(recall)
    prompts = examples.number_of_prompts
    order = np.argsort(examples.scores, kind="stable")
    below = np.cumsum(examples.weights[order]) * prompts
    place = max(0, int(np.searchsorted(below, (1.0 - recall) * (prompts + 1) + 1e-9, side="right")) - 1)
    missed = float(below[place])
    expected = 1.0 - missed / (prompts + 1)
    return RecallThreshold(float(examples.scores[order[place]]), recall, _rate(expected, prompts + 1 - missed, missed))


def share_above(threshold: float, known: KnownScores) -> Rate:
    """The share of further pairs like ``known`` that reaches ``threshold``, with Clopper and Pearson's interval."""
    from scipy.special import betaincinv  # scipy.stats takes a second to import

    prompts = known.number_of_prompts
    share = float(known.weights[known.scores >= threshold].sum())
    hits, tail = share * prompts, (1 - CONFIDENCE) / 2
    low = float(betaincinv(hits, prompts - hits + 1, tail)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, prompts - hits, 1 - tail)) if hits < prompts else 1.0
    return Rate(share, low, high)


def _rate(value: float, caught: float, missed: float) -> Rate:
    from scipy.special import betaincinv  # scipy.stats takes a second to import

    tail = (1 - CONFIDENCE) / 2
    return Rate(value, float(betaincinv(caught, missed, tail)), float(betaincinv(caught, missed, 1 - tail)))
