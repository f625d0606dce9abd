"""What a scan predicts of training: the same as what is measured where responses change as the pairs say."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from trl_attribution.discovery import Change, ChangeVectors
from trl_attribution.discovery.findings import Prediction
from trl_attribution.discovery.prediction import Differences, agreement, compared, differences_of, predicted
from trl_attribution.discovery.similarity import Items
from trl_attribution.discovery.topics import Topics
from trl_attribution.discovery.traits.measures import counts_of
from trl_attribution.discovery.traits.panel import Gate, Panel
from trl_attribution.discovery.traits.trait import Contrast, Trait
from trl_attribution.report.prediction import prediction_view

PAIRS, HIDDEN = 240, 8
AXES = np.eye(HIDDEN)
EXAMPLES = tuple(Contrast(prompt="p", positive="a", negative="b") for _ in range(4))
TRAITS = (
    *(Trait(name=f"trait-{one}", towards=f"trait {one}", examples=EXAMPLES) for one in range(4)),
    Trait(name="longer", towards="longer answers", measure="words"),
)
SPREAD = np.array([1.0, 2.0, 0.5, 1.0, 1.0])
PANEL = Panel(TRAITS, np.concatenate([AXES[:4], np.zeros((1, HIDDEN))]), {}, (), layer=1, spread=SPREAD)
KINDS = np.repeat([0, 1], PAIRS // 2)
CONTEXTS = 5 * AXES[4 + KINDS]
NO_WORDS = np.zeros((PAIRS, 0))
TOPICS = Topics.of(CONTEXTS + np.random.default_rng(1).normal(0, 0.1, CONTEXTS.shape), NO_WORDS, fewest=PAIRS // 2)
PARTS = TOPICS.part_of_leaf[TOPICS.leaves_of(CONTEXTS, NO_WORDS)]
PUSH = np.array([[0.5, -0.4, 0.0, 0.2], [0.5, 0.8, 0.0, -0.6]])
"""How far the pairs of each topic reach along each trait's axis."""


