"""Score pairs while they are trained on: what reaches the trainer's logs, and what ``on_flag`` acts on.

Axis letters: n pairs, L layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trl_attribution.errors import SettingsError
from trl_attribution.probes import Probe
from trl_attribution.scoring.asked import Column, kind_for, reference_for
from trl_attribution.scoring.kinds import AskedKind
from trl_attribution.scoring.scores import with_neutral
from trl_attribution.scoring.targets import LayerTargets
from trl_attribution.utils.distributed import Ranks

PREFIX = "attribution/"
_CLEAN_SHARE = 0.99


@dataclass(frozen=True)
class Window:
    """What the pairs of one logging window showed, on all ranks together."""

    pairs: int
    metrics: dict[str, float]
    """Names as they appear in the trainer's logs."""
    flagged_share: float | None
    """Share of pairs that any probe flags; None where no probe has a score to flag at."""


def flagged_share(windows: Sequence[Window]) -> float:
    """Share of the pairs of all ``windows`` that any probe flags."""
    flagged = sum(window.pairs * (window.flagged_share or 0.0) for window in windows)
    return flagged / max(1, sum(window.pairs for window in windows))


@dataclass
class _OnlineProbe:
    """One probe, where it is scored, and its scores of the window under way."""

    probe: Probe
    column: Column
    row: int
    """Where the layer lies on the L axis."""
    limit: float | None
    center: Tensor | None
    """``mu`` [D] that the probe brings; None where the pairs seen so far stand for it, or nothing uses one."""
    scores: list[float] = field(default_factory=list)
    pushed: float = 0.0
    """What the window's rollouts push along the behavior, added up."""

    def score(self, pair: Tensor, context: Tensor, mean: Tensor, pairs: float) -> Tensor:
        """Scores [n] of pair vectors [n, L, D], by the ``mean`` [D] of that many ``pairs`` unless it brings one."""
        center = with_neutral(mean, pairs, self.probe, self.column.layer) if self.center is None else self.center
        targets = LayerTargets.build(self.column.layer, [(0, self.column.kind, self.probe)], center, pair.shape[2])
        return targets.score(pair[:, self.row], context[:, self.row]).scores[:, 0]

    def summary(self) -> dict[str, float]:
        above = 0 if self.limit is None else sum(score >= self.limit for score in self.scores)
        return {"sum": sum(self.scores), "max": max(self.scores, default=-1.0), "above": above, "push": self.pushed}


