"""Behaviors: what a model does on which prompts, as examples, as sampled responses, and as judges see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.behaviors.chat_completions import EndpointConfig
    from trl_attribution.behaviors.endpoint_judge import EndpointJudge
    from trl_attribution.behaviors.examples import (
        BehaviorPrompt,
        Example,
        Examples,
        Prompts,
        behavior_prompt,
        read_behavior,
        read_contrast,
        read_prompts,
    )
    from trl_attribution.behaviors.judging import (
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
    from trl_attribution.behaviors.model_judge import ClassifierConfig, ModelJudge
    from trl_attribution.behaviors.rules import JudgeConfig, parse_rule
    from trl_attribution.behaviors.sampling import (
        ChangedPrompts,
        SampledPrompt,
        SamplingConfig,
        asked_of,
        changed_prompts,
        sample_responses,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "BatchJudge",
    "BehaviorPrompt",
    "ChangedPrompts",
    "ClassifierConfig",
    "EndpointConfig",
    "EndpointJudge",
    "Example",
    "Examples",
    "Judge",
    "JudgeConfig",
    "ModelJudge",
    "Prompt",
    "Prompts",
    "SampledPrompt",
    "SamplingConfig",
    "asked_of",
    "behavior_prompt",
    "changed_prompts",
    "complies",
    "judge_name",
    "judged",
    "matches",
    "mentions",
    "parse_rule",
    "read_behavior",
    "read_contrast",
    "read_prompts",
    "refuses",
    "sample_responses",
]
