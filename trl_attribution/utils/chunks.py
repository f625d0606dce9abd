"""Items some at a time, as ``itertools.batched`` has them from Python 3.12 on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """``items`` in order, ``size`` at a time; the last chunk may be smaller."""
    left = iter(items)
    while chunk := list(islice(left, size)):
        yield chunk
