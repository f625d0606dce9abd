"""What to make of one column of scores: what is flagged, how much that catches, and how much of it is wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trl_attribution.scoring.prevalence import Prevalence, estimate
from trl_attribution.scoring.recall import KnownScores, Rate, RecallThreshold, share_above, threshold_for


@dataclass(frozen=True)
class KnownPairs:
    """Scores of the pairs that a probe knows, none of them scored by a model that saw its prompt."""

    examples: KnownScores
    controls: KnownScores | None = None


@dataclass(frozen=True)
class Decision:
    """A threshold with a stated recall, how often other pairs reach it, and an estimate of what is there."""

    threshold: RecallThreshold
    prevalence: Prevalence
    false_positives: dict[str, Rate]
    """By the name of what it was measured on: ``controls``, ``opposites``. The neutral pairs' is ``prevalence``'s."""

    @property
    def flags_anything(self) -> bool:
        """Whether pairs at the threshold are flagged: not where all of them may well be chance."""
        return self.prevalence.is_evidence

    def passes(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """[N]: which of ``scores`` are flagged."""
        if not self.flags_anything:
            return np.zeros(len(scores), dtype=bool)
        return np.asarray(scores.astype(np.float64) >= self.threshold.threshold)

    def sentence(self, behavior: str) -> str:
        """What a person has to know at this moment."""
        found, recall = self.prevalence, f"about {self.threshold.recall.value:.0%}"
        alike = (
            ""
            if "controls" in self.false_positives
            else " No controls are known: pairs that only look alike count too."
        )
        if not found.is_evidence:
            return (
                f"no evidence of {behavior}: {found.count} of {found.pairs:,} pairs push towards it. Nothing is "
                f"flagged; {found.above:,} reach the threshold that catches {recall} of pairs like the examples, and "
                f"all of them may be chance. Read the top 10 all the same.{alike}"
            )
        return (
            f"about {found.count} of {found.pairs:,} pairs push towards {behavior}; flagged {found.above:,} "
            f"(catches {recall}), of which about {found.wrong.value:.0f} ({found.wrong}) are expected to be wrong."
            f"{alike}"
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values, for files and ``--json``."""
        return {**asdict(self), "evidence": self.prevalence.is_evidence}


def decide(scores: npt.ArrayLike, recall: float, known: KnownPairs, *, seed: int = 0) -> Decision:
    """Decide about ``scores`` [N] by what the same probe gives the pairs that it knows.

    Raises:
        SettingsError: ``recall`` is out of range, or there are no scores.
        StoreError: scores that are not finite.
    """
    of_examples = threshold_for(recall, known.examples)
    found = estimate(scores, known.examples, known.controls, of_examples.threshold, seed=seed)
    # Opposites are pairs of the same prompts: the dataset's are stretched as those that push towards the behavior are.
    rates = {"opposites": share_above(of_examples.threshold, known.examples.flipped())}
    if known.controls is not None:
        rates["controls"] = share_above(found.threshold, known.controls)
    return Decision(replace(of_examples, threshold=found.threshold), found, rates)
