"""Probes: a behavior's direction in one model's residual stream, how it is built, and where it is kept."""

from trl_attribution.probes.behaviors import (
    BehaviorPrompt,
    Example,
    Examples,
    Prompts,
    read_behavior,
    read_contrast,
    read_prompts,
)
from trl_attribution.probes.building import (
    BuildConfig,
    build_from_behavior,
    build_from_contrast,
    build_from_responses,
    candidate_layers,
)
from trl_attribution.probes.importing import ImportConfig, import_probe
from trl_attribution.probes.judging import Judge, complies, matches, mentions, parse_rule, refuses
from trl_attribution.probes.labels import build_from_labels, fit_direction
from trl_attribution.probes.probe import CosineTable, Probe, cosine_table
from trl_attribution.probes.registry import ProbeRegistry, read_probe
from trl_attribution.probes.sampling import SamplingConfig, changed_prompts, sample_both, sample_responses

__all__ = [
    "BehaviorPrompt",
    "BuildConfig",
    "CosineTable",
    "Example",
    "Examples",
    "ImportConfig",
    "Judge",
    "Probe",
    "ProbeRegistry",
    "Prompts",
    "SamplingConfig",
    "build_from_behavior",
    "build_from_contrast",
    "build_from_labels",
    "build_from_responses",
    "candidate_layers",
    "changed_prompts",
    "complies",
    "cosine_table",
    "fit_direction",
    "import_probe",
    "matches",
    "mentions",
    "parse_rule",
    "read_behavior",
    "read_contrast",
    "read_probe",
    "read_prompts",
    "refuses",
    "sample_both",
    "sample_responses",
]
