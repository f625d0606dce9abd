"""Calibrate a probe: score pairs known to be clean, and keep the scores with it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.audit.config import AuditConfig
from trl_attribution.scoring.rule import DEFAULT_RULE

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_attribution.models import LoadedModel
    from trl_attribution.probes import Probe
    from trl_attribution.utils.progress import OnProgress


def calibrate_probe(
    probe: Probe,
    model: str | Path | LoadedModel,
    reference: str | Path | Dataset | Sequence[Mapping[str, Any]],
    config: AuditConfig | None = None,
    on_progress: OnProgress | None = None,
) -> Probe:
    """``probe`` with the scores of R clean pairs at each of its layers, from which audits then take p-values.

    The reference's context vectors are centred by their own mean, which the probe keeps: whatever is scored with it is
    centred by that mean from then on, be it by an audit, a gate or a run.

    Raises:
        DataError: the reference cannot be read as pairs.
        ProbeError: the model is not the probe's M0.
    """
    import torch

    bare = replace(probe, reference_scores=None, reference_center=None)
    settings = replace(config or AuditConfig(), layers=probe.layers)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        auditor = DataAuditor(model, probes=[bare], config=settings)
        # With this rule the audit says whether so few pairs can be a reference for what audits flag by.
        audit = auditor.audit(reference, folder, rule=DEFAULT_RULE, results=False, on_progress=on_progress)
        assert audit.scores is not None  # a probe was given
        columns = [audit.scores.column(probe.name, layer) for layer in probe.layers]
        scores = torch.stack([torch.from_numpy(audit.scores.of(column).copy()) for column in columns])
        centers = audit.scores.centers
        center = torch.stack([centers[column] for column in columns]) if centers else None
    calibration = {
        "kind": columns[0].kind,
        "source": audit.info.dataset.name,
        "dataset_fingerprint": audit.info.dataset.fingerprint,
        "pairs": len(audit.index),
        "max_length": settings.encoding.max_length,
        "truncation_mode": settings.encoding.truncation_mode,
    }
    return replace(
        bare, reference_scores=scores, reference_center=center, built={**probe.built, "calibration": calibration}
    )
