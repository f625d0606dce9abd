"""What a probe and a dataset cannot be compared by is told before there is a score; few pairs are not left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.scoring_cases import HIDDEN, random_probe, random_store
from trl_attribution.errors import ProbeError
from trl_attribution.scoring import fit_notes, score_view
from trl_attribution.scoring.asked import Column
from trl_attribution.scoring.scores import NEUTRAL_PAIRS

COLUMN = Column("insults", 9, "contextual")


@pytest.mark.parametrize(("form", "told"), [("messages", False), ("text", True), (None, False)])
def test_a_probe_of_messages_and_a_dataset_of_text_are_told_apart(form: str | None, told: bool) -> None:
    probe = replace(random_probe(), built={} if form is None else {"prompts_are": form})
    notes = fit_notes(500, [probe], "auto", conversational=True)
    assert bool(notes) == told
    assert all("--prompt-format chat" in note for note in notes)
    assert bool(fit_notes(500, [probe], "auto", conversational=False)) == (form == "messages")
    assert fit_notes(500, [probe], "auto", conversational=None) == ()


def test_a_reference_of_another_kind_of_score_is_told_not_silently_left_aside() -> None:
    probe = replace(random_probe(), reference_scores=torch.rand(2, 40), built={"calibration": {"kind": "contextual"}})
    (told,) = fit_notes(500, [probe], "one-sided", conversational=True)
    assert "calibrated by contextual scores" in told and "--score one-sided" in told
    with pytest.raises(ProbeError, match="calibrated by an earlier version"):
        fit_notes(500, [probe], "contextual", conversational=True)
    probe = replace(probe, reference_center=torch.zeros_like(probe.vector))
    assert fit_notes(500, [probe], "contextual", conversational=True) == ()
    assert fit_notes(500, [random_probe()], "one-sided", conversational=True) == ()


def test_few_pairs_are_told_wherever_contexts_are_centered_by_them() -> None:
    probe = random_probe()
    (alone,) = fit_notes(15, [probe], "auto", conversational=True)
    assert "centered by 15 pairs alone" in alone
    (helped,) = fit_notes(15, [replace(probe, neutral_center=torch.zeros(2, HIDDEN))], "auto", conversational=True)
    assert "everyday prompts" in helped
    assert fit_notes(16, [probe], "auto", conversational=True) == ()
    assert fit_notes(15, [probe], "response", conversational=True) == ()


def test_everyday_prompts_count_for_as_many_pairs_in_the_center(tmp_path: Path) -> None:
    view = random_store(tmp_path / "v", pairs=4).view()
    neutral = torch.full((2, HIDDEN), 3.0)
    probe = replace(random_probe(), neutral_center=neutral)
    plain = replace(random_probe("plain"), neutral_center=None)
    scores = score_view(view, [probe, plain])
    mean = view.context(9).mean(dim=0)
    expected = (4 * mean + NEUTRAL_PAIRS * neutral[1]) / (4 + NEUTRAL_PAIRS)
    torch.testing.assert_close(scores.centers[COLUMN], expected)
    by_hand = score_view(view, [random_probe()], layers=[9], context_means={9: expected})
    np.testing.assert_allclose(scores.of(COLUMN), by_hand.of(COLUMN), atol=2e-7)
    # A probe beside it that knows no everyday prompts is scored as if it were alone.
    other = Column("plain", 9, "contextual")
    np.testing.assert_array_equal(scores.of(other), score_view(view, [plain], layers=[9]).of(other))


def test_a_gate_that_gives_the_mean_of_so_many_pairs_scores_as_an_audit_of_them(tmp_path: Path) -> None:
    view = random_store(tmp_path / "v", pairs=20).view()
    probe = replace(random_probe(), neutral_center=torch.full((2, HIDDEN), 3.0))
    audit = score_view(view, [probe], layers=[9])
    gate = score_view(view, [probe], layers=[9], context_means=audit.context_means, means_of=20)
    np.testing.assert_allclose(gate.of(COLUMN), audit.of(COLUMN), atol=2e-7)


def test_one_pair_alone_has_a_score(tmp_path: Path) -> None:
    store = random_store(tmp_path / "v")
    probe = random_probe()
    one = store.select(store.pair_ids[:1])
    assert float(score_view(one, [probe], layers=[9]).of(COLUMN)[0]) == 0.0
    probe = replace(probe, neutral_center=store.context(9).mean(dim=0).expand(2, HIDDEN))
    assert float(score_view(one, [probe], layers=[9]).of(COLUMN)[0]) != 0.0
