"""The audit's own score averaged over its layers, as one more ranking to compare with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_attribution.errors import SettingsError
from trl_attribution.evidence.baselines.baseline import BaselineScores, Cost, OnProgress, PairSet, silent
from trl_attribution.scoring import Column, ScoreTable
from trl_attribution.scoring.adjustments import mean_over_layers


@dataclass(frozen=True)
class LayerMeanScores:
    """The scores of the probe and kind of ``column``, averaged over all layers that the audit scored at."""

    audit: Path
    column: Column

    @property
    def name(self) -> str:
        """``layer-mean``."""
        return "layer-mean"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The probe, the kind of score, the layers, and the table's size and time, which tell whether it is the same.

        Raises:
            StoreError: the audit has no scores.
        """
        status = (self.audit / "scores.parquet").stat()
        return {
            "baseline": self.name,
            "probe": self.column.probe,
            "kind": self.column.kind,
            "table": [status.st_size, status.st_mtime_ns],
        }

    def __call__(self, pairs: PairSet, on_progress: OnProgress = silent) -> BaselineScores:  # noqa: ARG002  # the audit's
        """Average.

        Raises:
            SettingsError: the audit scored at one layer only.
        """
        start = time.perf_counter()
        table = ScoreTable.open(self.audit / "scores.parquet")
        mine = [one for one in table.columns if (one.probe, one.kind) == (self.column.probe, self.column.kind)]
        if len(mine) < 2:
            raise SettingsError(
                f"baseline {self.name}: {self.audit} has scores of {self.column.probe!r} at layer {self.column.layer} "
                "only. Build the probe with several layers, and audit with --layer for each of them."
            )
        found = mean_over_layers({one.layer: table.read(one, ["score"])["score"].to_numpy() for one in mine})
        pair_ids = table.read(mine[0], ["pair_id"])["pair_id"].to_pylist()
        scores = dict(zip(pair_ids, found.scores.tolist(), strict=True))
        on_progress(self.name, len(scores), len(scores))
        weights = ", ".join(f"{layer}: {weight:.2f}" for layer, weight in found.weights.items())
        cost = Cost(time.perf_counter() - start)
        note = f"layers by weight: {weights}; the vectors' cost is the audit's"
        return BaselineScores(self.name, scores, cost, (note,))
