"""The numbers behind an answer: intervals and tests for shares measured on the same prompts in several runs.

Axis letters: S seeds (training runs of one condition), M prompts, B bootstrap samples.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator

from trl_attribution.evidence.readouts.behavior_change import CONFIDENCE, most_unseen
from trl_attribution.utils.arrays import Doubles

# What is infinite or undefined is null in JSON files.
Bound = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
POWER = 0.8
MOST_SEEDS = 200
_EXACT_PROMPTS = 13
_CHUNK = 2_000_000


@dataclass(frozen=True)
class IntervalEstimate:
    """A number with its 95% interval."""

    value: Bound
    low: Bound
    high: Bound


@dataclass(frozen=True)
class DifferenceTest:
    """One condition against another, on the same prompts and seeds."""

    difference: IntervalEstimate
    """Mean share of the control minus mean share of the treated: positive where the treatment works."""
    p_prompts: float
    """Sign flips by prompt, two-sided: would other prompts say the same of these runs?"""
    p_runs: float | None
    """Paired t-test by seed, two-sided: would other training runs say the same? None with one seed."""

    @property
    def p_value(self) -> float:
        """The larger of the two: both have to hold. 1 where there is one seed only."""
        return 1.0 if self.p_runs is None else max(self.p_prompts, self.p_runs)


class Bootstrap:
    """Weights of seeds and prompts, drawn once and used for all conditions, so that their differences are paired.

    A draw takes prompts with replacement, the same ones in every run, and seeds with replacement. Few seeds make a
    plain bootstrap too sure of itself: their weights are spread out by ``sqrt(S / (S - 1))`` and by the ratio of the
    t to the normal quantile, so that for the mean of S runs the interval is about the t interval.
    """

    def __init__(self, seeds: int, prompts: int, resamples: int = 10_000, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.prompts_BM: Doubles = generator.multinomial(prompts, np.full(prompts, 1 / prompts), resamples) / prompts
        drawn_BS: Doubles = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
        self.seeds_BS: Doubles = 1 / seeds + _spread(seeds) * (drawn_BS - 1 / seeds)

    @classmethod
    @functools.lru_cache(maxsize=4)
    def drawn(cls, seeds: int, prompts: int, resamples: int, seed: int) -> Bootstrap:
        """The same weights for everything of one shape, drawn once."""
        return cls(seeds, prompts, resamples, seed)

    def means(self, shares_SM: Doubles) -> Doubles:
        """The mean of ``shares_SM`` in each draw ``[B]``."""
        found: Doubles = np.einsum("bs,sm,bm->b", self.seeds_BS, shares_SM, self.prompts_BM, optimize=True)
        return found


def share(shares_SM: Doubles, bootstrap: Bootstrap) -> IntervalEstimate:
    """The mean share with its interval, within 0 and 1."""
    low, high = interval(bootstrap.means(shares_SM))
    value = float(shares_SM.mean())
    unseen = _unseen(shares_SM)
    low, high = min(low, value), max(high, value)
    return IntervalEstimate(value, max(0.0, low - unseen * value), min(1.0, high + unseen * (1 - value)))


def reduction(treated_SM: Doubles, baseline_SM: Doubles, bootstrap: Bootstrap) -> IntervalEstimate:
    """How much of the baseline's share is gone: 1 minus the ratio of the means, at most 1.

    Where no response of the treated shows the behavior there is nothing to resample: then the lower end is the exact
    binomial bound on what so many prompts could have missed.
    """
    found = advantage(treated_SM, baseline_SM, baseline_SM, bootstrap)
    return replace(found, high=min(1.0, found.high))


def advantage(treated_SM: Doubles, control_SM: Doubles, baseline_SM: Doubles, bootstrap: Bootstrap) -> IntervalEstimate:
    """The reduction by the treatment minus that by the control; the lower end as :func:`reduction` has it."""
    base = float(baseline_SM.mean())
    if base == 0.0:
        return IntervalEstimate(0.0, -math.inf, math.inf)
    difference_B = bootstrap.means(control_SM) - bootstrap.means(treated_SM)
    low, high = interval(difference_B / _positive(bootstrap.means(baseline_SM)))
    value = float(control_SM.mean() - treated_SM.mean()) / base
    return IntervalEstimate(value, min(low, value) - _unseen(treated_SM) / base, max(high, value))


def compare(
    treated_SM: Doubles, control_SM: Doubles, bootstrap: Bootstrap, resamples: int, seed: int
) -> DifferenceTest:
    """Test whether the treated shares lie below the control's, by prompt and by run."""
    differences_SM = control_SM - treated_SM
    low, high = interval(bootstrap.means(differences_SM))
    value = float(differences_SM.mean())
    return DifferenceTest(
        IntervalEstimate(value, min(low, value), max(high, value)),
        sign_flip_test(differences_SM.mean(axis=0), resamples, seed),
        paired_t_test(differences_SM.mean(axis=1)),
    )


