"""Ids without a Python object each: what a list and a set of strings would say."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_attribution.errors import StoreError
from trl_attribution.store.ids import IdIndex, PairIds, parse_ids

IDS = st.integers(0, 40).map(lambda number: f"{number:030x}00")  # zero bytes at the end, which numpy leaves out


@settings(deadline=None)
@given(st.lists(IDS, max_size=30))
def test_pair_ids_are_the_list_that_they_were_made_of(texts: list[str]) -> None:
    ids = PairIds(parse_ids(texts))
    assert list(ids) == texts and ids == texts and texts == ids and ids == tuple(texts)
    assert ids[1:4] == tuple(texts[1:4]) and [ids[place] for place in range(len(ids))] == texts
    assert (ids == [*texts, "0" * 32]) is False and ids != PairIds(parse_ids([*texts, "0" * 32]))
    assert parse_ids(ids) is ids.array and pa.array(ids, pa.string()).to_pylist() == texts


@settings(deadline=None)
@given(st.lists(st.lists(IDS, max_size=9), max_size=12))
def test_an_index_of_ids_tells_which_are_new_and_where_they_are(batches: list[list[str]]) -> None:
    index, rows = IdIndex(), dict[str, int]()
    for batch in batches:
        new = [text not in rows and text not in batch[:place] for place, text in enumerate(batch)]
        assert index.take_new(parse_ids(batch)).tolist() == new
        for text in batch:
            rows.setdefault(text, len(rows))
        asked = [f"{number:030x}00" for number in range(42)]
        assert index.find(parse_ids(asked)).tolist() == [rows.get(text, -1) for text in asked]


def test_an_index_of_many_small_portions_keeps_few_arrays() -> None:
    index, chance = IdIndex(), np.random.default_rng(0)
    for _ in range(100):
        index.append(np.frombuffer(chance.bytes(16 * 256), dtype="S16"))
    sizes = [len(rising) for rising, _ in index._parts]
    assert sum(sizes) == 25_600 and len(sizes) < 10 and len(index.repeated()) == 0


def test_what_is_no_pair_id_is_refused() -> None:
    with pytest.raises(StoreError, match="'xyz' is not a pair id"):
        parse_ids(["xyz"])
