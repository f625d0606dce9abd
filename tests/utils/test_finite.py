"""Numbers are finite, or they are not: whatever their sum is."""

from __future__ import annotations

import pytest
import torch

from trl_attribution.utils.finite import all_finite

MOST = torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], True),
        ([0.0, -1.0, 2.0], True),
        ([MOST, MOST], True),  # whose sum is infinite
        ([MOST, MOST, -MOST, -MOST], True),
        ([1.0, float("nan")], False),
        ([1.0, float("inf")], False),
        ([float("inf"), float("-inf")], False),
    ],
)
def test_the_sum_of_numbers_tells_whether_all_are_finite(values: list[float], expected: bool) -> None:
    assert all_finite(torch.tensor(values)) is expected
    assert all_finite(torch.tensor(values).reshape(-1, 1)) is expected


def test_numbers_of_half_the_width_may_add_up_to_more_than_fits_them() -> None:
    assert all_finite(torch.full((1000,), 60_000.0, dtype=torch.float16))
    assert not all_finite(torch.tensor([1e6]).half())
