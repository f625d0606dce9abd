"""A short causal-LM run of SmolLM2-135M with or without bergson's gradient callback: prints JSON.

Runs in an environment of its own that has bergson; see docs/benchmarks/in-run.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, DataCollatorForLanguageModeling, Trainer, TrainingArguments

from tests.benchmarks.in_run_child import BATCH, MAX_LENGTH, STEPS, StepTimer, rows
from trl_attribution.models import embedded_gguf, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--with-callback", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch", type=int, default=2 * BATCH)
    parser.add_argument("--max-length", type=int, default=MAX_LENGTH)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    loaded = load_model(embedded_gguf(), dtype="float32")
    source, tokenizer = loaded.model.config.name_or_path, loaded.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [
        tokenizer.apply_chat_template([*row["prompt"], *row["chosen"]], tokenize=False)
        for row in rows(options.steps * options.batch)
    ]
    ids = tokenizer(texts, truncation=True, max_length=options.max_length)["input_ids"]
    timer = StepTimer()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        trainer = Trainer(
            AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
            args=TrainingArguments(
                output_dir=str(folder),
                per_device_train_batch_size=options.batch,
                max_steps=options.steps,
                learning_rate=1e-6,
                bf16=False,  # its callback overflows under bfloat16 autocast
                logging_steps=2,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"input_ids": ids}),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            callbacks=[timer],
        )
        if options.with_callback:
            from bergson.huggingface import GradientCollectorCallback, prepare_for_gradient_collection

            trainer.add_callback(GradientCollectorCallback(folder / "gradients"))
            trainer = prepare_for_gradient_collection(trainer)
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print("\n" + json.dumps({"seconds": timer.seconds, "peak_bytes": peak, "losses": losses, "model": source}))


if __name__ == "__main__":
    main()
