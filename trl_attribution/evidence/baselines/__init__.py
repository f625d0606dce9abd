"""Baselines: other ways to rank the same pairs, and how they compare with an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

# Not on first use: `quality` is a module's name too.
from trl_attribution.evidence.baselines.quality import Agreement, Quality, agreement, quality
from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.evidence.baselines.baseline import BaselineScores, Cost, PairSet, RankingBaseline
    from trl_attribution.evidence.baselines.comparing import Audited, ComparedRow, Comparison, compare
    from trl_attribution.evidence.baselines.embeddings import EmbeddingCosine, SentenceModel, TfIdf
    from trl_attribution.evidence.baselines.endpoint import EndpointRanking
    from trl_attribution.evidence.baselines.foreign import ScoresFile
    from trl_attribution.evidence.baselines.gradients import GradientConfig, GradientCosine
    from trl_attribution.evidence.baselines.margin import ReferenceMargin
    from trl_attribution.evidence.baselines.names import BaselineConfig, parse_baseline
    from trl_attribution.evidence.baselines.surface import RandomOrder, ResponseLength
    from trl_attribution.evidence.baselines.truth import TruthConfig
    from trl_attribution.models.likelihood import response_log_probs
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Agreement",
    "Audited",
    "BaselineConfig",
    "BaselineScores",
    "ComparedRow",
    "Comparison",
    "Cost",
    "EmbeddingCosine",
    "EndpointRanking",
    "GradientConfig",
    "GradientCosine",
    "PairSet",
    "Quality",
    "RandomOrder",
    "RankingBaseline",
    "ReferenceMargin",
    "ResponseLength",
    "ScoresFile",
    "SentenceModel",
    "TfIdf",
    "TruthConfig",
    "agreement",
    "compare",
    "parse_baseline",
    "quality",
    "response_log_probs",
]
