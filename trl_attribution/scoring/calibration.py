"""What a score is worth: ranks, percentiles, p-values and q-values of one score column.

Two nulls are offered, and the result says which one was used:

* **reference**: scores of pairs known to be clean, taken with the same probe, layer and kind. Assumes that the clean
  pairs of the audited dataset score like them.
* **mirror**: without a reference, a pair is taken to be as likely as its own flip. Flipping negates the score exactly
  (it negates the pair vector and keeps the context), so the negated scores of the dataset itself are the null.
  (A one-sided score is not negated by a flip: there the flips are scored.)
  Its assumption: pairs that have nothing to do with the behavior lean neither way. A dataset that as a whole leans
  **towards** the behavior (say, one that rewards any long answer, with a probe that is also about length) breaks it:
  p-values come out too small and too much is flagged. One that leans **away**, or holds many pairs meant to train
  against the behavior (refusal chosen), gives p-values that are too large: nothing is flagged wrongly, but pairs that
  teach the behavior are missed. Take a reference set then. Pairs that do teach the behavior are missing from the
  mirrored side, which makes p-values too small by at most their share; Benjamini-Hochberg's level makes up for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.utils.arrays import Doubles, Integers, Reals

Null = Literal["reference", "mirror"]


@dataclass(frozen=True)
class Calibration:
    """What each of N scores is worth beside the others and against the null."""

    null: Null
    rank: Integers
    """``[N]``: 1 is the highest score; equal scores rank in dataset order."""
    percentile: Doubles
    """``[N]``: per cent of the pairs that score at most this; equal scores have equal percentiles."""
    p_value: Doubles
    """``[N]``: one-sided, for pushing towards the behavior."""
    q_value: Doubles
    """``[N]``: the smallest false discovery rate at which the pair is flagged (Benjamini-Hochberg)."""


def calibrate(scores: Reals, reference: Reals | None = None, flips: Reals | None = None) -> Calibration:
    """Rank ``scores`` [N] and give their p- and q-values under the null of ``reference`` [R], or the mirror null.

    ``flips`` [N] are the scores of the same pairs flipped, where these are not the negated ones.

    Raises:
        SettingsError: the reference is empty.
        StoreError: scores or reference have values that are not finite.
    """
    _refuse_unless_finite(scores, "scores")
    order = np.argsort(-scores, kind="stable")
    rising = scores[order[::-1]]
    p_value = np.empty(len(scores))
    percentile = np.empty(len(scores))
    # Sorted queries keep the search in cache: several times faster for a million pairs.
    null_scores = flips if reference is None else reference
    if null_scores is None:
        p_value[order[::-1]] = _mirror_p_values(rising, rising)
    else:
        p_value[order[::-1]] = p_values(rising, null_scores)
    percentile[order[::-1]] = 100.0 * np.searchsorted(rising, rising, side="right") / max(1, len(scores))
    rank = np.empty(len(scores), dtype=np.int64)
    rank[order] = np.arange(1, len(scores) + 1)
    null: Null = "mirror" if reference is None else "reference"
    return Calibration(null, rank, percentile, p_value, q_values(p_value))


def p_values(scores: Reals, reference: Reals | None = None) -> Doubles:
    """One-sided p-values [N] of ``scores`` [N]: how often the null scores at least as high.

    ``(1 + #{r: ref_r >= s}) / (1 + R)`` with a reference [R], else the mirror null of the module's docstring,
    ``(1 + #{j: -s_j >= s}) / (1 + N)``.

    Raises:
        SettingsError: the reference is empty.
        StoreError: scores or reference have values that are not finite.
    """
    _refuse_unless_finite(scores, "scores")
    if reference is None:
        return _mirror_p_values(scores, np.sort(scores))
    if len(reference) == 0:
        raise SettingsError("the reference set has no scores: calibrate with at least one clean pair, or without any")
    _refuse_unless_finite(reference, "reference scores")
    # float32 scores against float64 copies of float32 scores: equal numbers stay equal.
    below = np.searchsorted(np.sort(reference.astype(np.float64)), scores.astype(np.float64), side="left")
    return np.asarray((1.0 + len(reference) - below) / (1.0 + len(reference)), dtype=np.float64)


def q_values(p_value: Doubles) -> Doubles:
    """Benjamini-Hochberg q-values [N] of p-values [N]."""
    order = np.argsort(p_value, kind="stable")
    scaled = p_value[order] * (len(p_value) / np.arange(1, len(p_value) + 1))
    values = np.empty(len(p_value))
    values[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return values


def holm(p_values: npt.ArrayLike) -> Doubles:
    """Holm's step-down correction: adjusted p-values [n], in the given order."""
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted


def fewest_discoveries(rate: float, pairs: int, null_size: int) -> int:
    """How many pairs must beat every one of ``null_size`` null scores before any can be flagged at ``rate``.

    The smallest p-value that R null scores can give is ``1 / (1 + R)``; with N ``pairs`` to test,
    Benjamini-Hochberg needs ``N / (rate * (1 + R))`` of them. A result above the number of suspicious pairs means
    that the reference set is too small for this dataset.

    >>> fewest_discoveries(0.05, pairs=100_000, null_size=199)
    10000
    """
    return max(1, math.ceil(round(pairs / (rate * (1 + null_size)), 9)))


def _mirror_p_values(scores: Reals, rising: Reals) -> Doubles:
    """P-values of ``scores`` when the null is the negated ``rising`` scores: -s_j >= s where s_j <= -s."""
    at_least = np.searchsorted(rising, -scores, side="right")
    return np.asarray((1.0 + at_least) / (1.0 + len(rising)), dtype=np.float64)


def _refuse_unless_finite(values: Reals, what: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise StoreError(
            f"{len(bad)} of {len(values)} {what} are not finite, the first at position {int(bad[0])}: "
            "verify the vectors and score again"
        )
