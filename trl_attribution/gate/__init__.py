"""The CI gate: a policy and a dataset in, a verdict out."""

from trl_attribution.gate.verdict import Allowed, Excerpt, Finding, Place, RuleResult, Verdict

__all__ = ["Allowed", "Excerpt", "Finding", "Place", "RuleResult", "Verdict"]
