"""How well a direction tells its own examples apart, cross-validated, and the layer chosen by that."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from trl_attribution.behaviors.encoding import ExampleActivations
from trl_attribution.errors import ProbeError
from trl_attribution.scoring.held_out import known_pairs

if TYPE_CHECKING:
    from trl_attribution.probes.probe import Probe

FOLDS = 5
_FOLD_SEED = 0
_FEWEST_PROMPTS = 3
_TIE = 0.005
"""Difference in separability (AUC) up to which two layers count as equally good: a few prompts more or less make it."""
_CONTROL_TIE = 0.05
"""The same of the separability from controls, which are fewer and harder."""
_DEPTH = 2 / 3
"""Of the decoder blocks."""


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


def control_separability(probe: Probe) -> dict[int, float]:
    """Layer -> AUC of the probe's own pairs against its controls' by their controlled scores, each left out in turn.

    Empty for a probe without controls, or with too few prompts. Contexts are centred by the mean of both.
    """
    found: dict[int, float] = {}
    if probe.contexts is None or probe.control_contexts is None:
        return found
    for row, layer in enumerate(probe.layers):
        mean = torch.cat([probe.contexts[:, row], probe.control_contexts[:, row]]).float().mean(dim=0)
        known = known_pairs(probe, layer, "controlled", mean)
        if known is not None and known.controls is not None:
            found[layer] = auc(torch.from_numpy(known.examples.scores), torch.from_numpy(known.controls.scores))
    return found


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

    ``auto`` is the layer with the best separability, of those within 0.005 of it the latest. Where it is unknown, the
    middle one (the lower of two).

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


def choose_by_controls(apart: Mapping[int, float], blocks: int) -> int:
    """Of the layers that tell the probe's pairs from its controls about as well as the best one, the typical one.

    That is the one nearest to two thirds of the ``blocks``. Later ones rank composed pairs a little better, but what
    the examples say of a dataset's pairs there holds less (docs/method.md).
    """
    best = max(apart.values())
    equal = [layer for layer, value in apart.items() if value >= best - _CONTROL_TIE]
    return min(equal, key=lambda layer: (abs(layer - _DEPTH * blocks), layer))


def _fold_auc(direction_LD: Tensor, held_out: Sequence[ExampleActivations], row: int) -> float:
    direction = direction_LD[row]
    positive = torch.cat([one.undesired[:, row].double() @ direction for one in held_out])
    negative = torch.cat([one.desired[:, row].double() @ direction for one in held_out])
    return auc(positive, negative)
