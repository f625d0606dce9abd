"""What a rule can flag at all, said before there is a score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trl_attribution.scoring.asked import Column, kind_for, reference_for
from trl_attribution.scoring.calibration import fewest_discoveries
from trl_attribution.scoring.decision import KnownPairs, decide
from trl_attribution.scoring.held_out import known_pairs, knows_pairs, why_no_pairs
from trl_attribution.scoring.kinds import AskedKind
from trl_attribution.scoring.protocols import ProbeLike
from trl_attribution.scoring.rule import Rule
from trl_attribution.utils.kinds import PAIR, ExampleKind
from trl_attribution.utils.text import counted

_FEW_PAIRS = 200
"""Among more, a tenth of them is evidence by far."""
_MANY = 0.1
"""A rule that takes more than this share of all pairs to flag any is said to."""
_NEUTRAL = 0.1
"""How wide neutral pairs lie about 0, in typical scores of the examples."""


def power_notes(
    rule: Rule, pairs: int, probes: Sequence[ProbeLike], kind: AskedKind, of: ExampleKind = PAIR
) -> tuple[str, ...]:
    """A sentence for each probe with which ``rule`` can flag nothing among N ``pairs``, or only very many at once.

    The smallest p-value is 1 / (1 + R), with R clean pairs of the probe, else (the mirror null) with R = N: a rate
    below it is out of reach. Above it, :func:`fewest_discoveries` pairs have to beat all R. Where the rule is a recall,
    its rate is for the probes that keep no pairs of their own, and a sentence says which those are. For the others, it
    is tried how many pairs like the examples, among so many that score about 0, are evidence enough.
    """
    notes = [] if rule.recall is None else _recall_notes(rule.recall, pairs, probes, kind, of)
    return (*notes, *_rate_notes(rule, pairs, probes, kind))


def _recall_notes(
    recall: float, pairs: int, probes: Sequence[ProbeLike], kind: AskedKind, of: ExampleKind
) -> list[str]:
    notes = []
    for probe in probes if 0 < pairs <= _FEW_PAIRS else ():
        known = _known_beforehand(probe, kind)
        fewest = None if known is None else _fewest_like_examples(recall, pairs, known)
        if known is None or (fewest is not None and fewest <= _MANY * pairs):
            continue
        takes = "nothing" if fewest is None else f"something only where about {fewest:,} or more are like the examples"
        notes.append(
            f"{probe.name}: with so few {of.several} ({pairs:,}), recall {recall:g} can flag {takes}. Read the top of "
            f"the list all the same, or audit more {of.several} together."
        )
    return notes


def _known_beforehand(probe: ProbeLike, kind: AskedKind) -> KnownPairs | None:
    """What the probe's pairs score, centered by its own contexts: the dataset's are not known yet."""
    if not knows_pairs(probe):
        return None
    column, row = Column(probe.name, probe.layer, kind_for(probe, kind)), probe.layers.index(probe.layer)
    contexts = [one[:, row].mean(dim=0) for one in (probe.contexts, probe.control_contexts) if one is not None]
    mean = sum(contexts[1:], contexts[0]) / len(contexts) if contexts and column.uses_contexts else None
    return known_pairs(probe, probe.layer, column.kind, mean)


def _fewest_like_examples(recall: float, pairs: int, known: KnownPairs) -> int | None:
    """How many of N ``pairs`` have to be like the examples to be evidence; None where all of them are none."""
    from scipy.stats import t

    width = _NEUTRAL * float(np.median(np.abs(known.examples.scores)))
    for count in sorted({*(1 << power for power in range(pairs.bit_length())), pairs}):
        alike = np.quantile(known.examples.scores, (np.arange(count) + 0.5) / count)
        others = width * t.ppf((np.arange(pairs - count) + 0.5) / max(1, pairs - count), 3)
        if decide(np.concatenate([alike, others]), recall, known).flags_anything:
            return count
    return None


def _rate_notes(rule: Rule, pairs: int, probes: Sequence[ProbeLike], kind: AskedKind) -> tuple[str, ...]:
    if rule.fdr is None:
        return ()
    by_rate = [probe for probe in probes if rule.recall is None or not knows_pairs(probe)]
    notes = [note for probe in by_rate if (note := _note(rule.fdr, pairs, probe, kind))]
    if by_rate and rule.recall is not None:
        names = ", ".join(probe.name for probe in by_rate)
        notes.insert(0, f"{names}: flagged at fdr {rule.fdr:g}, not at recall {rule.recall:g}: {why_no_pairs(names)}")
    return tuple(notes)


def _note(rate: float, pairs: int, probe: ProbeLike, kind: AskedKind) -> str:
    reference = reference_for(probe, Column(probe.name, probe.layer, kind_for(probe, kind)))
    size = pairs if reference is None else len(reference.scores)
    fewest = fewest_discoveries(rate, pairs, size)
    if fewest <= pairs and (reference is None or fewest <= rate * pairs):
        return ""
    said = power_sentence(probe.name, rate, pairs, size, "pair" if reference is None else "clean pair")
    return f"{said}. Give top_k or a threshold, or calibrate the probe with more pairs."


def power_sentence(name: str, rate: float, pairs: int, size: int, noun: str) -> str:
    """What a rate can flag of N ``pairs`` with the scores of ``size`` pairs to compare with, called ``noun``."""
    against, fewest = counted(size, noun), fewest_discoveries(rate, pairs, size)
    if fewest > pairs:
        takes = math.ceil(round(1 / rate, 9)) - 1
        return f"{name}: no pair can be flagged at fdr {rate:g} with {against} to compare with; that takes {takes:,}"
    return (
        f"{name}: with {against} to compare with, pairs are flagged at fdr {rate:g} only where {fewest:,} of "
        f"{pairs:,} or more beat them all"
    )
