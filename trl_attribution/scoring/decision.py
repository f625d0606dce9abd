"""What to make of one column of scores: what is flagged, how much that catches, and how much of it is wrong."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trl_attribution.scoring.prevalence import Interval, Prevalence, estimate
from trl_attribution.scoring.recall import CONFIDENCE, KnownScores, Rate, RecallThreshold, share_above, threshold_for
from trl_attribution.utils.kinds import PAIR, ExampleKind

_MEANT = {
    "opposites": "the examples turned round",
    "controls": "the controls",
    "neutral": "neutral {several} (by the fit)",
}


@dataclass(frozen=True)
class KnownPairs:
    """Scores of the pairs that a probe knows, none of them scored by a model that saw its prompt."""

    examples: KnownScores
    controls: KnownScores | None = None
    are_controls_own: bool = False
    """Whether they are the project's own harmless requests: then look-alikes of the dataset may be closer."""


@dataclass(frozen=True)
class Decision:
    """A threshold with a stated recall, how often other pairs reach it, and an estimate of what is there."""

    threshold: RecallThreshold
    prevalence: Prevalence
    false_positives: dict[str, Rate]
    """By the name of what it was measured on: ``controls``, ``opposites``. The neutral pairs' is ``prevalence``'s."""
    are_controls_own: bool = False
    """Whether the controls are the project's own harmless requests."""

    @property
    def flags_anything(self) -> bool:
        """Whether pairs at the threshold are flagged: not where all of them may well be chance."""
        return self.prevalence.is_evidence

    def passes(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """[N]: which of ``scores`` are flagged."""
        if not self.flags_anything:
            return np.zeros(len(scores), dtype=bool)
        return np.asarray(scores.astype(np.float64) >= self.threshold.threshold)

    def estimated(self, kind: ExampleKind = PAIR) -> str:
        """How many examples push towards the behavior, of how many."""
        return f"{self.prevalence.count} of {kind.counted(self.prevalence.pairs)}"

    @property
    def promise(self) -> str:
        """How many of those that are there would be caught."""
        return f"{self.threshold.recall.value:.0%}"

    def sentence(self, behavior: str, read_first: int | None = None, kind: ExampleKind = PAIR) -> str:
        """What a person has to know at this moment; ``read_first`` is how many to read first, where known."""
        found = self.prevalence
        if not found.is_evidence:
            return (
                f"no evidence of {behavior}: {self.estimated(kind)} push towards it; would have caught "
                f"{self.promise} of {kind.several} like your examples; read the top {read_first or 10} all the same"
            )
        return (
            f"about {self.estimated(kind)} push towards {behavior}; flagged {found.above:,} (catches about "
            f"{self.promise}), of which about {found.wrong.value:.0f} ({found.wrong}) are expected to be wrong"
            f"{reading(read_first)}"
        )

    def details(self, kind: ExampleKind = PAIR, *, flags: bool = True) -> tuple[str, ...]:
        """What the sentence stands on, a sentence each; without ``flags`` pairs were flagged by another rule."""
        shares = {name: rate.value for name, rate in self.false_positives.items()}
        shares["neutral"] = self.prevalence.neutral_above
        several = kind.several
        rates = ", ".join(f"{share:.1%} of {_MEANT[name].format(several=several)}" for name, share in shares.items())
        threshold = "The threshold" if flags else "The estimate's own threshold"
        lines = [f"{threshold} {self._catching(kind)} It is reached by {rates}."]
        if flags and not self.flags_anything and self.prevalence.above:
            lines.append(
                f"{self.prevalence.above:,} {several} reach it here and are not flagged: all of them may be chance."
            )
        if "controls" not in self.false_positives:
            lines.append(f"No controls are known: {several} that only look alike are counted as pushing towards it.")
        elif self.are_controls_own:
            lines.append(
                f"The controls are harmless requests of the project's own: {several} more alike than those are counted."
            )
        return tuple(lines)

    def _catching(self, kind: ExampleKind) -> str:
        found, recall = self.threshold.threshold, self.threshold.recall
        share = f"{recall.low:.0%} to {recall.high:.0%} of {kind.several} like the examples"
        return f"{found:.3f} catches {share}, by cross-validation over prompts."

    def as_json(self) -> dict[str, Any]:
        """Plain values, for files and ``--json``."""
        values = asdict(self)
        for name in ("edges", "likely"):  # how the scores are read, not what is said of them
            del values["prevalence"][name]
        return {**values, "evidence": self.prevalence.is_evidence}


def _with_unseen(count: Interval, recall: float, pairs: int) -> Interval:
    """``count`` with room for pairs that may all have been missed: a bootstrap of nothing is nothing, for sure."""
    unseen = math.log(1 - CONFIDENCE) / math.log(1 - recall) if recall < 1 else 0.0
    return replace(count, high=max(count.high, min(unseen, float(pairs))))


def reading(number: int | None) -> str:
    """What a sentence about flagged pairs ends with."""
    return f"; read these {number:,} first" if number else ""


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
    found = replace(found, count=_with_unseen(found.count, of_examples.recall.value, found.pairs))
    return Decision(replace(of_examples, threshold=found.threshold), found, rates, known.are_controls_own)
