"""Scores that somebody else computed: a file with a score for each pair."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_attribution.errors import DataError
from trl_attribution.evidence.baselines.baseline import BaselineScores, Cost, PairSet
from trl_attribution.pairs.rows import open_rows
from trl_attribution.utils.progress import OnProgress, silent
from trl_attribution.utils.text import printable


@dataclass(frozen=True)
class ScoresFile:
    """Rows of ``pair_id`` and ``score`` in any file that can be read as a dataset; the highest score ranks first."""

    path: Path

    @property
    def name(self) -> str:
        """``scores:`` and the file's name."""
        return f"scores:{printable(self.path.name, 60)}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The file's checksum.

        Raises:
            DataError: it cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                return {"baseline": "scores", "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        except OSError as error:
            raise DataError(f"cannot read scores from {printable(self.path)}: {error.strerror or error}") from error

    def __call__(self, pairs: PairSet, on_progress: OnProgress = silent) -> BaselineScores:
        """Read the scores of every pair; those of other pairs are counted and left out.

        Raises:
            DataError: a field is missing or no finite number, or a pair has no score or two.
        """
        given = scores_by_pair(self.path)
        wanted = [pair.pair_id for pair in pairs]
        missing = [pair_id for pair_id in wanted if pair_id not in given]
        if missing:
            raise DataError(
                f"{printable(self.path)} has no score for {len(missing):,} of {len(wanted):,} pairs, {missing[0]} "
                "first. Score every pair of the audit."
            )
        on_progress(self.name, len(wanted), len(wanted))
        scores = {pair_id: given[pair_id] for pair_id in wanted}
        other = len(given) - len(wanted)
        notes = (f"{other:,} scores are of pairs that the audit does not have",) if other else ()
        return BaselineScores(self.name, scores, Cost(0.0), notes)


def scores_by_pair(path: str | Path) -> dict[str, float]:
    """The score of each pair in a file of rows with ``pair_id`` and ``score``, in its order.

    Raises:
        DataError: a field is missing or no finite number, or a pair has two scores.
    """
    given: dict[str, float] = {}
    for row in open_rows(path):
        pair_id, score = row.values.get("pair_id"), _number(row.values.get("score"))
        if not isinstance(pair_id, str) or score is None:
            raise DataError(f"{row.location}: needs `pair_id`, a text, and `score`, a finite number")
        if pair_id in given:
            raise DataError(f"{row.location}: pair {printable(pair_id, 40)} has a score already; leave one out")
        given[pair_id] = score
    return given


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
