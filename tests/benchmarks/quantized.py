"""Does M0 in 4 or 8 bits score some pairs of the demo as M0 itself does? Each has a direction of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from tests.benchmarks.decision_vectors import compute, sets
from tests.benchmarks.pages import Results, write_page
from trl_attribution.models import embedded_gguf, load_model

LAYER, EXAMPLES, RANKED = 20, 24, 12
KINDS = ("contaminated", "decoy", "safety", "other")
LEAD = (
    "A QLoRA run has its M0 in 4 bits (NF4) or 8, by bitsandbytes, and an audit of it takes `--quantization 4bit`. "
    f"Here the demo's pairs at layer {LAYER} of 30: the first {EXAMPLES} pairs of the behavior give the direction, the "
    f"first {RANKED} of each kind of pair are scored by it (response score), with SmolLM2-135M-Instruct in bfloat16 "
    "(its weights have 4 bits in the file that they come from) and quantized, all on the CPU."
)
NOTE = (
    "Cosine: of a pair's vectors by the two models. Spearman and largest difference: of the scores, each by its own "
    "model's direction. Separation: area under the curve of contaminated pairs against the others. Other backends of "
    "transformers (GPTQ, AWQ, torchao, quanto) are not installed here and have not been tried."
)


def run(output: Path, command: str, data: Path, console: Console) -> None:
    rows = next(one for one in sets(data) if one.name == "demo").rows()
    truth = np.array([row["truth"] for row in rows])
    chosen = [np.flatnonzero(truth == "example")[:EXAMPLES]]
    chosen += [np.flatnonzero(truth == kind)[:RANKED] for kind in KINDS]
    some = np.concatenate(chosen)
    wanted = truth[some[EXAMPLES:]] == "contaminated"
    plain, *quantized = (_vectors([rows[place] for place in some], bits) for bits in (None, "4bit", "8bit"))
    lines = [_line(name, found, plain, wanted) for name, found in zip(("4bit", "8bit"), quantized, strict=True)]
    columns = ("weights", "cosine, median", "cosine, lowest", "Spearman", "largest difference", "separation", "plain")
    table = Results(f"{len(some)} pairs of the demo", columns, tuple(lines), NOTE)
    table.show(console)
    write_page(output / "quantized.md", "Quantized", LEAD, command, [table])


def _vectors(rows: list[dict[str, object]], bits: str | None) -> torch.Tensor:
    return compute(rows, load_model(embedded_gguf(), quantization=bits), (LAYER,))["pair"][:, 0].float()


def _line(name: str, found: torch.Tensor, plain: torch.Tensor, wanted: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    cosine = torch.nn.functional.cosine_similarity(found, plain, dim=-1)
    mine, theirs = _scores(found), _scores(plain)
    told = (spearmanr(mine, theirs).statistic, abs(mine - theirs).max())
    told += (roc_auc_score(wanted, mine), roc_auc_score(wanted, theirs))
    return (name, f"{float(cosine.median()):.3f}", f"{float(cosine.min()):.3f}", *(f"{one:.3f}" for one in told))


def _scores(vectors: torch.Tensor) -> npt.NDArray[np.float32]:
    direction = vectors[:EXAMPLES].mean(0, keepdim=True)
    return torch.nn.functional.cosine_similarity(vectors[EXAMPLES:], direction, dim=-1).numpy()
