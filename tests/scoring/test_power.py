"""A false discovery rate that so few scores cannot reach is told before there is a score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.scoring_cases import MODEL
from trl_attribution.probes import Probe
from trl_attribution.scoring import Rule, p_values, power_notes, q_values

PROBE = Probe("rude", (5,), torch.eye(3)[:1], 5, MODEL)


def calibrated(pairs: int, kind: str = "response") -> Probe:
    built = {"calibration": {"kind": kind, "pairs": pairs}}
    return replace(PROBE, reference_scores=torch.zeros(1, pairs), built=built)


@pytest.mark.parametrize("pairs", [4, 18, 19, 20])
def test_a_note_is_made_exactly_where_no_score_however_high_is_flagged(pairs: int) -> None:
    best = np.linspace(0.5, 1.0, pairs)  # every pair beats the whole mirrored null
    is_reachable = bool((q_values(p_values(best)) <= 0.05).any())
    notes = power_notes(Rule(fdr=0.05), pairs, [PROBE], "auto")
    assert bool(notes) == (not is_reachable) == (pairs < 19)
    for note in notes:
        assert f"rude: no pair can be flagged at fdr 0.05 with {pairs} pairs to compare with; that takes 19" in note


def test_a_small_reference_is_told_with_how_many_pairs_have_to_beat_it() -> None:
    (hopeless,) = power_notes(Rule(fdr=0.05), 1000, [calibrated(10)], "auto")
    assert "no pair can be flagged at fdr 0.05 with 10 clean pairs to compare with; that takes 19" in hopeless
    (weak,) = power_notes(Rule(fdr=0.05), 1000, [calibrated(99)], "auto")
    assert "with 99 clean pairs to compare with, pairs are flagged at fdr 0.05 only where 200 of 1,000 or more" in weak
    assert power_notes(Rule(fdr=0.05), 1000, [calibrated(999)], "auto") == ()


def test_scores_of_another_kind_are_no_reference_and_other_rules_have_no_such_limit() -> None:
    assert power_notes(Rule(fdr=0.05), 1000, [calibrated(10, "contextual")], "auto") == ()
    assert power_notes(Rule(top_k=1), 4, [PROBE], "auto") == power_notes(Rule(threshold=0.1), 4, [PROBE], "auto") == ()
