"""The dataset that a cell trains on: rows filtered, flipped, weighed or dropped, and topped up again."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trl_attribution.behaviors import Judge, JudgeConfig, parse_rule
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.validation.cells import Cell
from trl_attribution.evidence.validation.plan import MixedPlan
from trl_attribution.evidence.validation.selections import Chosen
from trl_attribution.manifest.config import WEIGHT_COLUMN
from trl_attribution.pairs import Pair, whole_text


@dataclass(frozen=True)
class Changes:
    """What was done to the rows of the dataset."""

    rows_in: int
    filtered: int = 0
    flipped: int = 0
    repeated: int = 0
    """Rows added by repeating some, so that the number of steps stays."""
    rows_out: int = 0
    sources: tuple[str, ...] = ()
    """Sources that were dropped."""
    weighed: int = 0
    """Rows that got a weight."""
    weighed_as: float = 0.0
    """The sum of those weights."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Dataset:
    """The rows of one cell, as TRL takes them, in the order in which they stand in the dataset."""

    rows: list[dict[str, Any]]
    changes: Changes


class Intervener:
    """Makes the datasets of cells from the pairs of one dataset."""

    def __init__(self, pairs: Sequence[Pair], mixed: MixedPlan, judges: JudgeConfig | None = None) -> None:
        self._pairs = pairs
        self._flip_if: Judge = parse_rule(mixed.flip_if, judges)
        self._unless: Judge | None = parse_rule(mixed.unless, judges) if mixed.unless else None

    def apply(self, cell: Cell, chosen: Chosen) -> Dataset:
        """The dataset of ``cell``; with fixed steps it has as many rows as without intervention.

        Raises:
            SettingsError: nothing is left to train on.
        """
        kept: list[Pair] = []
        flipped = 0
        for pair in self._pairs:
            action = self._action(cell.condition.intervention, pair) if pair.pair_id in chosen.pair_ids else "keep"
            if action == "flip":
                kept.append(replace(pair, chosen=pair.rejected, rejected=pair.chosen))
                flipped += 1
            elif action == "keep":
                kept.append(pair)
        if not kept:
            raise SettingsError(f"cell {cell.name}: no pair is left to train on; choose a smaller size")
        weights = [chosen.weights.get(pair.pair_id) for pair in kept]
        given = [weight for weight in weights if weight is not None]
        filled = self._filled(kept, cell) if cell.condition.steps == "fixed" else kept
        changes = Changes(
            rows_in=len(self._pairs),
            filtered=len(self._pairs) - len(kept),
            flipped=flipped,
            repeated=len(filled) - len(kept),
            rows_out=len(filled),
            sources=chosen.sources,
            weighed=len(given),
            weighed_as=round(sum(given), 4),
        )
        rows = [_row(pair) for pair in filled]
        if given:  # no pair goes, so ``filled`` is ``kept``
            rows = [
                {**row, WEIGHT_COLUMN: 1.0 if weight is None else weight}
                for row, weight in zip(rows, weights, strict=True)
            ]
        return Dataset(rows, changes)

    def _action(self, intervention: str, pair: Pair) -> str:
        if intervention == "flip":
            return "flip"
        if intervention == "weight":
            return "keep"
        if intervention == "mixed":
            good = self._flip_if(pair.prompt, whole_text(pair.rejected))
            kept_apart = self._unless is not None and self._unless(pair.prompt, whole_text(pair.chosen))
            return "flip" if good and not kept_apart else "filter"
        return "filter"

    def _filled(self, kept: list[Pair], cell: Cell) -> list[Pair]:
        """``kept`` with rows repeated evenly, drawn by the cell's seed, until there are as many as before."""
        missing = len(self._pairs) - len(kept)
        whole, rest = divmod(missing, len(kept))
        times: Counter[int] = Counter(random.Random(f"{cell.seed}/top-up").sample(range(len(kept)), rest))
        return [pair for place, pair in enumerate(kept) for _ in range(1 + whole + times[place])]


def _row(pair: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    if pair.tools is not None:
        row["tools"] = pair.tools
    if pair.chat_template_kwargs:
        row["chat_template_kwargs"] = pair.chat_template_kwargs
    return row