class OnlineScores:
    """Scores of each probe over the pairs that pass by.

    Scores with contexts center them by the mean that a calibrated probe brings, or by the dataset's, which is known at
    the end only: while training, the mean over the pairs that this rank has seen so far stands for it. The audit's own
    scores are taken anew.

    Args:
        probes: the behaviors to score for.
        layers: the layers captured, each probe's own among them.
        score: kind of score, as for pairs: SFT samples, which have another, are not looked at while training.
        flag_at: score from which a pair is flagged, for every probe; None takes the 99th percentile of each
            probe's calibrated clean pairs, where it has some.
    """

    def __init__(
        self, probes: Sequence[Probe], layers: tuple[int, ...], score: AskedKind, flag_at: float | None
    ) -> None:
        self._probes = [_online_probe(probe, layers, score, flag_at) for probe in probes]
        size = probes[0].hidden_size if probes else 0
        self._sums = torch.zeros(len(layers), size, dtype=torch.float64)
        self._seen = torch.zeros(len(layers), 1, dtype=torch.float64)
        self._flags: list[bool] = []
        self._rollouts = 0

    @property
    def limits(self) -> dict[str, float | None]:
        """The score that each probe flags at, None where it cannot."""
        return {one.probe.name: one.limit for one in self._probes}

    def require_limits(self, setting: str) -> None:
        """Make sure that every probe can flag.

        Raises:
            SettingsError: one has neither ``flag_at`` nor clean pairs to take it from.
        """
        without = [name for name, limit in self.limits.items() if limit is None]
        if without or not self.limits:
            raise SettingsError(
                f"{setting} needs probes with a score to flag at; "
                + (f"{', '.join(without)} has none: " if without else "no probes were given: ")
                + "set flag_at, or calibrate the probe (trl-attribution probe calibrate)"
            )

    def forget_window(self) -> None:
        """Start the window anew, as if nothing of it had been seen."""
        self._flags, self._rollouts = [], 0
        for one in self._probes:
            one.scores, one.pushed = [], 0.0

    def require_fixed_scores(self, setting: str) -> None:
        """Make sure that no score depends on what was seen before.

        Raises:
            SettingsError: one uses contexts and brings no center, so that it moves while training.
        """
        moving = [one.probe.name for one in self._probes if one.column.uses_contexts and one.center is None]
        if moving:
            raise SettingsError(
                f"{setting} needs scores that do not depend on the pairs seen before, but those of "
                f"{', '.join(moving)} use contexts, whose center is known at the end only. Calibrate the probe "
                "(trl-attribution probe calibrate), or set score='response'."
            )

    def score(self, pair: Tensor, context: Tensor) -> Tensor:
        """Score pair vectors [n, L, D] with contexts [n, L, D]; which of the n pairs any probe flags."""
        flagged = torch.zeros(len(pair), dtype=torch.bool)
        if not len(pair) or not self._probes:
            return flagged
        self._sums += context.sum(dim=0, dtype=torch.float64)
        self._seen += (context != 0).any(dim=2).sum(dim=0)[:, None]
        means = (self._sums / self._seen.clamp(min=1)).float()
        for one in self._probes:
            scores = one.score(pair, context, means[one.row], float(self._seen[one.row]))
            one.scores += scores.tolist()
            if one.limit is not None:
                flagged |= scores >= one.limit
        self._flags += flagged.tolist()
        return flagged

    def push(self, pair: Tensor, weights: Tensor, rollouts: int) -> None:
        """Add what an update on ``rollouts`` pushes along each behavior.

        Args:
            pair: vectors [n, L, D] of their groups.
            weights: [n], half the sum of each group's absolute advantages: with it, a group's vector is its responses'
                activations weighted by their advantages.
            rollouts: how many there are, those of groups without a contrast included, which push nowhere.
        """
        self._rollouts += rollouts
        for one in self._probes:
            direction = torch.nn.functional.normalize(one.probe.at(one.column.layer).float(), dim=0)
            one.pushed += float(weights @ (pair[:, one.row] @ direction))

    def close_window(self, ranks: Ranks) -> Window | None:
        """Add up the window on all ranks and start the next; None where no pair was seen. A collective."""
        mine: dict[str, Any] = {
            "pairs": len(self._flags),
            "flagged": sum(self._flags),
            "rollouts": self._rollouts,
            "probes": {one.probe.name: one.summary() for one in self._probes},
        }
        self.forget_window()
        everyone = ranks.gather(mine)
        rollouts = sum(rank["rollouts"] for rank in everyone)
        metrics: dict[str, float] = {}
        for name in self.limits if rollouts else ():
            metrics[f"{PREFIX}{name}/push"] = sum(rank["probes"][name]["push"] for rank in everyone) / rollouts
        everyone = [rank for rank in everyone if rank["pairs"]]
        pairs = sum(rank["pairs"] for rank in everyone)
        if not pairs:
            return Window(0, metrics, None) if metrics else None
        for name, limit in self.limits.items():
            parts = [rank["probes"][name] for rank in everyone]
            metrics[f"{PREFIX}{name}/mean"] = sum(part["sum"] for part in parts) / pairs
            metrics[f"{PREFIX}{name}/max"] = max(part["max"] for part in parts)
            if limit is not None:
                metrics[f"{PREFIX}{name}/share_above"] = sum(part["above"] for part in parts) / pairs
        share = None
        if any(limit is not None for limit in self.limits.values()):
            share = sum(rank["flagged"] for rank in everyone) / pairs
            metrics[f"{PREFIX}flagged_fraction"] = share
        return Window(pairs, metrics, share)


def _online_probe(probe: Probe, layers: tuple[int, ...], score: AskedKind, flag_at: float | None) -> _OnlineProbe:
    column = Column(probe.name, probe.layer, kind_for(probe, score))
    reference = reference_for(probe, column)
    limit = flag_at
    if limit is None and reference is not None:
        limit = float(np.quantile(reference.scores, _CLEAN_SHARE))
    return _OnlineProbe(probe, column, layers.index(probe.layer), limit, reference.center if reference else None)
