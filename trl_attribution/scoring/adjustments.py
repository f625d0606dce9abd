"""Scores made from several columns of scores: what was measured to rank better than one layer alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trl_attribution.errors import SettingsError

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LayerMean:
    """Scores [N] averaged over layers, in -1..1; flipping a pair still negates its score exactly."""

    scores: Doubles
    weights: Mapping[int, float]
    """By layer, positive, of sum 1. Those of another dataset differ."""

    def of(self, columns: Mapping[int, npt.ArrayLike]) -> Doubles:
        """Other scores [R] by layer, such as those of clean reference pairs, averaged by the same weights.

        Raises:
            SettingsError: a layer is missing.
        """
        missing = sorted(self.weights.keys() - columns.keys())
        if missing:
            raise SettingsError(f"mean over layers: no scores at layer {', '.join(map(str, missing))}")
        return _weighted(
            [np.asarray(columns[layer], dtype=np.float64) for layer in self.weights], list(self.weights.values())
        )


def mean_over_layers(columns: Mapping[int, npt.ArrayLike]) -> LayerMean:
    """The mean over layers of scores, each layer weighted by one over the root mean square of its scores.

    Scores of one layer may be ten times those of another; so weighted, each layer has the same say. The root mean
    square, unlike the standard deviation, does not change when pairs are flipped.

    Args:
        columns: scores [N] of the same pairs by one probe and of one kind, by layer.

    Raises:
        SettingsError: no layers, different numbers of pairs, or a layer at which every pair scores 0.
    """
    arrays = {layer: np.asarray(values, dtype=np.float64) for layer, values in columns.items()}
    if not arrays or len({array.shape for array in arrays.values()}) > 1:
        sizes = ", ".join(f"{layer}: {array.shape}" for layer, array in arrays.items()) or "none"
        raise SettingsError(f"mean over layers: give scores of the same pairs at one layer or more, not {sizes}")
    scale = {layer: float(np.sqrt(np.mean(array**2))) for layer, array in arrays.items()}
    silent = [layer for layer, size in scale.items() if not size > 0]
    if silent:
        raise SettingsError(f"mean over layers: every pair scores 0 at layer {silent[0]}; leave that layer out")
    total = sum(1 / size for size in scale.values())
    weights = {layer: 1 / size / total for layer, size in scale.items()}
    return LayerMean(_weighted(list(arrays.values()), list(weights.values())), weights)


def _weighted(arrays: Sequence[Doubles], weights: Sequence[float]) -> Doubles:
    return np.asarray(np.average(np.stack(arrays), axis=0, weights=weights))
