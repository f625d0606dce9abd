"""The rules that ``gate init --from`` proposes: from what a probe's own pairs and those of a trusted dataset score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from trl_attribution.gate.baseline.baseline import BaselineColumn, GateBaseline
from trl_attribution.gate.baseline.recording import record_baseline
from trl_attribution.gate.check import shown_name
from trl_attribution.gate.materials import load_materials
from trl_attribution.gate.policy.file import PolicyFile
from trl_attribution.gate.policy.probes import RuledProbe
from trl_attribution.gate.policy.template import Trusted
from trl_attribution.scoring import DEFAULT_RULE, Column, reference_for
from trl_attribution.scoring.decision import Decision, KnownPairs, decide
from trl_attribution.scoring.held_out import known_pairs
from trl_attribution.scoring.kinds import Kind
from trl_attribution.scoring.recall import threshold_for
from trl_attribution.utils.progress import OnProgress

STOPPED = 0.01
"""The share of trusted pairs that a rule about single pairs may stop."""
_RECALLS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Proposal:
    """What is proposed for one probe; all numbers are measured."""

    pairs: int
    """Of the trusted dataset."""
    decision: Decision | None
    """On the trusted dataset itself; None where the probe keeps no pairs."""
    recall: float
    """That pairs are flagged at."""
    reaching: float | None
    """The highest recall whose score at most 1% of the trusted pairs reach; None where none is so rare."""
    reached: int
    """How many trusted pairs reach it."""
    threshold: float
    """Just above what any trusted pair scores: for a probe that keeps no pairs."""

    @property
    def most_pairs(self) -> int:
        """The size from which on a harmless request would be stopped, for one of its pairs is to be expected above."""
        return self.pairs // (self.reached + 1)


@dataclass(frozen=True)
class Proposed:
    """What a trusted dataset speaks for."""

    baseline: GateBaseline
    said: Trusted

    @property
    def sentences(self) -> list[str]:
        """What was found in the trusted dataset itself, a sentence a probe."""
        found = self.said.proposals.items()
        return [f"{self.said.dataset}: {one.decision.sentence(name)}" for name, one in found if one.decision]


def propose(
    file: PolicyFile,
    dataset: str,
    baseline: str,
    *,
    vectors: Path | None = None,
    trust_remote_code: bool = False,
    on_progress: OnProgress | None = None,
) -> Proposed:
    """Score ``dataset`` and propose rules for every probe of ``file``.

    Args:
        file: the policy, as far as it is known.
        dataset: the dataset that is trusted.
        baseline: what the policy is to call its scores.
        vectors: an audit folder or vector store to take vectors from.
        trust_remote_code: run Python code that comes with the model.
        on_progress: see :data:`OnProgress`.

    Raises:
        DataError, StoreError, ProbeError, ModelError, SettingsError: as :func:`run_gate` raises.
    """
    recorded = record_baseline(
        file, dataset, trust_remote_code=trust_remote_code, vectors=vectors, on_progress=on_progress
    )
    materials = load_materials(file, download=False, with_baseline=False)
    found = {each.name: _proposal(each, recorded) for each in materials.probes.ruled}
    return Proposed(recorded, Trusted(shown_name(dataset), baseline, found))


def _proposal(each: RuledProbe, baseline: GateBaseline) -> Proposal:
    column = next(column for column in baseline.columns if column.probe == each.name)
    scores = baseline.scores_of(column).astype(np.float64)
    known = _known(each, column, baseline)
    recall = DEFAULT_RULE.recall
    assert recall is not None  # it is what the default rule is about
    highest = max(0.0, float(scores.max())) if len(scores) else 0.0
    above = (math.floor(1000 * highest) + 1) / 1000
    if known is None or not len(scores):
        return Proposal(len(scores), None, recall, None, 0, above)
    for tried in _RECALLS:
        reached = _reached(scores, tried, known)
        if reached <= STOPPED * len(scores):
            return Proposal(len(scores), decide(scores, recall, known), recall, tried, reached, above)
    return Proposal(len(scores), decide(scores, recall, known), recall, None, 0, above)


def _reached(scores: npt.NDArray[np.float64], recall: float, known: KnownPairs) -> int:
    return int(((scores >= threshold_for(recall, known.examples).threshold) & (scores > 0)).sum())


def _known(each: RuledProbe, recorded: BaselineColumn, baseline: GateBaseline) -> KnownPairs | None:
    """As new pairs will be compared with: with the same center."""
    column = Column(each.name, each.layer, cast("Kind", recorded.kind))
    reference = reference_for(each.probe, column)
    center = baseline.context_means()[each.layer] if reference is None else reference.center
    return known_pairs(each.probe, each.layer, column.kind, center if column.uses_contexts else None)
