"""Controlled scores: the definition, one pair at a time; known pairs are scored by a probe that has not seen them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.scoring_cases import HIDDEN, random_probe, random_store, store_of
from trl_attribution.errors import ProbeError
from trl_attribution.probes.probe import Probe
from trl_attribution.scoring import Column, ScoreTable, score_view, write_scores
from trl_attribution.scoring.controlled import PENALTY, ContextClassifier
from trl_attribution.scoring.held_out import FEWEST_PROMPTS, known_pairs

PROMPTS = 12


def controlled_probe(prompts: int = PROMPTS, seed: int = 2) -> Probe:
    """A probe with pairs of its own and controls whose contexts lie elsewhere."""
    probe = random_probe(prompts=prompts, seed=seed)
    assert probe.prompt_vectors is not None
    generator = torch.Generator().manual_seed(seed + 100)
    noise = torch.randn(2 * prompts, 2, HIDDEN, generator=generator)
    return replace(
        probe,
        example_vectors=probe.prompt_vectors.repeat_interleave(2, dim=0) + 0.3 * noise,
        example_prompts=torch.arange(prompts).repeat_interleave(2),
        control_contexts=torch.randn(10, 2, HIDDEN, generator=generator) + 2.5,
    )


def sklearn_likelihood(behavior: Tensor, controls: Tensor, contexts: Tensor) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / PENALTY, tol=1e-10, max_iter=10_000))
    rows = torch.cat([behavior, controls]).double().numpy()
    model.fit(rows, [1] * len(behavior) + [0] * len(controls))
    return model.predict_proba(contexts.double().numpy())[:, 1]


def test_the_classifier_is_a_logistic_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    behavior, controls, contexts = (torch.randn(size, 40, generator=generator) + size / 10 for size in (12, 9, 30))
    found = ContextClassifier.fit(behavior, controls)(contexts)
    assert np.allclose(found.numpy(), sklearn_likelihood(behavior, controls, contexts), atol=1e-5)


def test_controlled_scores_are_those_of_the_definition(tmp_path: Path) -> None:
    store, probe = random_store(tmp_path / "store"), controlled_probe()
    scores = score_view(store.view(), [probe], scratch=tmp_path)
    assert {column.kind for column in scores.columns} == {"controlled"}
    pair, context = store.view().layer(9).double(), store.view().context(9).double()
    assert probe.contexts is not None
    assert probe.control_contexts is not None
    own, mean = probe.contexts[:, 1].double(), context.mean(dim=0)
    likely = sklearn_likelihood(own, probe.control_contexts[:, 1], context)
    cosine = torch.nn.functional.cosine_similarity
    expected = [
        float(cosine(v, probe.vector[1].double(), dim=0))
        * float(np.sqrt(p * cosine(c - mean, own - mean).clamp(min=0).mean().item()))
        for v, c, p in zip(pair, context, likely, strict=True)
    ]
    assert np.allclose(scores.of(Column("insults", 9, "controlled")), expected, atol=1e-5)


def test_flipping_a_pair_negates_its_controlled_score_exactly(tmp_path: Path) -> None:
    store, probe = random_store(tmp_path / "a"), controlled_probe()
    pair, context = (
        torch.stack([get(layer) for layer in (5, 9)], dim=1) for get in (store.view().layer, store.view().context)
    )
    flipped = store_of(tmp_path / "b", -pair, context, (5, 9))
    column = Column("insults", 9, "controlled")
    first, second = (score_view(each.view(), [probe], scratch=tmp_path).of(column) for each in (store, flipped))
    assert np.array_equal(first, -second)


@pytest.mark.parametrize("controls", [True, False])
def test_one_sided_scores_are_those_of_the_definition(controls: bool, tmp_path: Path) -> None:
    store, known = random_store(tmp_path / "store"), controlled_probe()
    probe = known if controls else replace(known, control_contexts=None)
    scores = score_view(store.view(), [probe, replace(known, name="other")], "one-sided", scratch=tmp_path)
    pair, context = store.view().layer(9).double(), store.view().context(9).double()
    assert probe.contexts is not None and known.control_contexts is not None
    own, centred = probe.contexts[:, 1].double(), context - context.mean(dim=0)
    likely = sklearn_likelihood(own, known.control_contexts[:, 1], context) if controls else np.ones(len(pair))
    cosine = torch.nn.functional.cosine_similarity
    alike = cosine(centred[:, None], (own - context.mean(dim=0))[None], dim=-1).clamp(min=0).mean(dim=1).numpy()
    towards = cosine(pair, probe.vector[1].double()[None]).numpy()
    column = Column("insults", 9, "one-sided")
    for turn, found in ((1, scores.of(column)), (-1, scores.flips_of(column))):
        assert np.allclose(found, (1 / 3 + turn * towards) / (4 / 3) * np.sqrt(alike * likely), atol=1e-5)
    reached = [1 + sum(scores.flips_of(column) >= score) for score in scores.of(column)]
    worth = scores.worth(column)
    assert worth.null == "mirror" and np.allclose(worth.p_value, np.array(reached) / (1 + len(pair)))


def test_a_sample_that_teaches_nothing_has_a_one_sided_score_of_0(tmp_path: Path) -> None:
    pair, context = torch.randn(6, 2, HIDDEN), torch.randn(6, 2, HIDDEN) + 3
    pair[2] = 0
    scores = score_view(store_of(tmp_path, pair, context, (5, 9)).view(), [controlled_probe()], "one-sided")
    assert scores.of(Column("insults", 9, "one-sided"))[2] == 0 and scores.zero_pairs == {5: 1, 9: 1}


def test_known_pairs_keep_what_they_would_score_flipped(tmp_path: Path) -> None:
    probe, mean = controlled_probe(), torch.full((HIDDEN,), 3.0)
    known = known_pairs(probe, 9, "one-sided", mean)
    assert probe.example_vectors is not None and known is not None and known.controls is not None
    other = known_pairs(replace(probe, example_vectors=-probe.example_vectors), 9, "one-sided", mean)
    assert other is not None and other.controls is not None
    for one, turned in ((known.examples, other.examples), (known.controls, other.controls)):
        assert np.array_equal(one.flipped().scores, turned.scores)
        assert not np.array_equal(one.flipped().scores, -one.scores)
    scores = score_view(random_store(tmp_path / "store").view(), [probe], "one-sided", scratch=tmp_path)
    column = Column("insults", 9, "one-sided")
    saved = ScoreTable.open(write_scores(tmp_path / "scores.parquet", scores, ["all"] * len(scores))).known[column]
    made = scores.known[column]
    for kept, first in ((saved.examples, made.examples), (saved.controls, made.controls)):
        assert kept is not None and first is not None
        assert np.array_equal(kept.flipped().scores, first.flipped().scores)


def test_the_score_asked_for_is_the_score_taken(tmp_path: Path) -> None:
    store, probe = random_store(tmp_path / "store"), controlled_probe()
    for kind in ("contextual", "response", "controlled", "one-sided"):
        assert {each.kind for each in score_view(store.view(), [probe], kind, scratch=tmp_path).columns} == {kind}
    with pytest.raises(ProbeError, match="has no controls"):
        score_view(store.view(), [random_probe()], "controlled", scratch=tmp_path)


@pytest.mark.parametrize("kind", ["contextual", "response", "controlled"])
def test_known_pairs_are_scored_by_a_probe_without_their_prompts(kind: str) -> None:
    probe, mean = controlled_probe(), torch.full((HIDDEN,), 3.0)
    known = known_pairs(probe, 9, kind, mean)
    assert known is not None
    assert known.examples.scores.shape == (2 * 2 * PROMPTS,)  # each left out in two ways
    assert known.examples.number_of_prompts == PROMPTS
    assert known.controls is not None
    assert known.controls.scores.shape == (10,)
    # Prompts that have nothing in common: a probe that had seen them would give them positive scores.
    assert abs(np.mean(known.examples.scores)) < 0.15
    assert probe.example_vectors is not None
    seen = torch.nn.functional.cosine_similarity(probe.example_vectors[:, 1], probe.vector[1][None])
    assert float(seen.mean()) > 0.2


def test_scores_carry_the_known_pairs_of_every_column(tmp_path: Path) -> None:
    store = random_store(tmp_path / "store")
    scores = score_view(store.view(), [controlled_probe(), random_probe("other")], scratch=tmp_path)
    assert {column.probe for column in scores.known} == {"insults"}
    assert {column.layer for column in scores.known} == {5, 9}


def test_a_probe_of_few_prompts_knows_no_held_out_pairs() -> None:
    assert known_pairs(controlled_probe(prompts=FEWEST_PROMPTS - 1), 9, "response", None) is None


def test_prompts_that_are_all_the_same_are_left_out_in_turn() -> None:
    probe = controlled_probe()
    assert probe.contexts is not None
    same = replace(probe, contexts=probe.contexts[:1].expand(PROMPTS, -1, -1))
    known = known_pairs(same, 9, "contextual", torch.zeros(HIDDEN))
    assert known is not None
    assert np.isfinite(known.examples.scores).all()
