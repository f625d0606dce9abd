"""The CI gate: a policy and a dataset in, a verdict out."""

from trl_attribution.gate.verdict import Allowed, Excerpt, Place, RuleResult, Verdict, Violation

__all__ = ["Allowed", "Excerpt", "Place", "RuleResult", "Verdict", "Violation"]