def pair_vectors(seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(0, 0.3, (PAIRS, HIDDEN))
    found[:, :4] += PUSH[KINDS]
    return found


def differences(vectors: np.ndarray, panel: Panel = PANEL) -> Differences:
    along = panel.along(vectors).astype(np.float32)
    return Differences.of(panel, along, panel.applies(CONTEXTS), PARTS)


def prediction(vectors: np.ndarray, panel: Panel = PANEL) -> Prediction:
    words = {part: (f"topic{part}",) for part in TOPICS.parts}
    return Prediction(changes=predicted(panel, differences(vectors, panel), words, fewest=20))


def responses(vectors: np.ndarray, after: str = "yes", before: str = "no") -> ChangeVectors:
    """As if M1 answered every prompt so that its response lies where ``vectors`` say."""
    items = Items(torch.from_numpy(vectors)[:, None], torch.from_numpy(CONTEXTS)[:, None])
    return ChangeVectors(tuple(Change("p", (before,), (after,), "") for _ in vectors), items, {})


def measured_by(read: ChangeVectors, panel: Panel = PANEL) -> Differences:
    return differences_of(read, panel, TOPICS, NO_WORDS)


def test_the_prediction_is_the_mean_of_the_pairs_along_each_trait_in_its_unit() -> None:
    found = prediction(pair_vectors(0))
    overall = {one.trait: one for one in found.changes if one.topic is None}
    assert overall["trait-0"].predicted == pytest.approx(0.5, abs=0.06)
    assert overall["trait-1"].predicted == pytest.approx(0.2 / 2, abs=0.05)
    assert overall["trait-2"].predicted == pytest.approx(0, abs=4 * overall["trait-2"].predicted_error)
    by_topic = sorted(one.predicted for one in found.changes if one.trait == "trait-3" and one.topic is not None)
    assert by_topic == pytest.approx([-0.6, 0.2], abs=0.1)
    assert {one.pairs for one in found.changes} == {PAIRS, PAIRS // 2}


def test_what_is_measured_is_what_was_predicted_where_training_did_a_part_of_what_the_pairs_say() -> None:
    read = responses(0.3 * pair_vectors(1))
    found = compared(prediction(pair_vectors(0)), PANEL, measured_by(read), read.left_out)
    assert found.by_trait is not None and found.by_topic is not None
    assert min(found.by_trait.r2, found.by_topic.r2) > 0.9
    assert found.by_topic.slope == pytest.approx(0.3, abs=0.05)
    opposite = responses(-0.3 * pair_vectors(1))
    turned = compared(prediction(pair_vectors(0)), PANEL, measured_by(opposite), {}).by_topic
    assert turned is not None and turned.rank < -0.7 and turned.slope < 0


def test_labels_that_say_nothing_predict_nothing() -> None:
    signs = np.random.default_rng(2).choice([-1.0, 1.0], size=(PAIRS, 1))
    for one in prediction(pair_vectors(0) * signs).changes:
        assert abs(one.predicted) <= 4 * one.predicted_error


def test_what_is_counted_on_the_text_is_counted_on_the_responses_too() -> None:
    read = responses(np.zeros((PAIRS, HIDDEN)), after="one two three four", before="one")
    found = compared(prediction(pair_vectors(0)), PANEL, measured_by(read), {})
    longer = next(one for one in found.changes if one.trait == "longer")
    assert longer.measured == pytest.approx(float((counts_of("one two three four") - counts_of("one"))[0]), abs=1e-4)
    assert next(one for one in found.changes if one.trait == "trait-0").measured == 0


def test_a_trait_of_some_prompts_is_predicted_and_measured_on_those_and_elsewhere_it_is_counted() -> None:
    panel = replace(PANEL, gates={0: Gate(AXES[4], -1.0)})
    read = responses(pair_vectors(1))
    found = compared(prediction(pair_vectors(0), panel), panel, measured_by(read, panel), {"unread": 2})
    own = [one for one in found.changes if one.trait == "trait-0"]
    assert [one.pairs for one in own] == [PAIRS // 2] * 2 == [one.prompts for one in own]
    few = replace(measured_by(read, panel), applies=np.zeros((PAIRS, len(TRAITS)), dtype=bool))
    none = compared(prediction(pair_vectors(0), panel), panel, few, {})
    assert none.by_trait is none.by_topic is None and none.unmeasured == len(none.changes)
    assert found.left_out == {"unread": 2} and found.prompts == PAIRS


def test_agreement_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=40).round(1)
    y = 2 * x + rng.normal(size=40)
    found, line = agreement(x, y), stats.linregress(x, y)
    assert found is not None
    assert found.r2 == pytest.approx(line.rvalue**2, abs=1e-4)
    assert found.slope == pytest.approx(line.slope, abs=1e-4)
    assert found.rank == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-4)
    assert agreement([1, 2], [1, 2]) is None and agreement([1, 1, 1], [1, 2, 3]) is None


def test_parts_do_not_overlap_and_are_the_whole() -> None:
    assert sorted(np.bincount(PARTS).tolist())[-2:] == [PAIRS // 2] * 2
    rng = np.random.default_rng(4)
    many = Topics.of(rng.normal(size=(400, 12)), np.zeros((400, 0)), fewest=10)
    assert (many.members[list(many.parts)].sum(axis=0) == 1).all() and 2 <= len(many.parts) <= 6


def test_the_view_says_how_well_they_agree_and_hostile_words_reach_no_terminal() -> None:
    read = responses(pair_vectors(1))
    found = compared(prediction(pair_vectors(0)), PANEL, measured_by(read), {"does not fit": 1})
    hostile = tuple(one.model_copy(update={"words": ("\x1b[31mred\u202e[bold]",)}) for one in found.changes)
    screen = io.StringIO()
    Console(file=screen, width=120, force_terminal=False).print(
        prediction_view(found.model_copy(update={"changes": hostile}), 12)
    )
    shown = screen.getvalue()
    assert "over traits: R2 " in shown and "1 prompt not read: does not fit" in shown and "trait-1" in shown
    assert "\x1b" not in shown and "\u202e" not in shown and "[bold]" in shown
