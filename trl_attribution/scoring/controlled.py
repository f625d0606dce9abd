"""The controlled and the one-sided score: both weigh a pair by its prompt, like the behavior's and unlike its controls.

Axis letters: n pairs, M prompts of a probe, C controls, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAN = 1 / 3
"""A one-sided score is positive unless the response leans away by more than this (docs/benchmarks/sft.md)."""
PENALTY = 100.0
"""Of the squared weights: half of it times their sum is added to the loss."""
_STEPS = 100
_SETTLED = 1e-9


@dataclass(frozen=True)
class ContextClassifier:
    """Logistic regression of contexts: the behavior's prompts against their controls; float32."""

    mean: Tensor
    """[D]"""
    weight: Tensor
    """[D], of contexts minus ``mean``."""
    bias: float

    @classmethod
    def fit(cls, behavior: Tensor, controls: Tensor) -> ContextClassifier:
        """Fit on contexts [M, D] and [C, D], standardized by their own mean and spread.

        There are more dimensions than prompts, so that the weights are a sum over prompts: Newton's method finds those
        few coefficients, and the same contexts always give the same classifier.
        """
        rows = torch.cat([behavior, controls]).double()
        is_behavior = torch.cat([torch.ones(len(behavior)), torch.zeros(len(controls))]).double()
        mean, spread = rows.mean(dim=0), rows.std(dim=0, correction=0)
        # A dimension in which all contexts are the same says nothing.
        scale = torch.where(spread > 0, 1 / spread.where(spread > 0, 1.0), 0.0)
        standard = (rows - mean) * scale
        coefficients, bias = _newton(standard @ standard.T, is_behavior)
        weight = standard.T @ coefficients * scale
        return cls(mean.float(), weight.float(), bias)

    def __call__(self, contexts: Tensor) -> Tensor:
        """[n]: how likely each of ``contexts`` [n, D] is one of the behavior rather than a control."""
        return torch.sigmoid((contexts - self.mean) @ self.weight + self.bias)


@dataclass(frozen=True)
class ControlledTarget:
    """What one probe's controlled or one-sided scores are taken with."""

    direction: Tensor
    """Unit behavior vector [D]."""
    contexts: Tensor
    """Unit centred contexts of the behavior's prompts [M, D]."""
    classifier: ContextClassifier | None
    """None for a probe without controls, whose one-sided scores take every context for one of the behavior."""
    one_sided: bool = False

    def score(self, pairs: Tensor, contexts: Tensor, centred: Tensor) -> Tensor:
        """[n], of unit pair vectors, contexts as they are, and unit centred contexts (zero without one), all [n, D]."""
        alike = (centred @ self.contexts.T).clamp(min=0).mean(dim=1)
        weight = torch.sqrt(alike if self.classifier is None else alike * self.classifier(contexts))
        towards = pairs @ self.direction
        if self.one_sided:  # but a pair that teaches nothing scores 0
            towards = (LEAN * pairs.any(dim=1) + towards) / (LEAN + 1)
        return weight * towards


def _newton(kernel: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Coefficients [M + C] of the rows, and the bias, at the loss's one minimum."""
    count = len(labels)
    solution = torch.zeros(count + 1, dtype=torch.float64)
    system = torch.ones(count + 1, count + 1, dtype=torch.float64)
    system[count, count] = 0
    for _ in range(_STEPS):
        logits = kernel @ solution[:count] + solution[count]
        likely = torch.sigmoid(logits)
        curvature = (likely * (1 - likely)).clamp(min=1e-9)
        system[:count, :count] = kernel + torch.diag(PENALTY / curvature)
        wanted = torch.cat([logits + (labels - likely) / curvature, torch.zeros(1, dtype=torch.float64)])
        before, solution = solution, torch.linalg.solve(system, wanted)
        if float((solution - before).abs().max()) < _SETTLED:
            break
    return solution[:count], float(solution[count])
