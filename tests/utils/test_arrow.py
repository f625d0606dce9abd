"""Numbers and words go from Arrow to NumPy and back as pyarrow's own ways take them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from trl_attribution.utils import arrow


@pytest.mark.parametrize("kind", ["int32", "int64", "float32", "float64"])
def test_numbers_are_those_of_pyarrow_in_chunks_slices_and_beside_nulls(kind: str) -> None:
    whole = pa.array([3, 1, 4, 1, 5], kind)
    parts = pa.chunked_array([whole.slice(1, 2), whole.slice(0, 0), whole.slice(3)])
    for one in (whole, whole.slice(2), parts, parts.slice(1, 2)):
        assert arrow.numbers(one).tolist() == one.to_pylist()
        assert arrow.numbers(one).dtype == kind
    assert arrow.numbers(pa.chunked_array([], kind)).tolist() == []
    held = arrow.numbers(pa.array([1, None], kind))
    assert held[0] == 1 and np.isnan(held[1])


def test_words_and_places_are_what_they_were() -> None:
    names = pa.array(["a", "", "é🙂", "b" * 40])
    assert arrow.words(names.to_pylist()).to_pylist() == names.to_pylist()
    assert arrow.words([]).to_pylist() == []
    assert names.take(arrow.places(np.array([3, 0, 2])[::2])).to_pylist() == ["b" * 40, "é🙂"]
