"""Does M0 in 4 or 8 bits rank pairs as M0 itself does? Each has a probe of its own vectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from tests.benchmarks.decision_vectors import SMOLLM2, ReferenceModel, VectorCache, Vectors, sets
from tests.benchmarks.decisions import DRAWN, Draw, View
from tests.benchmarks.pages import Results, write_page
from trl_attribution.scoring import score_view

SET, LAYER = "demo", 20
BITS = ("4bit", "8bit")
LEAD = (
    "A QLoRA run has its M0 in 4 bits (NF4) or 8, by bitsandbytes, and an audit of it needs the same (`--quantization "
    f"4bit`). Here the demo's pairs, scored at layer {LAYER} of 30 by SmolLM2-135M-Instruct as it is (bfloat16; its "
    "weights have 4 bits in the file that they come from), and quantized; bitsandbytes computes on this CPU."
)
NOTE = (
    "Cosine: of the pair vectors with those of the plain model, median and lowest. Spearman: of the scores with the "
    "plain model's. AP: average precision of the contaminated pairs. Over {draws} draws of three quarters of the "
    "behavior's prompts and of its controls', as in [Decisions](decisions.md); the mean, and the standard deviation "
    "over the draws."
)


def run(output: Path, command: str, cache: Path, data: Path, console: Console, draws: int) -> None:
    pairs = next(one for one in sets(data) if one.name == SET)
    plain = VectorCache(cache, _m0(None)).vectors(pairs)
    found = {bits: VectorCache(cache, _m0(bits)).vectors(pairs) for bits in BITS}
    rows = [_row("plain", plain, plain, draws), *(_row(bits, one, plain, draws) for bits, one in found.items())]
    columns = ("weights", "cosine, median", "cosine, lowest", "Spearman", "AP")
    table = Results("The demo (440 pairs, 80 of them contaminated)", columns, tuple(rows), NOTE.format(draws=draws))
    table.show(console)
    write_page(output / "quantized.md", "Quantized", LEAD, command, [table])


def _m0(bits: str | None) -> ReferenceModel:
    return replace(SMOLLM2, name=f"{SMOLLM2.name}-{bits or 'plain'}-{LAYER}", layers=(LAYER,), quantization=bits)


def _row(name: str, found: Vectors, plain: Vectors, draws: int) -> tuple[str, ...]:
    cosine = torch.nn.functional.cosine_similarity(found.pair[:, 0], plain.pair[:, 0], dim=-1)
    mine, theirs = ([DRAWN[SET](one, None, seed) for seed in range(draws)] for one in (found, plain))
    order = [spearmanr(_scores(one), _scores(other)).statistic for one, other in zip(mine, theirs, strict=True)]
    precision = [average_precision_score(one.wanted, _scores(one)) for one in mine]
    told = (f"{np.mean(values):.3f} ± {np.std(values):.3f}" for values in (order, precision))
    return (name, f"{float(cosine.median()):.4f}", f"{float(cosine.min()):.4f}", *told)


def _scores(draw: Draw) -> np.ndarray:
    view = View(draw, [str(place) for place in draw.ranked])
    scores = score_view(view, [draw.probe([LAYER])], layers=[LAYER])
    return np.array(scores.of(scores.columns[0]), dtype=np.float64)
