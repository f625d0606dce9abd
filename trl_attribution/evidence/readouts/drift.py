"""How far training moved each layer: M0's and M1's residual streams on the same tokens.

A measure of the models, not of responses: pair and behavior vectors are taken on M0 alone.
Axis letters: R responses, L layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as render_safetensors
from torch import Tensor

from trl_attribution.activations import ActivationEngine, PromptGroup
from trl_attribution.errors import ModelError, StoreError
from trl_attribution.utils.json_file import DescribedFile
from trl_attribution.utils.text import printable

FORMAT = "trl-attribution drift"
VERSION = 1


@dataclass(frozen=True)
class LayerDrift:
    """How the mean activations of R responses moved at one layer."""

    layer: int
    norm: float
    """Mean length of the change, as a share of the mean length of M0's activation."""
    direction_consistency: float
    """Length of the mean change by mean length of the changes: 1 when all moved the same way, 0 when nothing moved."""
    cosine: float
    """Mean cosine between M0's and M1's activation."""
    samples: int
    """R."""
    mean_change: Tensor = field(repr=False, compare=False)
    """``[D]``, M1 minus M0, float32."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the mean change."""
        return {
            "layer": self.layer,
            "norm": self.norm,
            "direction_consistency": self.direction_consistency,
            "cosine": self.cosine,
            "samples": self.samples,
        }


@dataclass(frozen=True)
class StoredDrift:
    """What ``load_drift`` found."""

    layers: tuple[LayerDrift, ...]
    about: Mapping[str, Any]
    """What the writer said of it, such as the two models' fingerprints."""


def mean_activations(engine: ActivationEngine, groups: Sequence[PromptGroup]) -> Tensor:
    """``[R, L, D]`` float32: mean over the tokens of each response, group by group, in the groups' order.

    Raises:
        ValueError: there are no groups, or a response has no tokens.
    """
    if not groups:
        raise ValueError("mean activations: no groups were given")
    return torch.cat([found.responses for found in engine.activations(groups)])


def drift(before: Tensor, after: Tensor, layers: Sequence[int]) -> list[LayerDrift]:
    """How far each layer moved.

    Args:
        before: ``[R, L, D]``, M0's mean activations.
        after: ``[R, L, D]``, M1's on the same tokens.
        layers: of the L axis.

    Raises:
        ValueError: the shapes do not belong together.
        ModelError: an activation is infinite or not a number.
    """
    if before.shape != after.shape or before.dim() != 3 or before.shape[1] != len(layers) or not len(before):
        raise ValueError(
            f"drift: M0's {list(before.shape)} and M1's {list(after.shape)} must both be [R, {len(layers)}, D], R > 0"
        )
    for name, means in (("M0", before), ("M1", after)):
        if not means.isfinite().all():
            broken = [layer for row, layer in enumerate(layers) if not means[:, row].isfinite().all()]
            raise ModelError(
                f"drift: activations of {name} are infinite or not a number at layers {broken}; "
                "compute in float32 or bfloat16, and see whether training diverged"
            )
    return [_at(layer, before[:, row].double(), after[:, row].double()) for row, layer in enumerate(layers)]


def save_drift(folder: str | Path, drifts: Sequence[LayerDrift], about: Mapping[str, Any] | None = None) -> None:
    """Write ``drift.safetensors``, the mean changes ``[L, D]``, and ``drift.json``, all else.

    Raises:
        AttributionError: the folder cannot be written.
    """
    payload = render_safetensors({"mean_change": torch.stack([one.mean_change for one in drifts]).contiguous()})
    _files(folder).save({"about": dict(about or {}), "layers": [one.to_json() for one in drifts]}, payload)


def load_drift(folder: str | Path) -> StoredDrift:
    """Read what ``save_drift`` wrote.

    Raises:
        StoreError: a file is missing, broken, foreign, of a newer version, or belongs to another.
    """
    files = _files(folder)
    found = files.load()
    try:
        changes, stated = parse_safetensors(found.payload)["mean_change"], found.values["layers"]
        layers = [LayerDrift(**one, mean_change=row) for one, row in zip(stated, changes, strict=True)]
        return StoredDrift(tuple(layers), found.values["about"])
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise StoreError(f"{files.description} is broken ({printable(error)}). {files.advice}") from error


def _files(folder: str | Path) -> DescribedFile:
    return DescribedFile(
        Path(folder, "drift.json"), Path(folder, "drift.safetensors"), FORMAT, VERSION, "Compute drift again."
    )


def _at(layer: int, before_RD: Tensor, after_RD: Tensor) -> LayerDrift:
    change_RD = after_RD - before_RD
    mean_D = change_RD.mean(dim=0)
    moved, length = change_RD.norm(dim=1).mean(), before_RD.norm(dim=1).mean()
    return LayerDrift(
        layer=layer,
        norm=_ratio(moved, length),
        direction_consistency=_ratio(mean_D.norm(), moved),
        cosine=float(torch.nn.functional.cosine_similarity(before_RD, after_RD, dim=1).mean()),
        samples=len(before_RD),
        mean_change=mean_D.float(),
    )


def _ratio(above: Tensor, below: Tensor) -> float:
    """``above / below``, and 0 where ``above`` is 0: nothing moved, even if ``below`` is 0 too."""
    return float(above / below) if float(above) > 0 else 0.0
