"""Scores of the examined pairs, and what they are worth beside a baseline or the whole dataset.

A pair's score and p-value are to depend on the pair, not on what else is in the request. So the center of the contexts
and the null come from the calibrated probe (:func:`reference_for`, as in an audit), or else from the baseline, or else
from all pairs of the dataset, never from the examined pairs alone. Only the q-value is theirs: a false discovery rate
is a statement about the pairs that were tested.
Axis letters: E examined pairs, S scored pairs (those and, without a baseline, the others), R scores of the null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trl_attribution.errors import SettingsError
from trl_attribution.gate.baseline.baseline import BaselineColumn, GateBaseline
from trl_attribution.gate.policy.probes import RuledProbe
from trl_attribution.gate.vectors.supply import JointView
from trl_attribution.scoring import (
    Column,
    Scores,
    calibrate,
    fewest_discoveries,
    kind_for,
    reference_for,
    score_view,
)
from trl_attribution.scoring.decision import Decision, KnownPairs, decide
from trl_attribution.scoring.held_out import why_no_pairs
from trl_attribution.scoring.kinds import AskedKind
from trl_attribution.scoring.power import power_sentence
from trl_attribution.scoring.recall import KnownScores
from trl_attribution.utils.arrays import Bools, Doubles, Floats, Integers
from trl_attribution.utils.progress import OnProgress

_MOST_TRUSTED = 2000
"""Scores of trusted pairs that an estimate is taken from; more are drawn evenly from the lowest to the highest."""


@dataclass(frozen=True)
class ProbeScores:
    """What the examined pairs score for one probe."""

    ruled: RuledProbe
    column: Column
    scores: Floats
    """[E]"""
    rank: Integers
    """[E]: 1 is the highest score among the examined; equal ones rank in dataset order."""
    q_value: Doubles | None
    """[E]; None where flags are by threshold, or there are none."""
    flagged: Bools
    """[E]: pairs that push towards the behavior, by the policy's threshold or rate; only positive scores do."""
    baseline: Floats | None
    """[R], the baseline's scores, rising."""
    notes: tuple[str, ...]
    decision: Decision | None = None
    """Where a rule asks for an estimate: what it is, and from which score on pairs are flagged."""
    known: KnownPairs | None = None
    """Scores of the pairs that the probe keeps, none of them scored by a model that saw its prompt; among the controls
    are the pairs that the examined ones are compared with."""
    null: Doubles | None = None
    """Scores that a rate is taken from."""


def needs_whole_dataset(ruled: Sequence[RuledProbe], kind: AskedKind, baseline: GateBaseline | None) -> bool:
    """Whether judging some pairs takes the vectors of all: for the center of the contexts, or for a null."""
    if baseline is not None:
        return False
    columns = [(each, column_of(each, kind)) for each in ruled]
    return any(
        reference_for(each.probe, column) is None and (column.uses_contexts or each.rate is not None)
        for each, column in columns
    )


def column_of(each: RuledProbe, kind: AskedKind) -> Column:
    """The score that the probe's rules are about."""
    return Column(each.name, each.layer, kind_for(each.probe, kind))


def baseline_column(each: RuledProbe, kind: AskedKind) -> BaselineColumn:
    """The same, with the probe's fingerprint, as a baseline keeps it."""
    column = column_of(each, kind)
    return BaselineColumn(column.probe, each.probe.fingerprint, column.layer, column.kind)


def score_pairs(
    view: JointView,
    ruled: Sequence[RuledProbe],
    kind: AskedKind,
    baseline: GateBaseline | None,
    on_progress: OnProgress,
) -> Scores:
    """Score all S pairs of ``view``, contexts centred by the baseline or by these pairs themselves.

    Raises:
        ProbeError, SettingsError, StoreError: as :func:`score_view` raises.
    """
    return score_view(
        view,
        [each.probe for each in ruled],
        kind,
        sorted({each.layer for each in ruled}),
        context_means=None if baseline is None else baseline.context_means(),
        means_of=None if baseline is None else baseline.origin.pairs,
        progress=lambda done, total: on_progress("scores", done, total),
    )


