"""What a rule made of one probe's scores, and the one sentence about it that every surface shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trl_attribution.scoring.calibration import Calibration
from trl_attribution.scoring.decision import Decision, KnownPairs, decide, reading
from trl_attribution.scoring.read_first import MARGIN, ReadFirst, read_first
from trl_attribution.scoring.recall import CONFIDENCE
from trl_attribution.scoring.rule import DEFAULT_RECALL, Rule
from trl_attribution.utils.kinds import PAIR, ExampleKind


@dataclass(frozen=True)
class Outcome:
    """What a rule flags for one probe, what is known of how many there are, and what to read first."""

    probe: str
    rule: Rule
    passing: npt.NDArray[np.bool_] = field(repr=False)
    """[N]: the pairs that the rule flags."""
    decision: Decision | None
    """None for a probe that keeps no pairs of its own: how many there are is not known."""
    wrong: float | None
    """Of the flagged pairs, how many are expected to be wrong; None where that is not known."""
    read_first: ReadFirst = field(repr=False)
    kind: ExampleKind = PAIR
    """What sentences call an example."""

    @property
    def flagged(self) -> int:
        """How many pairs the rule flags, whether or not another probe ranks them better."""
        return int(self.passing.sum())

    @property
    def goes_by_recall(self) -> bool:
        """Whether the pairs were flagged by the threshold of the decision."""
        return self.rule.recall is not None and self.decision is not None

    @property
    def sentence(self) -> str:
        """What a person has to know at this moment: never a bare number of flagged pairs."""
        if self.decision is not None and self.goes_by_recall:
            return self.decision.sentence(self.probe, len(self.read_first), self.kind)
        pairs, several = self.kind.counted(len(self.passing)), self.kind.several
        if self.decision is None:
            known = f"how many {several} push towards {self.probe} is not known: none of the probe's own are at hand"
        elif self.decision.flags_anything:
            known = f"about {self.decision.estimated(self.kind)} push towards {self.probe}"
        else:
            known = f"no evidence of {self.probe}: {self.decision.estimated(self.kind)} push towards it"
        by = rule_words(self.rule, by_recall=False)
        if not self.flagged:
            return f"{known}; none of {pairs} is flagged ({by}); read the top {len(self.read_first)} all the same"
        wrong = "" if self.wrong is None else f", of which about {self.wrong:.0f} are expected to be wrong"
        return f"{known}; flagged {self.flagged:,} of {pairs} ({by}){wrong}{reading(len(self.read_first))}"

    def unlike(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64] | None:
        """[N]: how likely each pair is none of the behavior, by the estimate; None where there is none."""
        return None if self.decision is None else 1 - self.decision.prevalence.likely_of(scores)

    @property
    def headline(self) -> str:
        """The sentence as it stands by itself."""
        return f"{self.sentence[:1].upper()}{self.sentence[1:]}."

    @property
    def details(self) -> tuple[str, ...]:
        """What the sentence stands on, a sentence each."""
        told = () if self.decision is None else self.decision.details(self.kind, flags=self.goes_by_recall)
        if not self.read_first.strata:
            return told
        within = max(1, round(MARGIN * self.flagged))
        reading_them = (
            f"Reading the {len(self.read_first):,} tells how many of the flagged {self.kind.several} are wrong to "
            f"within {within:,}, with {CONFIDENCE:.0%} confidence: most of them lie near the threshold."
        )
        return (*told, reading_them)

    def as_json(self, pair_ids: pa.Array | pa.ChunkedArray) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {
            "sentence": self.sentence,
            "flagged": self.flagged,
            "expected_wrong": self.wrong,
            "read_first": pair_ids.take(pa.array(self.read_first.positions)).to_pylist(),
            **({} if self.decision is None else self.decision.as_json()),
        }


def outcome_of(
    probe: str,
    rule: Rule,
    scores: npt.NDArray[np.float32],
    worth: Calibration,
    known: KnownPairs | None,
    pair_ids: pa.Array | pa.ChunkedArray,
    passing: npt.NDArray[np.bool_] | None = None,
    kind: ExampleKind = PAIR,
) -> Outcome:
    """What ``rule`` makes of ``scores`` [N].

    Args:
        probe: the probe's name.
        rule: by which pairs are flagged.
        scores: of every pair.
        worth: what they are worth.
        known: scores of the pairs that the probe keeps, by which the number of pairs is estimated whatever the rule.
        pair_ids: the N ids.
        passing: [N], the flagged pairs where they are chosen already: a ``top_k`` counts pairs over all probes.
        kind: what sentences call an example.

    Raises:
        SettingsError: a recall is out of range.
        StoreError: scores that are not finite.
    """
    decision = None if known is None else decide(scores, rule.recall or DEFAULT_RECALL, known)
    if rule.recall is not None and decision is not None:
        passing = decision.passes(scores) if passing is None else passing
        wrong: float | None = decision.prevalence.wrong.value
    else:
        passing = _passes(rule, scores, worth) if passing is None else passing
        wrong = _expected_wrong(rule, scores, passing, decision)
    prevalence = None if decision is None else decision.prevalence
    return Outcome(probe, rule, passing, decision, wrong, read_first(scores, passing, pair_ids, prevalence), kind)


def rule_words(rule: Rule, *, by_recall: bool) -> str:
    """The rule in words: the recall of one that has a rate beside it, or that rate."""
    if rule.top_k is not None:
        return f"the top {rule.top_k:,}"
    if rule.threshold is not None:
        return f"a score of {rule.threshold:g} or more"
    if rule.recall is not None and (by_recall or rule.fdr is None):
        return f"a recall of {rule.recall:.0%}"
    return f"a false discovery rate of {rule.fdr:.0%}"


def _passes(rule: Rule, scores: npt.NDArray[np.float32], worth: Calibration) -> npt.NDArray[np.bool_]:
    if rule.threshold is not None:
        return np.asarray(scores.astype(np.float64) >= rule.threshold)
    if rule.fdr is not None:
        return worth.q_value <= rule.fdr
    return worth.rank <= (rule.top_k or len(scores))


def _expected_wrong(
    rule: Rule, scores: npt.NDArray[np.float32], passing: npt.NDArray[np.bool_], decision: Decision | None
) -> float | None:
    """By the mixture where there is one, else by the rate that was asked for."""
    if decision is not None:
        return float((1 - decision.prevalence.likely_of(scores[passing])).sum())
    return None if rule.fdr is None else rule.fdr * float(passing.sum())
