"""How good a ranking is where the truth is known, and how much two rankings agree where it is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trl_attribution.errors import SettingsError
from trl_attribution.utils.arrays import Bools, Doubles


@dataclass(frozen=True)
class Quality:
    """How well N scores find the wanted pairs; pairs with equal scores count as if shuffled."""

    average_precision: float
    """Precision averaged over the places of the wanted pairs; the share of wanted pairs for chance."""
    precision_at_k: float
    """Share of wanted pairs among the top k."""
    auc: float
    """Chance that a wanted pair scores above another; below 0.5 the ranking is better upside down."""


@dataclass(frozen=True)
class Agreement:
    """How much two rankings of the same pairs agree."""

    spearman: float
    """Rank correlation; 0 where one of them has only equal scores."""
    overlap_at_k: float
    """Share of one's top k that is in the other's top k."""


def quality(scores: Doubles, wanted: Bools, k: int) -> Quality:
    """Quality of ``scores`` [N] for the pairs that are ``wanted`` [N].

    Raises:
        SettingsError: no pair is wanted or every pair is, or k is not from 1 to N.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    if wanted.all() or not wanted.any():
        raise SettingsError(
            f"truth: {int(wanted.sum())} of {len(wanted)} pairs are marked; a ranking can only be judged where some "
            "are and some are not"
        )
    at_k = float(top_weights(scores, k)[wanted].sum() / k)
    return Quality(float(average_precision_score(wanted, scores)), at_k, float(roc_auc_score(wanted, scores)))


def agreement(scores: Doubles, other: Doubles, k: int) -> Agreement:
    """Agreement of ``scores`` [N] and ``other`` [N].

    Raises:
        SettingsError: k is not from 1 to N.
    """
    from scipy.stats import spearmanr

    constant = bool(np.ptp(scores) == 0 or np.ptp(other) == 0)
    correlation = 0.0 if constant else float(spearmanr(scores, other).statistic)
    return Agreement(correlation, float((top_weights(scores, k) * top_weights(other, k)).sum() / k))


def top_weights(scores: Doubles, k: int) -> Doubles:
    """The chance [N] that each is among the top k, where equal scores are shuffled.

    Raises:
        SettingsError: k is not from 1 to N.
    """
    if not 1 <= k <= len(scores):
        raise SettingsError(f"k is {k}; it must be from 1 to the number of pairs, {len(scores)}")
    least = np.partition(scores, -k)[-k]
    above, level = scores > least, scores == least
    return np.where(above, 1.0, np.where(level, (k - above.sum()) / level.sum(), 0.0))
