"""Probes: a behavior's direction in one model's residual stream, how it is built, and where it is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.probes.building import (
        build_from_behavior,
        build_from_contrast,
        build_from_examples,
        build_from_responses,
    )
    from trl_attribution.probes.config import BuildConfig, candidate_layers
    from trl_attribution.probes.importing import ImportConfig, import_probe
    from trl_attribution.probes.labels import build_from_labels, fit_direction
    from trl_attribution.probes.probe import CosineTable, Probe, cosine_table
    from trl_attribution.probes.registry import ProbeRegistry, read_probe
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "BuildConfig",
    "CosineTable",
    "ImportConfig",
    "Probe",
    "ProbeRegistry",
    "build_from_behavior",
    "build_from_contrast",
    "build_from_examples",
    "build_from_labels",
    "build_from_responses",
    "candidate_layers",
    "cosine_table",
    "fit_direction",
    "import_probe",
    "read_probe",
]
