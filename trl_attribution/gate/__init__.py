"""The CI gate: a policy and a dataset in, a verdict out."""

from trl_attribution.gate.verdict import Allowed, Excerpt, Place, Range, RuleResult, Statement, Verdict, Violation

__all__ = ["Allowed", "Excerpt", "Place", "Range", "RuleResult", "Statement", "Verdict", "Violation"]
