"""Freed memory stays with the process while passes follow one another, and goes back to the system afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from trl_attribution.utils import allocator
from trl_attribution.utils.allocator import freed_memory_kept

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what glibc does, read from Linux's /proc")
PIECES, VALUES = 8, 5_000_000
MEBIBYTES = 4 * PIECES * VALUES // 2**20


def page_faults(passes: int) -> int:
    """Of ``passes`` passes, after one that fetches what there was not."""
    import resource

    use_memory()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(passes):
        use_memory()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start


def resident_mebibytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20


def use_memory() -> None:
    """What a pass does: tensors of 20 MB, all freed at its end."""
    held = [torch.ones(VALUES) for _ in range(PIECES)]
    assert len(held) == PIECES


def test_memory_freed_by_one_pass_serves_the_next_without_page_faults() -> None:
    pages = 5 * MEBIBYTES * 2**20 // 4096
    with freed_memory_kept():
        assert page_faults(passes=5) < pages / 4  # what is small may lie in the way of one tensor of eight


def test_the_memory_goes_back_at_the_end() -> None:
    with freed_memory_kept():
        use_memory()
    before = resident_mebibytes()
    with freed_memory_kept():
        use_memory()
        assert resident_mebibytes() - before > MEBIBYTES / 2
    assert resident_mebibytes() - before < MEBIBYTES / 4


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_thresholds_that_the_environment_sets_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[str] = []
    monkeypatch.setenv(name, "0")
    monkeypatch.setattr(allocator, "_glibc", lambda: asked_for.append("glibc"))
    with freed_memory_kept():
        use_memory()
    assert not asked_for
