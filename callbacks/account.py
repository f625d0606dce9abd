"""What a training run has to say when it ends: its vectors, settings, costs, and what became of every row."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trl_attribution.audit.finish import Ending, Vectors
from trl_attribution.audit.info import ModelInfo, TrainingInfo, machine
from trl_attribution.callbacks.before_after import Findings
from trl_attribution.callbacks.recorder import CaptureCounts
from trl_attribution.probes import Probe

if TYPE_CHECKING:
    from trl_attribution.callbacks.session import TrainingAudit


def run_ending(
    run: TrainingAudit, vectors: Vectors, counts: CaptureCounts, probes: Sequence[Probe], findings: Findings
) -> Ending:
    """The end of ``run``, which has captured ``vectors``."""
    pairs = len(run.data.index)
    return Ending(
        folder=run.folder,
        reader=run.reader,
        data=run.data,
        vectors=vectors,
        probes=probes,
        score=run.config.asked_score,
        layers=run.layers,
        model=ModelInfo.of(run.m0, run.settings.compute_dtype),
        settings=run.config.to_json(),
        notes=run.notes,
        training=TrainingInfo(
            **counts.to_json(),
            pairs_in_dataset=pairs,
            never_seen=pairs - len(vectors.index),
            ranks=run.ranks.world,
            windows=run.windows,
            flag_at=run.watch.limits,
            on_flag=run.config.on_flag,
            stopped_at_step=run.stopped_at,
            skipped_rows=run.skipped_rows,
            behaviors=tuple(change.to_json() for change in findings.changes),
            drift=tuple(layer.to_json() for layer in findings.drifts),
            notes=tuple(findings.notes),
        ),
    )


def run_cost(run: TrainingAudit) -> dict[str, Any]:
    """What ``run`` has cost so far, beside the seconds of its stages."""
    return {"training_seconds": round(time.perf_counter() - run.start, 3), **machine()}
