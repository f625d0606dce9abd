"""How well a direction tells its own examples apart, cross-validated, and the layer chosen by that."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from trl_attribution.behaviors.encoding import ExampleActivations
from trl_attribution.errors import ProbeError

FOLDS = 5
_FOLD_SEED = 0
_FEWEST_PROMPTS = 3
_TIE = 0.005
"""Difference in separability (AUC) up to which two layers count as equally good: a few prompts more or less make it."""


def cross_validated_auc(examples: Sequence[ExampleActivations], layers: Sequence[int]) -> dict[int, float]:
    """Layer -> AUC of undesired against desired responses of held-out prompts.

    Each of five folds (fewer when there are fewer prompts) is scored by the direction of the other prompts:
    the projection of a response's mean activation on it. The AUCs of the folds are averaged, never pooled, since
    projections on different directions cannot be compared. Empty with fewer than three prompts.
    """
    if len(examples) < _FEWEST_PROMPTS:
        return {}
    directions_MLD = torch.stack([one.direction for one in examples]).double()
    total_LD = directions_MLD.sum(dim=0)
    per_fold = []
    for fold in folds(len(examples), min(FOLDS, len(examples))):
        direction_LD = total_LD - directions_MLD[fold].sum(dim=0)
        per_fold.append([_fold_auc(direction_LD, [examples[i] for i in fold], row) for row in range(len(layers))])
    means = torch.tensor(per_fold, dtype=torch.float64).mean(dim=0).tolist()
    return dict(zip(layers, means, strict=True))


def folds(count: int, parts: int) -> list[list[int]]:
    """``count`` places dealt into ``parts`` folds, shuffled with a fixed seed (files are often sorted by kind)."""
    order = list(range(count))
    random.Random(_FOLD_SEED).shuffle(order)
    return [sorted(order[part::parts]) for part in range(parts)]


def auc(positive: Tensor, negative: Tensor) -> float:
    """Chance that a score of ``positive`` ``[A]`` is above one of ``negative`` ``[B]``, ties counting half."""
    higher = (positive[:, None] > negative[None, :]).double()
    level = (positive[:, None] == negative[None, :]).double()
    return float((higher + level / 2).mean())


def choose_layer(layers: Sequence[int], separability: Mapping[int, float], asked: int | Literal["auto"]) -> int:
    """The layer that flags are taken at.

    ``auto`` is the layer with the best separability, of those within 0.005 of it the latest: later layers ranked pairs
    better on every organism held out for that question (docs/method.md). Where it is unknown, the middle one (the lower
    of two).

    Raises:
        ProbeError: ``asked`` is not among ``layers``.
    """
    if asked != "auto":
        if asked not in layers:
            listed = ", ".join(map(str, layers))
            raise ProbeError(f"layer {asked} is not among the probe's layers {listed}; choose one of them or 'auto'")
        return asked
    if not layers:
        raise ProbeError("a probe needs at least one layer; name some")
    known = {layer: separability[layer] for layer in layers if layer in separability}
    if not known:
        return sorted(layers)[(len(layers) - 1) // 2]
    return max(layer for layer, value in known.items() if value >= max(known.values()) - _TIE)


def _fold_auc(direction_LD: Tensor, held_out: Sequence[ExampleActivations], row: int) -> float:
    direction = direction_LD[row]
    positive = torch.cat([one.undesired[:, row].double() @ direction for one in held_out])
    negative = torch.cat([one.desired[:, row].double() @ direction for one in held_out])
    return auc(positive, negative)
