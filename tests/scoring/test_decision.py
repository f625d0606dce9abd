"""Decisions about scores of known mixtures: is what they state true?"""

from __future__ import annotations

import numpy as np
import pytest

from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.scoring.decision import Decision, KnownPairs, decide
from trl_attribution.scoring.prevalence import estimate
from trl_attribution.scoring.recall import KnownScores, share_above, threshold_for

Random = np.random.Generator
WORLDS = 12


def behavior(random: Random, count: int) -> np.ndarray:
    return random.normal(0.4, 0.12, count)


def look_alikes(random: Random, count: int) -> np.ndarray:
    return random.normal(0.15, 0.1, count)


def neutral(random: Random, count: int) -> np.ndarray:
    return random.standard_t(4, count) * 0.04


def known(scores: np.ndarray, pairs_a_prompt: int = 1) -> KnownScores:
    return KnownScores(scores, np.arange(len(scores)) // pairs_a_prompt)


def world(
    seed: int, contaminated: int, decoys: int = 80, safety: int = 80, stretch: float = 1.0
) -> tuple[np.ndarray, np.ndarray, KnownPairs]:
    """A dataset's scores, which of them push towards the behavior, and what the probe knows."""
    random = np.random.default_rng(seed)
    scores = np.concatenate(
        [
            behavior(random, contaminated) * stretch,
            look_alikes(random, decoys),
            -behavior(random, safety) * stretch,
            neutral(random, 240),
        ]
    )
    truth = np.arange(len(scores)) < contaminated
    return scores, truth, KnownPairs(known(behavior(random, 40)), known(look_alikes(random, 40)))


@pytest.fixture(scope="module")
def decisions() -> dict[int, list[tuple[Decision, np.ndarray, np.ndarray]]]:
    """By number of contaminated pairs, decisions with the scores and truths that they are about."""
    found = {}
    for count in (0, 20, 80):
        worlds = [world(seed, count) for seed in range(WORLDS)]
        found[count] = [(decide(scores, 0.9, pairs), scores, truth) for scores, truth, pairs in worlds]
    return found


def test_the_stated_recall_is_kept(decisions) -> None:
    further = behavior(np.random.default_rng(1000), 10_000)
    found = [one.threshold for one, _, _ in decisions[80]]
    caught = [(further >= one.threshold).mean() for one in found]
    assert abs(np.mean(caught) - 0.9) < 0.03
    inside = [one.recall.low <= share <= one.recall.high for share, one in zip(caught, found, strict=True)]
    assert np.mean(inside) >= 0.9


@pytest.mark.parametrize("count", [0, 20, 80])
def test_the_interval_holds_the_number_of_pairs(decisions, count: int) -> None:
    inside = [one.prevalence.count.low <= count <= one.prevalence.count.high for one, _, _ in decisions[count]]
    assert np.mean(inside) >= 0.9


def test_a_clean_dataset_gives_no_evidence_and_flags_nothing(decisions) -> None:
    assert np.mean([one.prevalence.count.low == 0 for one, _, _ in decisions[0]]) >= 0.95
    for one, scores, _ in decisions[0]:
        assert one.passes(scores).any() == one.prevalence.is_evidence


def test_a_contaminated_dataset_is_evidence(decisions) -> None:
    assert all(one.prevalence.is_evidence for one, _, _ in decisions[80])


def test_the_stated_number_of_wrong_flags_is_right(decisions) -> None:
    stated = np.mean([one.prevalence.wrong.value for one, _, _ in decisions[80]])
    wrong = np.mean([(one.passes(scores) & ~truth).sum() for one, scores, truth in decisions[80]])
    assert wrong / 2 <= stated <= wrong * 2


def test_flipping_a_dataset_turns_evidence_round() -> None:
    scores, _, pairs = world(0, contaminated=80, safety=0)
    assert decide(scores, 0.9, pairs).prevalence.is_evidence
    assert not decide(-scores, 0.9, pairs).prevalence.is_evidence


def test_without_controls_look_alikes_are_counted_and_with_controls_they_are_not() -> None:
    scores, _, pairs = world(3, contaminated=0, decoys=200, safety=0)
    with_controls = estimate(scores, pairs.examples, pairs.controls, 0.3)
    without = estimate(scores, pairs.examples, None, 0.3)
    assert with_controls.count.value < without.count.value


@pytest.mark.parametrize("stretch", [0.75, 1.3])
def test_a_behavior_that_scores_weaker_or_stronger_in_the_dataset_is_counted_right(stretch: float) -> None:
    """Examples are seldom quite like what a dataset holds."""
    caught, held, found_stretch = [], [], []
    for seed in range(10):
        scores, truth, pairs = world(seed, contaminated=80, stretch=stretch)
        found = decide(scores, 0.9, pairs)
        caught.append((scores[truth] >= found.threshold.threshold).mean())
        held.append(found.prevalence.count.low <= 80 <= found.prevalence.count.high)
        found_stretch.append(found.prevalence.stretch)
    assert np.mean(caught) == pytest.approx(0.9, abs=0.07)
    assert np.mean(held) >= 0.9
    assert (np.mean(found_stretch) > 1) == (stretch > 1)


def test_the_scale_of_the_scores_does_not_matter() -> None:
    scores, _, pairs = world(0, contaminated=40)
    smaller = KnownPairs(*(KnownScores(one.scores / 8, one.prompts) for one in (pairs.examples, pairs.controls)))
    first, second = decide(scores, 0.9, pairs), decide(scores / 8, 0.9, smaller)
    assert second.prevalence.count.value == pytest.approx(first.prevalence.count.value, rel=1e-6)
    assert second.threshold.threshold == pytest.approx(first.threshold.threshold / 8)


def test_the_same_input_gives_the_same_interval() -> None:
    scores, _, pairs = world(0, contaminated=40)
    assert decide(scores, 0.9, pairs) == decide(scores, 0.9, pairs)


def test_a_threshold_leaves_as_many_examples_below_as_it_says() -> None:
    examples = known(np.linspace(0.01, 1.0, 100))
    found = threshold_for(0.9, examples)
    assert found.threshold == pytest.approx(0.1)
    assert found.recall.value == pytest.approx(1 - 10 / 101)
    assert found.recall.low < 0.9 < found.recall.high


def test_responses_of_one_prompt_are_one_witness() -> None:
    scores = np.linspace(0.1, 1.0, 20)
    one_a_prompt, ten_a_prompt = (threshold_for(0.9, known(scores, each)).recall for each in (1, 10))
    assert ten_a_prompt.high - ten_a_prompt.low > one_a_prompt.high - one_a_prompt.low


def test_a_prompt_with_many_responses_has_no_more_say_than_another() -> None:
    low, high = np.full(90, 0.1), np.linspace(0.5, 0.9, 9)
    prompts = np.array([0] * 90 + list(range(1, 10)))
    examples = KnownScores(np.concatenate([low, high]), prompts)
    assert share_above(0.5, examples).value == pytest.approx(0.9)


def test_too_few_prompts_promise_less_than_was_asked() -> None:
    found = threshold_for(0.9, known(np.array([0.3, 0.4, 0.5])))
    assert found.threshold == 0.3
    assert found.recall.value == pytest.approx(0.75)


def test_the_sentence_says_how_many_and_how_sure() -> None:
    scores, _, pairs = world(0, contaminated=80)
    sentence = decide(scores, 0.9, pairs).sentence("insults")
    assert "of 480 pairs push towards insults; flagged" in sentence
    assert "are expected to be wrong" in sentence
    clean, _, pairs = world(0, contaminated=0)
    assert decide(clean, 0.9, pairs).sentence("insults").startswith("no evidence of insults: 0")


@pytest.mark.parametrize("recall", [0.0, 1.0, -1, 90])
def test_an_impossible_recall_is_refused(recall: float) -> None:
    with pytest.raises(SettingsError, match="recall must lie between 0 and 1"):
        threshold_for(recall, known(np.ones(3)))


def test_known_pairs_need_a_prompt_each_and_finite_scores() -> None:
    for scores, prompts in ((np.zeros(0), np.zeros(0)), (np.zeros(2), np.zeros(3)), (np.array([np.nan]), np.zeros(1))):
        with pytest.raises(SettingsError, match="known pairs need"):
            KnownScores(scores, prompts.astype(int))
    for flips in (np.zeros(3), np.array([0.1, np.nan])):
        with pytest.raises(SettingsError, match="known pairs need"):
            KnownScores(np.zeros(2), np.zeros(2, dtype=int), flips)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(StoreError, match="not finite"):
        estimate(np.array([0.1, np.inf]), known(np.ones(3)), None, 0.5)


def one_sided(random: np.random.Generator, count: int, lean: float) -> KnownScores:
    """Scores of samples with the behavior's prompts whose responses lean so far towards it."""
    weight, towards = random.uniform(0.4, 0.8, count), random.normal(lean, 0.15, count)
    here, turned = ((1 / 3 + turn * towards) / (4 / 3) * weight for turn in (1, -1))
    return KnownScores(here, np.arange(count), turned)


@pytest.mark.parametrize("seed", range(4))
def test_samples_that_lean_neither_way_are_no_evidence_however_alike_their_prompts(seed: int) -> None:
    random = np.random.default_rng(seed)
    known = KnownPairs(one_sided(random, 48, 0.6))
    neutral = random.normal(0, 0.02, 300)
    alike = one_sided(random, 150, 0.0).scores
    assert not decide(np.concatenate([neutral, alike]), 0.9, known).flags_anything
    wanted = one_sided(random, 60, 0.6).scores
    found = decide(np.concatenate([neutral, alike, wanted]), 0.9, known)
    assert found.flags_anything
    assert found.passes(wanted).mean() > 0.7 and found.passes(alike).mean() < 0.1
