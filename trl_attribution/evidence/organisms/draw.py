"""Random draws that come out the same on every Python version, machine and hash seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A stream of choices named by text such as ``"0/benign"``; streams of other names are independent.

    Only ``Random.random`` is used: it is the one method whose sequence Python promises to keep for a seed.
    """

    def __init__(self, name: str) -> None:
        self._random = random.Random(name)

    def below(self, limit: int) -> int:
        """An integer from 0 to ``limit - 1``."""
        return int(self._random.random() * limit)

    def between(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random.random() < probability

    def one(self, items: Sequence[T]) -> T:
        """One of the items, each as likely as the others."""
        return items[self.below(len(items))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """``count`` different items (all of them when there are fewer), in random order."""
        return self.shuffled(items)[:count]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order, as a new list."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def weighted(self, weights: Sequence[tuple[T, float]]) -> T:
        """One of the items, drawn in proportion to the weight beside it."""
        mark = self._random.random() * sum(weight for _, weight in weights)
        for item, weight in weights:
            mark -= weight
            if mark < 0:
                return item
        return weights[-1][0]
