"""Runs drawn at random read M0, or say why they cannot; scripts/nightly_reference.py draws more of them."""

from __future__ import annotations

import pytest

from tests.reference_draws import checked, drawn

SEEDS = range(1000, 1012)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_drawn_at_random_reads_m0_or_says_why_not(seed: int) -> None:
    outcome = checked(drawn(seed))
    assert outcome.verdict in ("equal", "refused", "not runnable"), f"{drawn(seed)}: {outcome}"


def test_the_draws_cover_many_architectures_and_ways_to_go_wrong() -> None:
    draws = [drawn(seed) for seed in SEEDS]
    assert len({draw.architecture for draw in draws}) >= 6
    assert len({draw.adapter for draw in draws}) >= 6
    assert any(draw.noisy for draw in draws) and any(draw.mover != "none" for draw in draws)
    assert any(draw.settings["precompute_ref_log_probs"] for draw in draws)
