"""Tokens come back from the spool as they went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_attribution.errors import AttributionError
from trl_attribution.pairs import EncodedPair, EncodedResponse
from trl_attribution.pairs.token_spool import TokenSpool

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=5)
RESPONSES = st.builds(EncodedResponse, TOKENS, TOKENS)


@settings(max_examples=60, deadline=None)
@given(sides=st.lists(st.tuples(RESPONSES, RESPONSES, st.booleans()), max_size=6), wanted=st.sets(st.integers(0, 5)))
def test_the_pairs_asked_for_come_back_in_order_any_number_of_times(
    tmp_path_factory: pytest.TempPathFactory,
    sides: list[tuple[EncodedResponse, EncodedResponse, bool]],
    wanted: set[int],
) -> None:
    spool = TokenSpool(tmp_path_factory.getbasetemp())
    pairs = []
    for number, (chosen, rejected, shares) in enumerate(sides):
        other = EncodedResponse(chosen.prompt_ids, rejected.response_ids) if shares else rejected
        pairs.append(EncodedPair(f"{number:032x}", chosen, other))
        spool.add(pairs[-1])
    asked = np.array([number in wanted for number in range(len(pairs))], dtype=bool)
    for _ in range(2):
        assert list(spool.read(asked)) == [pair for number, pair in enumerate(pairs) if number in wanted]
    assert len(spool) == len(pairs)


def test_nothing_of_a_spool_is_seen_in_its_folder(tmp_path: Path) -> None:
    spool = TokenSpool(tmp_path / "not" / "there" / "yet")
    spool.add(EncodedPair("0" * 32, EncodedResponse([1], [2]), EncodedResponse([1], [3])))
    assert list(spool.read(np.array([True]))) and list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named() -> None:
    with pytest.raises(AttributionError, match="/proc/self/audit"):
        TokenSpool(Path("/proc/self/audit"))
