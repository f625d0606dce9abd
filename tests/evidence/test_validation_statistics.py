"""The statistics of a validation: equal to scipy's where it has them, and rarely wrong under the null."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from trl_attribution.evidence.validation.cells import BASELINE, M0, Condition
from trl_attribution.evidence.validation.conclusions import Conclusion, conclude
from trl_attribution.evidence.validation.plan import StatisticsPlan
from trl_attribution.evidence.validation.statistics import (
    Bootstrap,
    advantage,
    compare,
    paired_t_test,
    reduction,
    seeds_needed,
    share,
    sign_flip_test,
)
from trl_attribution.evidence.validation.tables import percent
from trl_attribution.scoring import holm

Doubles = npt.NDArray[np.float64]
TOP = Condition("filter", "top", 10, "audit")
RANDOM = Condition("filter", "random", 10)
FAST = StatisticsPlan(resamples=400)


@pytest.mark.parametrize("count", [5, 9, 13])
def test_the_sign_flip_test_is_exact_for_few_prompts_as_scipys_is(count: int) -> None:
    values = np.random.default_rng(count).normal(0.3, 1, count)
    expected = scipy.stats.permutation_test(
        (values, np.zeros(count)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert sign_flip_test(values) == pytest.approx(expected.pvalue)


def test_the_sign_flip_test_for_many_prompts_comes_near_scipys() -> None:
    values = np.random.default_rng(1).normal(0.25, 1, 60)
    expected = scipy.stats.permutation_test(
        (values, np.zeros(60)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    )
    assert sign_flip_test(values, 20_000) == pytest.approx(expected.pvalue, abs=0.01)


def test_prompts_that_do_not_differ_say_nothing() -> None:
    assert sign_flip_test(np.zeros(40)) == 1.0
    assert sign_flip_test(np.array([1.0] * 8 + [0.0] * 500)) == pytest.approx(2 / 2**8)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_the_test_by_run_is_the_paired_t_test(values: list[float]) -> None:
    differences = np.array(values)
    if differences.std(ddof=1) < 1e-6:
        return
    expected = scipy.stats.ttest_rel(differences, np.zeros(len(differences))).pvalue
    assert paired_t_test(differences) == pytest.approx(expected)


def test_one_run_cannot_be_tested_and_runs_that_agree_to_the_last_digit_can() -> None:
    assert paired_t_test(np.array([0.9])) is None
    assert paired_t_test(np.array([0.5, 0.5, 0.5])) == 0.0
    assert paired_t_test(np.array([0.0, 0.0])) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_correction(p_values: list[float]) -> None:
    """Against the definition: the adjusted value is the largest of (m - rank) p over all that rank no later."""
    ordered = sorted(p_values)
    count = len(ordered)
    expected = {
        p: min(1.0, max((count - place) * other for place, other in enumerate(ordered[: ordered.index(p) + 1])))
        for p in ordered
    }
    adjusted = holm(p_values)
    # Equal p-values share the largest adjusted one among them or keep their order; both are Holm's.
    assert all(found >= expected[p] - 1e-12 for p, found in zip(p_values, adjusted, strict=True))
    assert all(found >= p - 1e-12 and found <= 1.0 for p, found in zip(p_values, adjusted, strict=True))
    assert holm(list(reversed(p_values)))[::-1] == pytest.approx(adjusted) or len(set(p_values)) < count


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]).tolist() == []


def test_with_one_run_the_interval_is_scipys_bootstrap_over_prompts() -> None:
    shares = np.random.default_rng(3).binomial(4, 0.4, (1, 50)) / 4
    expected = scipy.stats.bootstrap(
        (shares[0],), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    found = share(shares, Bootstrap(1, 50, 20_000))
    assert found.value == pytest.approx(shares.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_over_runs_of_prompts_that_are_alike_the_interval_is_about_the_t_interval() -> None:
    runs = np.array([0.42, 0.5, 0.61, 0.47, 0.55])
    found = share(np.repeat(runs[:, None], 40, axis=1), Bootstrap(5, 40, 20_000))
    expected = scipy.stats.t.interval(0.95, 4, runs.mean(), scipy.stats.sem(runs))
    assert (found.low, found.high) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_what_they_promise_when_runs_and_prompts_both_vary(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    held = 0
    for number in range(200):
        runs, prompts = generator.normal(0, 0.08, (seeds, 1)), generator.normal(0, 0.15, (1, 30))
        shares = np.clip(0.5 + runs + prompts + generator.normal(0, 0.1, (seeds, 30)), 0, 1)
        found = share(shares, Bootstrap(seeds, 30, 400, seed=number))
        held += found.low <= 0.5 <= found.high
    assert held >= 186, f"{held} of 200 intervals hold the true share; 95% should"


def test_nothing_shown_is_not_taken_for_certainty() -> None:
    bootstrap = Bootstrap(3, 20, 400)
    none, all_ = np.zeros((3, 20)), np.ones((3, 20))
    assert share(none, bootstrap).high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert share(all_, bootstrap).low == pytest.approx(0.025 ** (1 / 20))
    found = reduction(none, all_, bootstrap)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 20))


def test_an_advantage_without_a_single_response_on_one_side_is_not_taken_for_certain_either() -> None:
    found = advantage(np.zeros((3, 20)), np.ones((3, 20)), np.ones((3, 20)), Bootstrap(3, 20, 400))
    assert (found.value, found.low) == (1.0, pytest.approx(0.025 ** (1 / 20)))


def test_a_baseline_without_the_behavior_gives_no_reduction_to_speak_of() -> None:
    bootstrap = Bootstrap(2, 5, 400)
    nothing = np.zeros((2, 5))
    assert reduction(nothing, nothing, bootstrap).low == -math.inf
    assert advantage(nothing, nothing, nothing, bootstrap).high == math.inf


def test_differences_are_paired_so_that_what_conditions_share_cancels() -> None:
    generator = np.random.default_rng(0)
    base = np.clip(generator.random((4, 30)), 0.2, 0.9)
    comparison = compare(base - 0.2, base, Bootstrap(4, 30, 400), 400, 0)
    assert comparison.difference.value == pytest.approx(0.2)
    assert comparison.difference.low == pytest.approx(0.2, abs=0.05)
    assert comparison.p_value == comparison.p_prompts < 0.01


def test_the_seeds_that_it_takes_have_the_power_that_is_promised() -> None:
    seen = np.array([0.5, 0.1, 0.6])
    count = seeds_needed(seen, 0.05)
    assert count is not None and count > 3
    generator = np.random.default_rng(0)
    runs = generator.normal(seen.mean(), seen.std(ddof=1), (2_000, count))
    power = (scipy.stats.ttest_1samp(runs, 0.0, axis=1).pvalue <= 0.05).mean()
    assert 0.77 <= power <= 0.9
    assert seeds_needed(np.array([-0.1, 0.05]), 0.05) is None
    assert seeds_needed(np.array([0.4]), 0.05) is None


def simulated(generator: np.random.Generator, seeds: int, spread: float, top: float, prompts: int = 24) -> Conclusion:
    """One validation: runs differ by ``spread`` (logits), prompts by 1, four responses a prompt; random shows 0.8."""

    def shares(level: float) -> Doubles:
        logits = math.log(level / (1 - level)) + spread * generator.normal(size=(seeds, 1)) + of_prompts
        return np.asarray(generator.binomial(4, 1 / (1 + np.exp(-logits))) / 4)

    of_prompts = generator.normal(size=(1, prompts))
    found = {M0: np.zeros((seeds, prompts)), BASELINE: shares(0.8), TOP: shares(top), RANDOM: shares(0.8)}
    return conclude({"toy": found}, FAST)


@pytest.mark.parametrize(("seeds", "spread"), [(2, 0.5), (3, 0.0), (3, 0.7), (3, 2.0)], ids=str)
def test_in_1000_validations_in_which_the_ranking_means_nothing_hardly_any_is_supported(
    seeds: int, spread: float
) -> None:
    generator = np.random.default_rng(17)
    supported = sum(simulated(generator, seeds, spread, top=0.8).answer == "supported" for _ in range(1_000))
    assert supported <= 50, f"{supported} of 1,000"


def test_even_where_any_change_of_the_data_takes_half_of_the_behavior_away_it_is_not_the_ranking() -> None:
    """The top and the random pairs both leave 0.3 of 0.8: a reduction above the least one, and no advantage."""
    generator = np.random.default_rng(5)
    answers = []
    for _ in range(1_000):
        levels = {condition: generator.normal(0, 1.0, (3, 1)) for condition in (TOP, RANDOM)}
        of_prompts = generator.normal(size=(1, 24))
        found = {
            condition: generator.binomial(4, 1 / (1 + np.exp(0.85 - level - of_prompts))) / 4
            for condition, level in levels.items()
        }
        base = {M0: np.zeros((3, 24)), BASELINE: np.full((3, 24), 0.8)}
        answers.append(conclude({"toy": {**base, **found}}, FAST).answer)
    assert answers.count("supported") <= 50


def test_a_real_effect_is_found_and_a_null_one_is_called_so_given_seeds_enough() -> None:
    generator = np.random.default_rng(2)
    found = [simulated(generator, 3, 0.5, top=0.03).answer for _ in range(100)]
    assert found.count("supported") >= 90
    null = [simulated(generator, 5, 0.3, top=0.8).answer for _ in range(100)]
    assert null.count("not supported") >= 90


def test_a_bound_that_says_nothing_is_not_printed_to_the_last_digit() -> None:
    assert [percent(bound) for bound in (-0.25, 1.0, -1.5e9, math.inf)] == [
        "-25%",
        "100%",
        "below -1,000%",
        "above 1,000%",
    ]