def judge(
    scores: Scores, examined: Integers, each: RuledProbe, kind: AskedKind, baseline: GateBaseline | None
) -> ProbeScores:
    """What the pairs at ``examined`` [E], places among those scored, score for one probe, and which are flagged.

    Raises:
        SettingsError: the null is too small for any pair to be flagged, or the baseline has no scores for the probe.
    """
    column = column_of(each, kind)
    values = scores.of(column)
    own = values[examined]
    before = None if baseline is None else baseline.scores_of(baseline_column(each, kind))
    null = scores.references.get(column)
    calibrated = null is not None
    if null is None:
        null = (scores.flips_of(column) if before is None else _flips(before, each, column)).astype(np.float64)
    worth = calibrate(own, null)
    trusted = np.delete(values, examined) if before is None else before
    q_value, notes, known = None, _blind(scores, column), _beside(scores.known.get(column), trusted)
    decision = _decision(each, own, known)
    flagged = np.zeros(len(own), dtype=np.bool_)
    if each.rate is not None and len(own):
        q_value = worth.q_value
        flagged = q_value <= each.rate
        notes += _power(each, each.rate, len(own), len(null), "clean pair" if calibrated else "pair")
    elif each.flags_by_recall and decision is not None:
        flagged = decision.passes(own)
    elif each.rules.flags and each.rules.threshold is not None:
        flagged = own.astype(np.float64) >= each.rules.threshold
    return ProbeScores(
        each, column, own, worth.rank, q_value, flagged & (own > 0), before, notes, decision, known, null
    )


def _flips(before: Floats, each: RuledProbe, column: Column) -> Floats:
    """[R]: what the baseline's pairs, whose scores are ``before``, would score flipped."""
    if column.kind == "one-sided" and each.rate is not None:
        raise SettingsError(
            f"rules.probes.{each.name}: flagged at fdr {each.rate:g}, but a baseline does not keep what its samples "
            "would score flipped, which one-sided scores are compared with. Give a recall or a threshold."
        )
    return -before


def _beside(known: KnownPairs | None, trusted: Floats) -> KnownPairs | None:
    """The pairs that the probe knows, and those that new ones are compared with: they are harmless, however they score.

    Without them, pairs of a dataset that only look like the behavior would be evidence in every request.
    """
    if known is None or not len(trusted):
        return known
    spread = np.unique(np.linspace(0, len(trusted) - 1, min(len(trusted), _MOST_TRUSTED)).astype(np.int64))
    chosen = np.sort(trusted)[spread].astype(np.float64)
    others = known.controls
    if others is None:
        return replace(known, controls=KnownScores(chosen, np.arange(len(chosen))))
    prompts = np.concatenate([others.prompts, others.prompts.max() + 1 + np.arange(len(chosen))])
    # Of the trusted ones' it is not known, nor needed.
    flips = None if others.flips is None else np.concatenate([others.flips, -chosen])
    return replace(known, controls=KnownScores(np.concatenate([others.scores, chosen]), prompts, flips))


def _decision(each: RuledProbe, own: Floats, known: KnownPairs | None) -> Decision | None:
    """By the very code that decides in an audit."""
    if each.recall is None or not len(own):
        return None
    if known is None:
        raise SettingsError(f"rules.probes.{each.name}: {why_no_pairs(repr(each.name))}")
    return decide(own, each.recall, known)


def _power(each: RuledProbe, rate: float, examined: int, null_size: int, noun: str) -> tuple[str, ...]:
    """What a false discovery rate cannot see with so small a null."""
    said = power_sentence(each.name, rate, examined, null_size, noun)
    fewest = fewest_discoveries(rate, examined, null_size)
    if fewest > examined:
        raise SettingsError(
            f"rules.probes.{said}, so the gate cannot decide. Give a recall or a threshold, or record a "
            "baseline of more pairs."
        )
    told: tuple[str, ...] = () if fewest == 1 else (f"{said}; a recall or a threshold has no such limit",)
    if each.rules.flagging.recall is not None:
        told += (f"{each.name}: flagged at fdr {rate:g}, not at a recall: {why_no_pairs(each.name)}",)
    return told


def _blind(scores: Scores, column: Column) -> tuple[str, ...]:
    """Pairs whose score says nothing."""
    zero = scores.zero_pairs.get(column.layer, 0)
    without = scores.no_context.get(column.layer, 0) if column.uses_contexts else 0
    parts = [
        (zero, "scored pairs have a zero vector and score 0"),
        (without, "scored pairs have no prompt to compare and score 0"),
    ]
    return tuple(f"{column.probe}: {count:,} {what}" for count, what in parts if count)


def nothing_scored(each: RuledProbe, kind: AskedKind) -> ProbeScores:
    """The scores of no pairs at all."""
    none = np.empty(0, dtype=np.int64)
    return ProbeScores(each, column_of(each, kind), none.astype(np.float32), none, None, none.astype(bool), None, ())
