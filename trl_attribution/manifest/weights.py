"""Weights in place of filtering: the pairs stay, and the surer a flag is, the less its pair has to say.

The weight of a flagged pair falls in a straight line with its score: 1 for the lowest score that is flagged, 0 (or the
floor) from twice that score on. So a pair that only just passes counts like one that only just does not, and one that
pushes twice as hard counts for nothing. Every pair that is not flagged has weight 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trl_attribution.errors import ManifestError
from trl_attribution.pairs.rows import Row, RowSource
from trl_attribution.pairs.rows.rows import SequenceRows
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_attribution.manifest.manifest import Manifest

_DIGITS = 4


def score_weights(scores: Sequence[float], floor: float = 0.0) -> list[float]:
    """A weight for each of the flagged ``scores``; one that is not above 0 pushes nowhere, so its pair keeps all.

    >>> score_weights([0.5, 0.3, 0.25, 0.2, -0.1])
    [0.0, 0.5, 0.75, 1.0, 1.0]
    """
    least = min((score for score in scores if score > 0), default=1.0)
    return [1.0 if score <= 0 else round(max(floor, 2 - score / least), _DIGITS) for score in scores]


def pair_weights(manifest: Manifest, floor: float = 0.0) -> dict[str, float]:
    """By its id, the weight of each pair that ``manifest`` filters, probe by probe; the floor where a person decided.

    Raises:
        ManifestError: it flips pairs, or would leave every pair its full weight.
    """
    if any(one.action == "flip" for one in manifest.decisions):
        raise ManifestError("--action weight: the manifest flips pairs; give one that filters them")
    listed = [one for one in manifest.decisions if one.action == "filter"]
    scored: dict[str, dict[str, float]] = {}
    for one in listed:
        if one.score is not None and one.reviewer is None:
            scored.setdefault(one.probe, {})[one.pair_id] = one.score
    found = dict.fromkeys((one.pair_id for one in listed), floor)
    for scores in scored.values():
        found |= zip(scores, score_weights(list(scores.values()), floor), strict=True)
    if found and all(weight == 1 for weight in found.values()):
        raise ManifestError(
            f"--action weight: all {len(listed):,} pairs that the manifest filters have one score, or none above 0, so "
            "each would keep its full weight. Filter them instead."
        )
    return found


@dataclass(frozen=True)
class Weighing:
    """The column of weights that rows get, or with ``undo`` lose again."""

    column: str
    weights: npt.NDArray[np.float64]
    """``[rows_in]``"""
    undo: bool = False

    def values(self, values: Mapping[str, Any], place: int, location: str) -> dict[str, Any]:
        """The values of row ``place`` with its weight, or without.

        Raises:
            ManifestError: the column is there already, or what is to be taken out is another weight.
        """
        weight = float(self.weights[place])
        if not self.undo:
            if self.column in values:
                raise ManifestError(
                    f"{location}: has a column '{printable(self.column)}' already. Name another one: --weight-column."
                )
            return {**values, self.column: weight}
        found = values.get(self.column)
        if _number(found) != weight:
            raise ManifestError(
                f"{location}: column '{printable(self.column)}' holds {printable(repr(found), 40)}, not the weight "
                f"{weight} that this manifest gives. Undo with the options that it was applied with."
            )
        return {name: value for name, value in values.items() if name != self.column}

    def row(self, row: Row, place: int) -> Row:
        """The same of a row, the line that it was read from included."""
        values = self.values(row.values, place, row.location)
        line = row.raw.decode("utf-8") if row.raw is not None and row.raw_kind == "jsonl" else None
        if line is None:
            stored = self.values(row.stored, place, row.location)
            if row.raw is not None and not self.undo:  # a CSV file holds text
                stored[self.column] = str(stored[self.column])
            return Row(row.index, row.location, values, written=stored)
        text = f"{json.dumps(self.column)}: {json.dumps(float(self.weights[place]))}"
        head, _, tail = line.rpartition("}")
        is_alone = head.replace(text, "").strip() == "{"  # a row without columns, carried over
        text = text if is_alone else f", {text}"
        if not self.undo:
            return Row(row.index, row.location, values, f"{head}{text}}}{tail}".encode())
        if head.endswith(text):
            return Row(row.index, row.location, values, f"{head.removesuffix(text)}}}{tail}".encode())
        return Row(row.index, row.location, values, written=self.values(row.stored, place, row.location))

    def dataset(self, dataset: Dataset) -> Dataset:
        """The same of a dataset in memory.

        Raises:
            ManifestError: as for :meth:`values`.
        """
        if not self.undo and self.column not in dataset.column_names:
            return dataset.add_column(self.column, self.weights.tolist())
        held = dataset.with_format(None)[self.column] if self.column in dataset.column_names else [None] * len(dataset)
        for place, value in enumerate(held):
            self.values({self.column: value}, place, f"row {place}")
        return dataset.remove_columns(self.column)

    def like(self, source: RowSource) -> RowSource:
        """What the rows come out like: the columns and types of ``source``, with that of the weights or without."""
        from datasets import Features, Value

        columns, features = source.columns, source.features
        if columns is not None:
            columns = [name for name in columns if name != self.column] + ([] if self.undo else [self.column])
        if features is not None:
            kept = {name: kind for name, kind in features.items() if name != self.column}
            features = Features(kept if self.undo else {**kept, self.column: Value("float64")})
        return SequenceRows(source.name, (), source.kind, columns, features)


def _number(value: Any) -> float | None:
    """A number, also one written as text; None of anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
