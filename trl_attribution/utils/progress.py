"""Work in stages: how callers hear of its progress, and how long each stage took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

OnProgress = Callable[[str, int, int], None]
"""Called with the stage (``read``, ``vectors``, ``scores``, ...), what is done of it, and its total (0 if unknown)."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress of a caller who asked for none."""


@dataclass
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time the block as ``stage``."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start

    def rounded(self) -> dict[str, float]:
        """The seconds as files show them."""
        return {stage: round(taken, 3) for stage, taken in self.seconds.items()}
