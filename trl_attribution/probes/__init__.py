"""Probes: a behavior's direction in one model's residual stream, how it is built, and where it is kept."""

from trl_attribution.probes.behaviors import (
    BehaviorPrompt,
    Example,
    Examples,
    Prompts,
    behavior_prompt,
    read_behavior,
    read_contrast,
    read_prompts,
)
from trl_attribution.probes.building import (
    BuildConfig,
    build_from_behavior,
    build_from_contrast,
    build_from_examples,
    build_from_responses,
    candidate_layers,
)
from trl_attribution.probes.endpoint_judge import EndpointConfig, EndpointJudge
from trl_attribution.probes.importing import ImportConfig, import_probe
from trl_attribution.probes.judging import (
    BatchJudge,
    Judge,
    Prompt,
    complies,
    judge_name,
    judged,
    matches,
    mentions,
    refuses,
)
from trl_attribution.probes.labels import build_from_labels, fit_direction
from trl_attribution.probes.model_judge import ClassifierConfig, ModelJudge
from trl_attribution.probes.probe import CosineTable, Probe, cosine_table
from trl_attribution.probes.registry import ProbeRegistry, read_probe
from trl_attribution.probes.rules import JudgeConfig, parse_rule
from trl_attribution.probes.sampling import (
    ChangedPrompts,
    SampledPrompt,
    SamplingConfig,
    asked_of,
    changed_prompts,
    sample_both,
    sample_responses,
)

__all__ = [
    "BatchJudge",
    "BehaviorPrompt",
    "BuildConfig",
    "ChangedPrompts",
    "ClassifierConfig",
    "CosineTable",
    "EndpointConfig",
    "EndpointJudge",
    "Example",
    "Examples",
    "ImportConfig",
    "Judge",
    "JudgeConfig",
    "ModelJudge",
    "Probe",
    "ProbeRegistry",
    "Prompt",
    "Prompts",
    "SampledPrompt",
    "SamplingConfig",
    "asked_of",
    "behavior_prompt",
    "build_from_behavior",
    "build_from_contrast",
    "build_from_examples",
    "build_from_labels",
    "build_from_responses",
    "candidate_layers",
    "changed_prompts",
    "complies",
    "cosine_table",
    "fit_direction",
    "import_probe",
    "judge_name",
    "judged",
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
