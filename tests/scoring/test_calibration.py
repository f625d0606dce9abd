"""Calibration: p-values that are uniform where nothing is there, and a false discovery rate that holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, false_discovery_control, kstest

from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.scoring import calibrate, fewest_discoveries, p_values, q_values

# A coarse grid, so that ties are common.
SCORES = arrays(np.float32, st.integers(1, 60), elements=st.integers(-8, 8).map(lambda number: number / 8))


def test_ranks_count_from_the_highest_and_ties_follow_dataset_order() -> None:
    worth = calibrate(np.float32([0.1, 0.9, 0.1, -0.5, 0.9]))
    assert worth.rank.tolist() == [3, 1, 4, 5, 2]
    assert worth.percentile.tolist() == [60, 100, 60, 20, 100]


def test_p_values_against_a_reference_count_the_reference_scores_that_are_as_high() -> None:
    values = p_values(np.float32([0.5, 0.2, -1.0, 0.9]), np.array([0.5, 0.1, 0.3]))
    assert values.tolist() == [2 / 4, 3 / 4, 4 / 4, 1 / 4]


def test_mirror_p_values_count_the_negated_scores_that_are_as_high() -> None:
    values = p_values(np.float32([0.5, 0.2, -0.5, -0.3]))
    assert values.tolist() == [2 / 5, 3 / 5, 5 / 5, 4 / 5]


@given(SCORES)
def test_ranks_percentiles_and_mirror_p_values_equal_their_definitions(scores: np.ndarray) -> None:
    worth = calibrate(scores)
    for index, score in enumerate(scores):
        ahead = (scores > score).sum() + (scores[:index] == score).sum()
        assert worth.rank[index] == 1 + ahead
        assert worth.percentile[index] == pytest.approx(100 * (scores <= score).mean())
        assert worth.p_value[index] == pytest.approx((1 + (-scores >= score).sum()) / (1 + len(scores)))
    np.testing.assert_array_equal(worth.p_value, p_values(scores))


@given(SCORES, SCORES)
def test_reference_p_values_equal_their_definition(scores: np.ndarray, reference: np.ndarray) -> None:
    worth = calibrate(scores, reference)
    assert worth.null == "reference"
    for index, score in enumerate(scores):
        assert worth.p_value[index] == pytest.approx((1 + (reference >= score).sum()) / (1 + len(reference)))
    np.testing.assert_array_equal(worth.p_value, p_values(scores, reference))


def test_q_values_follow_the_example_of_benjamini_and_hochberg() -> None:
    """The 15 p-values of their 1995 paper: at 0.05 the four smallest are discoveries."""
    p_value = np.array(
        [
            0.0001,
            0.0004,
            0.0019,
            0.0095,
            0.0201,
            0.0278,
            0.0298,
            0.0344,
            0.0459,
            0.3240,
            0.4262,
            0.5719,
            0.6528,
            0.7590,
            1,
        ]
    )
    q_value = q_values(p_value)
    assert (q_value <= 0.05).sum() == 4
    assert q_value[0] == pytest.approx(0.0001 * 15)
    assert q_value[3] == pytest.approx(0.0095 * 15 / 4)
    np.testing.assert_array_equal(q_value, false_discovery_control(p_value))


def test_q_values_belong_to_their_pairs_whatever_the_order() -> None:
    scores = np.random.default_rng(0).normal(0, 0.3, 200).clip(-1, 1)
    shuffle = np.random.default_rng(1).permutation(200)
    plain, moved = calibrate(scores), calibrate(scores[shuffle])
    np.testing.assert_array_equal(moved.q_value, plain.q_value[shuffle])
    np.testing.assert_array_equal(moved.p_value, plain.p_value[shuffle])


@pytest.mark.parametrize("with_reference", [True, False])
def test_p_values_are_uniform_where_nothing_is_there(with_reference: bool) -> None:
    random = np.random.default_rng(7)
    scores = random.normal(0, 0.2, 20_000)
    reference = random.normal(0, 0.2, 20_000) if with_reference else None
    p_value = calibrate(scores, reference).p_value
    assert kstest(p_value, "uniform").statistic < 0.02
    for level in (0.01, 0.05, 0.5):
        assert (p_value <= level).mean() == pytest.approx(level, rel=0.15)


@pytest.mark.parametrize("with_reference", [True, False])
def test_the_false_discovery_rate_holds_and_strong_pairs_are_found(with_reference: bool) -> None:
    """200 datasets of 1,900 clean pairs and 100 that teach the behavior, at a rate of 0.1."""
    random = np.random.default_rng(3)
    false_shares, found = [], []
    for _ in range(200):
        scores = np.concatenate([random.normal(0, 0.1, 1_900), random.normal(0.45, 0.1, 100)])
        reference = random.normal(0, 0.1, 2_000) if with_reference else None
        flagged = calibrate(scores, reference).q_value <= 0.1
        false_shares.append(flagged[:1_900].sum() / max(1, flagged.sum()))
        found.append(flagged[1_900:].mean())
    standard_error = np.std(false_shares) / np.sqrt(len(false_shares))
    assert np.mean(false_shares) <= 0.1 + 2 * standard_error
    assert np.mean(false_shares) >= 0.04
    assert np.mean(found) >= 0.9


@pytest.mark.parametrize("with_reference", [True, False])
def test_a_clean_dataset_is_seldom_flagged_at_all(with_reference: bool) -> None:
    random = np.random.default_rng(5)
    flagged_any = 0
    for _ in range(300):
        reference = random.normal(0, 0.1, 400) if with_reference else None
        flagged_any += bool((calibrate(random.normal(0, 0.1, 400), reference).q_value <= 0.1).any())
    assert flagged_any <= binom.ppf(0.999, 300, 0.1)


def test_a_dataset_that_leans_towards_the_behavior_is_flagged_too_much_without_a_reference() -> None:
    """The documented limit of the mirror null, and its direction."""
    random = np.random.default_rng(9)
    towards, away = random.normal(0.1, 0.1, 5_000), random.normal(-0.1, 0.1, 5_000)
    assert (calibrate(towards).p_value <= 0.05).mean() > 0.1
    assert (calibrate(away).p_value <= 0.05).mean() < 0.01
    clean = random.normal(0.1, 0.1, 5_000)
    assert (calibrate(towards, clean).p_value <= 0.05).mean() == pytest.approx(0.05, abs=0.01)


def test_pairs_meant_against_the_behavior_cost_the_mirror_null_its_power() -> None:
    random = np.random.default_rng(11)
    clean, teaching = random.normal(0, 0.1, 1_000), random.normal(0.6, 0.1, 80)
    alone = np.concatenate([clean, teaching])
    beside = np.concatenate([clean, teaching, random.normal(-0.6, 0.1, 80)])
    assert (calibrate(alone).q_value[1_000:] <= 0.1).mean() > 0.9
    assert (calibrate(beside).q_value[1_000:1_080] <= 0.1).mean() < 0.1
    assert (calibrate(beside, clean[::2]).q_value[1_000:1_080] <= 0.1).mean() > 0.9


def test_a_small_reference_needs_many_discoveries_at_once() -> None:
    assert fewest_discoveries(0.05, pairs=1_000, null_size=199) == 100
    reference = np.linspace(-0.5, 0.5, 199)
    for count, flagged in ((99, 0), (100, 100)):
        scores = np.concatenate([np.full(count, 0.9), np.full(1_000 - count, -0.9)])
        assert (calibrate(scores, reference).q_value <= 0.05).sum() == flagged


def test_no_scores_give_no_values() -> None:
    worth = calibrate(np.empty(0, dtype=np.float32))
    assert len(worth.rank) == len(worth.percentile) == len(worth.p_value) == len(worth.q_value) == 0


def test_an_empty_reference_is_refused() -> None:
    with pytest.raises(SettingsError, match="at least one clean pair"):
        calibrate(np.float32([0.1]), np.empty(0))


def test_values_that_are_not_finite_are_refused_with_their_position() -> None:
    with pytest.raises(StoreError, match="1 of 3 scores are not finite, the first at position 2"):
        calibrate(np.float32([0.1, 0.2, np.nan]))
    with pytest.raises(StoreError, match="1 of 1 reference scores"):
        calibrate(np.float32([0.1]), np.array([np.inf]))
