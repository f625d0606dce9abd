"""Let the C library keep what one forward pass, or block of scores, frees for the next: page by page it is slow."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Numbers of mallopt(3) and the largest value it takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1
# Where glibc's own thresholds end up in any process that has freed a tensor of 32 MiB. Setting one of them switches
# that rule off for good, so this is what a process is left with.
_MMAP_USUAL, _TRIM_USUAL = 32 * 2**20, 64 * 2**20
_SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory in the process inside the block; it goes back to the system at the end.

    A forward pass on a CPU frees more than the 64 MiB that glibc keeps at most, so every pass would fetch the same
    pages anew. Nothing happens with another C library, or where the environment sets malloc's thresholds.
    """
    libc = None if any(name in os.environ for name in _SET_BY_USER) else _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _MMAP_USUAL)
    libc.mallopt(_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, _TRIM_USUAL)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no library of the whole process
        return None
    return library if hasattr(library, "gnu_get_libc_version") else None
