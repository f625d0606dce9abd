"""Could a shallow layer choose the pairs that a deeper one has to look at? Measured before anything of it is built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from tests.benchmarks.decision_vectors import SMOLLM2
from tests.benchmarks.decisions import DRAWN, Draw, View, _all_vectors
from tests.benchmarks.pages import Results, write_page
from trl_attribution.probes import Probe
from trl_attribution.scoring import DEFAULT_RULE, flag, score_view

M0 = replace(SMOLLM2, name=f"{SMOLLM2.name}-shallow", layers=(4, 6, 8, *SMOLLM2.layers))
KEPT = (0.99, 0.95)
NOTE = (
    "Share: so many of all pairs, the highest first at the shallow layer, have to be read at the full depth so that "
    "this part of the flags is among them: the mean of the draws and the worst. Speed: of a pass to the shallow "
    "layer for all pairs and to the layer of the flags for that mean share, against one pass to the layer of the flags "
    "for all, by blocks. Resumed: where the states of all tokens at the shallow layer were kept on disk (150 times the "
    "store at 300 tokens a pair), so that only the blocks between the two run again. Goal: 2x at 99%. "
    "Of the demo 19% are flagged, of XSTest 48% ([Decisions](decisions.md)), and no choice could do with less: where a "
    "behavior is rarer, a smaller share might."
)
LEAD = (
    "Triage: vectors at a shallow layer for all pairs, the full depth for those that could still be flagged. A shallow "
    "probe is made of the same examples and controls as the deep one, whose threshold (recall 0.9 of its examples, on "
    "{draws} draws, see [Decisions](decisions.md)) decides what is flagged. The larger organism of that page is "
    "left out. Triage is **not built**: what follows says why."
)


def run(output: Path, command: str, cache: Path, data: Path, console: Console, draws: int) -> None:
    rows = []
    for name, vectors in _all_vectors(M0, cache, data).items():
        drawn = [DRAWN[name](vectors, None, seed) for seed in range(draws)]
        deep = [_Deep.of(draw) for draw in drawn]
        layers = [one.layer for one in deep]
        for layer in (one for one in vectors.layers if one < min(layers)):
            orders = [np.argsort(-_scores(draw, draw.probe([layer])), kind="stable") for draw in drawn]
            depth = layer / float(np.mean(layers))
            cells = []
            for kept in KEPT:
                shares = [one.share(order, kept) for one, order in zip(deep, orders, strict=True)]
                mean = float(np.mean(shares))
                again, resumed = 1 / (depth + mean), 1 / (depth + mean * (1 - depth))
                cells += [f"{mean:.0%} ({max(shares):.0%})", f"{again:.2f}x, resumed {resumed:.2f}x"]
            rows.append((name, f"{layer} of {'/'.join(map(str, sorted(set(layers))))}", *cells))
            console.print(" | ".join(rows[-1]))
    columns = ("set", "layer", *(part for kept in KEPT for part in (f"share for {kept:.0%} of the flags", "speed")))
    table = Results("Shallow layers", columns, tuple(rows), NOTE)
    write_page(output / "triage.md", "Triage", LEAD.format(draws=draws), command, [table])


@dataclass(frozen=True)
class _Deep:
    """What the layer that flags are taken at flags of one draw."""

    layer: int
    flagged: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, draw: Draw) -> _Deep:
        probe = draw.default_probe()
        view = View(draw, [str(place) for place in draw.ranked])
        scores = score_view(view, [probe], layers=[probe.layer])
        threshold = flag(scores, DEFAULT_RULE).decisions["behavior"].threshold.threshold
        return cls(probe.layer, np.array(scores.of(scores.columns[0])) >= threshold)

    def share(self, order: npt.NDArray[np.int64], kept: float) -> float:
        """The share of the ranked pairs, first in ``order``, that holds the share ``kept`` of the flags."""
        found = np.cumsum(self.flagged[order])
        return float((np.searchsorted(found, np.ceil(kept * self.flagged.sum())) + 1) / len(order))


def _scores(draw: Draw, probe: Probe) -> npt.NDArray[np.float64]:
    view = View(draw, [str(place) for place in draw.ranked])
    scores = score_view(view, [probe], layers=[probe.layer])
    return np.array(scores.of(scores.columns[0]), dtype=np.float64)
