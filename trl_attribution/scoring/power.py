"""What a false discovery rate can flag at all, said before there is a score."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trl_attribution.scoring.calibration import fewest_discoveries
from trl_attribution.scoring.held_out import knows_pairs, why_no_pairs
from trl_attribution.scoring.protocols import ProbeLike
from trl_attribution.scoring.rule import Rule
from trl_attribution.scoring.scores import AskedKind, Column, kind_for, reference_for
from trl_attribution.utils.text import counted


def power_notes(rule: Rule, pairs: int, probes: Sequence[ProbeLike], kind: AskedKind) -> tuple[str, ...]:
    """A sentence for each probe with which ``rule`` can flag nothing among N ``pairs``, or only very many at once.

    The smallest p-value is 1 / (1 + R), with R clean pairs of the probe, else (the mirror null) with R = N: a rate
    below it is out of reach. Above it, :func:`fewest_discoveries` pairs have to beat all R. Where the rule is a recall,
    its rate is for the probes that keep no pairs of their own, and a sentence says which those are.
    """
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
