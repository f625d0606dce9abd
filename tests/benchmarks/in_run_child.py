"""One short DPO run of SmolLM2-135M in a process of its own, with or without the callback: prints JSON."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from tests.benchmarks.speed_ways import DATA
from trl_attribution.callbacks import AttributionCallback
from trl_attribution.models import embedded_gguf, load_model
from trl_attribution.pairs import PairReader, Reading

STEPS, BATCH, MAX_LENGTH, LAYER = 6, 2, 128, 20


class StepTimer(TrainerCallback):
    """Seconds of each optimizer step, and of all that comes after it until the next."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


def rows(count: int) -> list[dict[str, Any]]:
    """The first pairs of the HH-RLHF harmless test split, as conversations."""
    pairs = islice(PairReader(DATA, Reading(on_bad_row="skip")), count)
    return [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]


def run(*, with_callback: bool, adapter: bool, steps: int, batch: int, max_length: int, folder: Path) -> dict[str, Any]:
    trainer_arguments: dict[str, Any] = {}
    if adapter:
        from peft import LoraConfig

        trainer_arguments["peft_config"] = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    # The converted copy of the GGUF file, which DPOTrainer can load (its reference model too).
    source = load_model(embedded_gguf(), dtype="float32").model.config.name_or_path
    timer = StepTimer()
    trainer = DPOTrainer(
        source,
        args=DPOConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=batch,
            max_steps=steps,
            max_length=max_length,
            bf16=False,
            learning_rate=1e-6,
            logging_steps=2,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows(steps * batch)),
        callbacks=[timer],
        **trainer_arguments,
    )
    if with_callback:
        trainer.add_callback(AttributionCallback(trainer, layers=[LAYER], drift_pairs=0, output_dir=folder / "audit"))
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": timer.seconds, "peak_bytes": peak, "losses": losses, "model": source}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--with-callback", action="store_true")
    parser.add_argument("--adapter", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--max-length", type=int, default=MAX_LENGTH)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        found = run(
            with_callback=options.with_callback,
            adapter=options.adapter,
            steps=options.steps,
            batch=options.batch,
            max_length=options.max_length,
            folder=options.folder or Path(scratch),
        )
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
