"""The judge that a rule names: what can be said in a file or on the command line about who judges responses."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl_attribution.behaviors.chat_completions import EndpointConfig
from trl_attribution.behaviors.endpoint_judge import EndpointJudge
from trl_attribution.behaviors.judging import Judge, complies, matches, mentions, refuses
from trl_attribution.behaviors.model_judge import ClassifierConfig, ModelJudge
from trl_attribution.errors import ProbeError
from trl_attribution.utils.text import printable

RULES = (
    "complies, refuses, keyword:WORD,WORD, regex:PATTERN, model:NAME_OR_FOLDER[:LABEL] or endpoint:URL#MODEL[#QUESTION]"
)


@dataclass(frozen=True)
class JudgeConfig:
    """What a rule leaves open about the judge that it names."""

    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """For ``model:`` rules."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """For ``endpoint:`` rules."""


def parse_rule(rule: str, config: JudgeConfig | None = None) -> Judge:
    """The judge that ``rule`` names.

    ``complies``, ``refuses``, ``keyword:WORD,WORD`` and ``regex:PATTERN`` look at the text;
    ``model:NAME_OR_FOLDER[:LABEL]`` is a transformers text-classification model (see :class:`ModelJudge`), and
    ``endpoint:URL#MODEL[#QUESTION]`` an OpenAI-compatible service (see :class:`EndpointJudge`). Nothing is asked of
    a service yet, and no weights are loaded.

    Raises:
        ProbeError: there is no such rule, or no such classifier or label.
        SettingsError: the key that an endpoint needs is not there.
    """
    settings = config or JudgeConfig()
    kind, _, rest = rule.partition(":")
    if rule == "complies":
        return complies
    if rule == "refuses":
        return refuses
    if kind == "keyword":
        return mentions(rest.split(","))
    if kind == "regex" and rest:
        return matches(rest)
    if kind == "model" and rest:
        return ModelJudge.from_rule(rule, settings.classifier)
    if kind == "endpoint" and rest:
        return EndpointJudge.from_rule(rule, settings.endpoint)
    raise ProbeError(f"there is no rule {printable(rule, 80)!r} for judging responses; choose {RULES}")
