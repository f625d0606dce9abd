"""What the callback costs a DPO run, and whether its vectors are those of the offline audit, on SmolLM2-135M."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tests.benchmarks.in_run_child import BATCH, LAYER, MAX_LENGTH, STEPS, rows
from tests.benchmarks.pages import Results, write_page
from trl_attribution import DataAuditor, VectorStore
from trl_attribution.models import embedded_gguf
from trl_attribution.pairs import Encoding, Reading

REQUIRED = "Required: at most 2% more time a step (median of 5 or more pairs of runs), memory growth below 50 MB."
BERGSON_NOTE = (
    "bergson 2.5.1, `GradientCollectorCallback` with its defaults (projection 16), in an environment of its own. It "
    "numbers the rows of a plain causal-LM batch, which DPO's chosen and rejected halves do not fit, so its runs are "
    "`transformers.Trainer` on as many sequences of the same texts. It measures something else (gradients of every "
    "parameter), so this compares costs, not worth."
)
_MIB = 2**20


@dataclass
class Arm:
    """Runs of one kind: with the callback, or without."""

    steps: list[list[float]] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(seconds for run in self.steps for seconds in run)


def run(output: Path, command: str, pairs: int, lora: bool, bergson: str | None, console: Console) -> None:
    """Measure, print, and write ``in-run.md`` into ``output``; ``bergson`` is a Python that has bergson."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        arms = measured("full", pairs, folder, console, [sys.executable, "-m", "tests.benchmarks.in_run_child"])
        tables = [cost_table("Full fine-tuning", arms), parity_table(folder / "full-0" / "audit", folder)]
        if lora:
            lora_command = [sys.executable, "-m", "tests.benchmarks.in_run_child", "--adapter"]
            tables.insert(1, cost_table("LoRA", measured("LoRA", pairs, folder, console, lora_command)))
        if bergson is not None:
            arms = measured("bergson", pairs, folder, console, [bergson, "-m", "tests.benchmarks.bergson_child"])
            tables.append(cost_table("bergson's gradient callback", arms, BERGSON_NOTE))
    for table in tables:
        table.show(console)
    lead = (
        f"SmolLM2-135M-Instruct, DPOTrainer in float32 with gradient checkpointing, batches of "
        f"{BATCH} pairs of HH-RLHF cut at {MAX_LENGTH} tokens, {STEPS} steps a run, layer {LAYER}. Runs with and "
        "without the callback alternate, each in a process of its own, every other pair of runs in the other order."
    )
    write_page(output / "in-run.md", "Inside a training run", lead, command, tables)


def measured(name: str, pairs: int, folder: Path, console: Console, command: list[str]) -> dict[bool, Arm]:
    """Pairs of runs, with and without the callback, each in a process of its own."""
    arms = {False: Arm(), True: Arm()}
    for number in range(pairs):
        for with_callback in (False, True) if number % 2 else (True, False):
            flags = ["--with-callback", "--folder", str(folder / f"{name}-{number}")] if with_callback else []
            found = child([*command, *flags])
            arm = arms[with_callback]
            arm.steps.append(found["seconds"][1:])  # the first step warms up
            arm.peaks.append(found["peak_bytes"])
            arm.losses.append(found["losses"])
            what = f"{name}, pair {number + 1}, {'with' if with_callback else 'without'}"
            console.print(f"{what}: {statistics.median(arm.steps[-1]):.3f} s a step", markup=False)
    return arms


def child(command: list[str]) -> dict[str, Any]:
    """What one run prints at its end."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def cost_table(title: str, arms: dict[bool, Arm], note: str = REQUIRED) -> Results:
    """Seconds a step and memory, with against without."""
    without, with_callback = arms[False], arms[True]
    # Step by step: the n-th step of both runs of a pair is on the same batch.
    ratios = [
        mine / theirs
        for one, other in zip(with_callback.steps, without.steps, strict=True)
        for mine, theirs in zip(one, other, strict=True)
    ]
    medians = [
        statistics.median(one) / statistics.median(other)
        for one, other in zip(with_callback.steps, without.steps, strict=True)
    ]
    growth = statistics.median(with_callback.peaks) - statistics.median(without.peaks)
    same = all(one == other for one, other in zip(with_callback.losses, without.losses, strict=True))
    rows_ = (
        ("seconds a step without (median)", f"{without.median:.3f}"),
        ("seconds a step with (median)", f"{with_callback.median:.3f}"),
        ("with / without, median over all steps", f"{statistics.median(ratios):.3f}"),
        ("with / without, by pair of runs", ", ".join(f"{ratio:.3f}" for ratio in sorted(medians))),
        ("growth of peak memory, median", f"{growth / _MIB:+.0f} MiB"),
        ("losses equal bit for bit", "yes" if same else "NO"),
    )
    return Results(title, ("", "value"), rows_, note)


def parity_table(audit: Path, folder: Path) -> Results:
    """The run's vectors against the offline audit's of the same pairs, both in float32."""
    mine = VectorStore.open(audit / "vectors")
    auditor = DataAuditor(
        embedded_gguf(),
        layers=[LAYER],
        dtype="float32",
        encoding=Encoding(max_length=MAX_LENGTH),
        reading=Reading(format="trl", on_bad_row="skip"),
    )
    theirs = auditor.audit(rows(STEPS * BATCH), folder / "offline").store.select(mine.pair_ids)
    pair = torch.nn.functional.cosine_similarity(mine.layer(LAYER).double(), theirs.layer(LAYER).double(), dim=-1)
    context = torch.nn.functional.cosine_similarity(
        mine.context(LAYER).double(), theirs.context(LAYER).double(), dim=-1
    )
    return Results(
        "The same vectors as the offline audit's",
        ("", "least cosine", "median"),
        (
            ("pair vectors", f"{float(pair.min()):.5f}", f"{float(pair.median()):.5f}"),
            ("context vectors", f"{float(context.min()):.5f}", f"{float(context.median()):.5f}"),
        ),
        f"{len(mine.pair_ids)} pairs (TRL drops those whose prompt alone fills {MAX_LENGTH} tokens, and goes over the "
        f"others again); both in float32, stored as float16. Required: at least 0.99999.",
    )
