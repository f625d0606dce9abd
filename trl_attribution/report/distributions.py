"""How the scores of one probe are spread: histograms and layers, read from a score table.

Axis letters: N scored pairs, B bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trl_attribution.scoring import Column, ScoreTable
from trl_attribution.scoring.calibration import Calibration
from trl_attribution.utils import arrow
from trl_attribution.utils.arrays import Doubles, Integers

LEVELS = (0.01, 0.05, 0.1)
"""False discovery rates that pairs are counted at, where a probe keeps no pairs to estimate from."""
_BINS = 60


@dataclass(frozen=True)
class Histogram:
    """Counts of scores in equal bins."""

    edges: Doubles
    """``[B + 1]``, rising."""
    counts: Integers
    """``[B]``: all N pairs."""
    null: Doubles | None
    """``[B]``: how many of the N pairs are not of the behavior by the estimate, or else by the null; None where neither
    is at hand."""


@dataclass(frozen=True)
class LayerScores:
    """The scores of one probe at one layer."""

    layer: int
    median: float
    p90: float
    p99: float
    highest: float
    discoveries: Mapping[float, int]
    """Pairs that score above 0 with a q-value of at most each of :data:`LEVELS`."""


def column_scores(table: ScoreTable, column: Column) -> npt.NDArray[np.float32]:
    """The scores of ``column`` ``[N]``."""
    return arrow.numbers(table.read(column, ["score"]).column("score")).astype(np.float32)


def column_worth(table: ScoreTable, column: Column) -> Calibration:
    """What the scores of ``column`` were worth when they were taken."""
    part = table.read(column, ["rank", "percentile", "p_value", "q_value"])
    rank, *rest = (arrow.numbers(part.column(name)) for name in part.column_names)
    return Calibration(table.nulls[table.columns.index(column)], rank.astype(np.int64), *rest)


def layer_scores(table: ScoreTable, column: Column) -> LayerScores:
    """How the scores of ``column`` are spread."""
    scores, q_value = column_scores(table, column), column_worth(table, column).q_value
    median, p90, p99, highest = (float(value) for value in np.quantile(scores, [0.5, 0.9, 0.99, 1.0]))
    counts = {level: int(((q_value <= level) & (scores > 0)).sum()) for level in LEVELS}
    return LayerScores(column.layer, median, p90, p99, highest, counts)


def histogram(
    scores: npt.NDArray[np.float32], expected: npt.NDArray[np.floating] | None, unlike: Doubles | None = None
) -> Histogram:
    """Bins that hold the scores, and those ``expected`` by the null where these are at hand."""
    low, high = float(scores.min()), float(scores.max())
    if expected is not None and len(expected):
        low, high = min(low, float(expected.min())), max(high, float(expected.max()))
    if low == high:
        low, high = low - 0.01, high + 0.01
    edges = np.linspace(low, high, _BINS + 1)
    counts = np.histogram(scores, edges)[0].astype(np.int64)
    if unlike is not None:
        return Histogram(edges, counts, np.histogram(scores, edges, weights=unlike)[0])
    if expected is None or not len(expected):
        return Histogram(edges, counts, None)
    return Histogram(edges, counts, np.histogram(expected, edges)[0] * (len(scores) / len(expected)))
