"""One cell of a validation with TRL: DPO on a JSONL of pairs, for exactly so many steps, at OLMo 2's own settings.

    accelerate launch --config_file ../accelerate_configs/zero3.yaml --num_processes 8 train_dpo.py --model M0 \
        --dataset pairs.jsonl --output model --seed 0 --steps 2955

`trl-attribution validate` fills in what is in braces in the plan. The batch size is that over all processes. Pairs
count in the loss by a column `weight`, where there is one (the intervention `weight`).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from trl_attribution.evidence.validation.training import alike
from trl_attribution.manifest.config import WEIGHT_COLUMN
from trl_attribution.manifest.weighted_loss import weigh_by_column


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=128, help="pairs in a step, over all processes")
    parser.add_argument("--per-device", type=int, default=1, help="pairs in a pass")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--beta", type=float, default=5.0)
    parser.add_argument("--loss", default="sigmoid_norm", help="open-instruct's dpo_norm: log-probabilities by token")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--cpu", action="store_true")
    return parser.parse_args()


def config_of(given: argparse.Namespace) -> DPOConfig:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    accumulated, rest = divmod(given.batch_size, given.per_device * processes)
    if rest:
        raise SystemExit(
            f"--batch-size {given.batch_size} is no multiple of {given.per_device} x {processes} processes"
        )
    return DPOConfig(
        output_dir=f"{given.output}-run",
        max_steps=given.steps,
        seed=given.seed,
        per_device_train_batch_size=given.per_device,
        gradient_accumulation_steps=accumulated,
        learning_rate=given.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(0.1 * given.steps),
        beta=given.beta,
        loss_type=[given.loss],
        max_length=given.max_length,
        gradient_checkpointing=not given.cpu,
        bf16=not given.cpu,
        use_cpu=given.cpu,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
    )


def main() -> None:
    given = arguments()
    config = config_of(given)  # first: under ZeRO-3 it is what makes models load in pieces
    rows = [json.loads(line) for line in given.dataset.read_text(encoding="utf-8").splitlines()]
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(given.model, dtype="float32" if given.cpu else "bfloat16"),
        args=config,
        train_dataset=Dataset.from_list(alike(rows)),
        processing_class=AutoTokenizer.from_pretrained(given.model),
    )
    if WEIGHT_COLUMN in trainer.train_dataset.column_names:
        weigh_by_column(trainer)
    trainer.train()
    trainer.save_model(given.output)


if __name__ == "__main__":
    main()
