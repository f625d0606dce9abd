"""Baselines: other ways to rank the same pairs, and how they compare with an audit."""

from __future__ import annotations

from trl_attribution.baselines.baseline import Baseline, BaselineScores, Cost, PairSet
from trl_attribution.baselines.comparing import Audited, ComparedRow, Comparison, compare
from trl_attribution.baselines.embeddings import EmbeddingCosine, SentenceModel, TfIdf
from trl_attribution.baselines.endpoint import EndpointRanking
from trl_attribution.baselines.foreign import ScoresFile
from trl_attribution.baselines.gradients import GradientConfig, GradientCosine
from trl_attribution.baselines.layers import LayerMeanScores
from trl_attribution.baselines.margin import ReferenceMargin
from trl_attribution.baselines.names import BaselineConfig, parse_baseline
from trl_attribution.baselines.quality import Agreement, Quality, agreement, quality
from trl_attribution.baselines.surface import RandomOrder, ResponseLength
from trl_attribution.baselines.truth import TruthConfig
from trl_attribution.models.likelihood import response_log_probs

__all__ = [
    "Agreement",
    "Audited",
    "Baseline",
    "BaselineConfig",
    "BaselineScores",
    "ComparedRow",
    "Comparison",
    "Cost",
    "EmbeddingCosine",
    "EndpointRanking",
    "GradientConfig",
    "GradientCosine",
    "LayerMeanScores",
    "PairSet",
    "Quality",
    "RandomOrder",
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