def sign_flip_test(differences_M: Doubles, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of a mean difference of 0, by flipping the signs of paired differences.

    Exact for up to 13 differences that are not 0, which flipping leaves alone; beyond, ``resamples`` random flips,
    the observed one counted in. A tenth of the time of ``scipy.stats.permutation_test``, which sorts for every flip.
    """
    values_M = differences_M[differences_M != 0]
    count = len(values_M)
    if count == 0:
        return 1.0
    observed = abs(values_M.sum()) - 1e-12
    if count <= _EXACT_PROMPTS:
        patterns = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float((np.abs((1 - 2 * patterns) @ values_M) >= observed).mean())
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // count)
    hits = 0
    for start in range(0, resamples, step):
        signs = generator.integers(0, 2, size=(min(step, resamples - start), count), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ values_M) >= observed).sum())
    return (hits + 1) / (resamples + 1)


def paired_t_test(differences_S: Doubles) -> float | None:
    """Two-sided p-value of a mean difference of 0 over runs; None for a single run.

    Runs that all differ by exactly the same amount, other than 0, give 0: then the test by prompt decides.
    """
    from scipy.stats import ttest_1samp

    if len(differences_S) < 2:
        return None
    if differences_S.std() < 1e-12:
        return 1.0 if abs(differences_S.mean()) < 1e-12 else 0.0
    return float(ttest_1samp(differences_S, 0.0).pvalue)


def seeds_needed(differences_S: Doubles, alpha: float) -> int | None:
    """About how many seeds a paired t-test at ``alpha`` takes to see this difference 4 times in 5.

    By the differences ``[S]`` seen so far, which are few: an order of magnitude. None where they speak for no
    difference, there is one of them, or it would take more than 200.
    """
    from scipy.stats import nct, t

    if len(differences_S) < 2 or differences_S.mean() <= 0:
        return None
    effect = float(differences_S.mean()) / max(float(differences_S.std(ddof=1)), 1e-6)

    def enough(count: int) -> bool:
        power = nct.sf(t.isf(alpha / 2, count - 1), count - 1, effect * math.sqrt(count))
        # Beyond what nct can compute the power is 1.
        return math.isnan(power) or power >= POWER

    # Power grows with the number of seeds.
    found = bisect_left(range(MOST_SEEDS + 1), True, lo=max(3, len(differences_S) + 1), key=enough)
    return found if found <= MOST_SEEDS else None


def interval(values_B: Doubles) -> tuple[float, float]:
    """The central 95% of ``values_B``."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values_B, [tail, 1 - tail])
    return float(low), float(high)


def _spread(seeds: int) -> float:
    from scipy.stats import norm, t

    if seeds < 2:
        return 1.0
    tail = (1 - CONFIDENCE) / 2
    return float(math.sqrt(seeds / (seeds - 1)) * t.isf(tail, seeds - 1) / norm.isf(tail))


def _unseen(shares_SM: Doubles) -> float:
    """The share of prompts that may be otherwise although all M measured ones agree, as a binomial bound; else 0."""
    if np.ptp(shares_SM) > 1e-12:
        return 0.0
    return most_unseen(shares_SM.shape[1])


def _positive(values_B: Doubles) -> Doubles:
    """Kept away from 0, where a ratio says nothing."""
    return np.maximum(values_B, 1e-9)
