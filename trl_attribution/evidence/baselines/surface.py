"""Baselines that look at no meaning at all: chance, and how long the responses are."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trl_attribution.evidence.baselines.baseline import BaselineScores, Cost, PairSet
from trl_attribution.pairs import whole_text
from trl_attribution.utils.progress import OnProgress, silent


@dataclass(frozen=True)
class RandomOrder:
    """Chance: a number from 0 to 1 that depends on the seed and the pair's id alone, so other pairs do not matter."""

    seed: int = 0

    @property
    def name(self) -> str:
        """``random``, with the seed where it is not 0."""
        return f"random:{self.seed}" if self.seed else "random"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The seed."""
        return {"baseline": "random", "seed": self.seed}

    def __call__(self, pairs: PairSet, on_progress: OnProgress = silent) -> BaselineScores:
        """Draw a number for each pair."""
        start = time.perf_counter()
        scores = {pair.pair_id: self._number(pair.pair_id) for pair in pairs}
        on_progress(self.name, len(scores), len(scores))
        return BaselineScores(self.name, scores, Cost(time.perf_counter() - start))

    def _number(self, pair_id: str) -> float:
        digest = hashlib.sha256(f"{self.seed}/{pair_id}".encode()).digest()
        # As many bits as a float can tell apart.
        return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


@dataclass(frozen=True)
class ResponseLength:
    """Characters of the chosen response, less those of the rejected one unless ``chosen_only``."""

    chosen_only: bool = False

    @property
    def name(self) -> str:
        """``length`` or ``length-chosen``."""
        return "length-chosen" if self.chosen_only else "length"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Which length."""
        return {"baseline": self.name}

    def __call__(self, pairs: PairSet, on_progress: OnProgress = silent) -> BaselineScores:
        """Measure each pair."""
        start = time.perf_counter()
        scores: dict[str, float] = {}
        for pair in pairs:
            rejected = 0 if self.chosen_only else len(whole_text(pair.rejected))
            scores[pair.pair_id] = float(len(whole_text(pair.chosen)) - rejected)
        on_progress(self.name, len(scores), len(scores))
        return BaselineScores(self.name, scores, Cost(time.perf_counter() - start))
