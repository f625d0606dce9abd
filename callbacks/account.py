"""What audit.json tells of a training run: settings, costs, and what became of every row."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trl_attribution.audit.census import PairIndex, dataset_info
from trl_attribution.audit.folder import AuditInfo, machine, model_info, versions
from trl_attribution.callbacks.before_after import Findings
from trl_attribution.callbacks.recorder import CaptureCounts
from trl_attribution.probes import Probe

if TYPE_CHECKING:
    from trl_attribution.callbacks.session import TrainingAudit


def run_info(
    run: TrainingAudit, index: PairIndex, counts: CaptureCounts, probes: Sequence[Probe], findings: Findings
) -> AuditInfo:
    """The account of ``run``, whose audit holds the pairs of ``index``."""
    census = run.census
    return AuditInfo(
        dataset=dataset_info(run.reader, census, len(index)),
        model=model_info(run.m0, run.settings.compute_dtype),
        probes={probe.name: probe.fingerprint for probe in probes},
        settings=run.config.to_json(),
        vectors={
            "store": "vectors",
            "settings": run.settings.as_dict(),
            "computed": counts.captured,
            "reused": len(index) - counts.captured,
            "path": run.reference.source,
            "path_reason": run.reference.reason,
        },
        cost={
            "seconds": {stage: round(seconds, 3) for stage, seconds in run.timings.items()},
            "training_seconds": round(time.perf_counter() - run.start, 3),
            **machine(),
        },
        versions=versions(),
        training={
            **counts.to_json(),
            "pairs_in_dataset": len(census.index),
            "never_seen": len(census.index) - len(index),
            "ranks": run.ranks.world,
            "windows": run.windows,
            "flag_at": run.watch.limits,
            "on_flag": run.config.on_flag,
            "stopped_at_step": run.stopped_at,
            "skipped_rows": run.skipped_rows,
            "behaviors": [change.to_json() for change in findings.changes],
            "drift": [layer.to_json() for layer in findings.drifts],
            "notes": findings.notes,
        },
    )
