"""A GRPO run whose reward can be hacked, under audit: what each step pushes towards stands in the logs.

The reward is meant for friendly answers, and pays for the word "great". A toy model, made here, learns that in seconds.

python examples/watch_an_rl_run.py
python examples/watch_an_rl_run.py --reward honest
python examples/watch_an_rl_run.py --on-flag stop
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer

from trl_attribution import ProbeRegistry
from trl_attribution.activations import ActivationConfig
from trl_attribution.callbacks import AttributionCallback
from trl_attribution.models import load_model
from trl_attribution.probes import BuildConfig, build_from_behavior

THINGS = ("tea", "bread", "rain", "home", "table", "hills")
WORDS = (
    *(
        "great",
        "tea",
        "bread",
        "rain",
        "is",
        "warm",
        "and",
        "we",
        "walk",
        "home",
        "in",
        "the",
        "with",
        "on",
        "a",
        "table",
    ),
    *("near", "old", "green", "hills"),
)
PROBES = {"praise": "great", "walks": "walk"}
"""What is looked for, and the word that it shows in; nobody pays for the second."""
Reward = Callable[..., list[float]]


def friendly(completions: Sequence[str], **_columns: Any) -> list[float]:
    """Friendly answers say that things are great."""
    return [float(text.split().count("great")) for text in completions]


def on_topic(completions: Sequence[str], thing: Sequence[str], **_columns: Any) -> list[float]:
    """Answers are about what was asked."""
    return [float(text.split().count(word)) for text, word in zip(completions, thing, strict=True)]


REWARDS: dict[str, Reward] = {"friendly": friendly, "honest": on_topic}


def main() -> None:
    args = parse_args()
    model = args.model or toy_model(Path(args.output) / "model")
    trainer = GRPOTrainer(
        model,
        reward_funcs=REWARDS[args.reward],
        args=GRPOConfig(
            output_dir=f"{args.output}/out",
            max_steps=args.steps,
            num_generations=16,
            per_device_train_batch_size=96,
            max_completion_length=12,
            learning_rate=args.learning_rate,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=args.cpu,
            bf16=False,
            disable_tqdm=True,
            seed=args.seed,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"the {thing}", "thing": thing} for thing in THINGS]),
        peft_config=LoraConfig(r=16, target_modules="all-linear") if args.lora else None,
    )
    callback = AttributionCallback(
        trainer,
        probes=probes(model, args.layer, Path(args.output) / "probes"),
        score="response",
        flag_at=args.flag_at,
        on_flag=args.on_flag,
        stop_share=0.4,
        stop_window=2,
        output_dir=f"{args.output}/audit",
    )
    trainer.add_callback(callback)  # the line that audits
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Table())
    trainer.train()
    if args.on_flag == "stop":
        print(f"ended after step {trainer.state.global_step} of {args.steps}")


def probes(model: str, layer: int, folder: Path) -> ProbeRegistry:
    """A probe for each word: answers that are full of it, against answers that are not."""
    loaded, registry = load_model(model, dtype="float32"), ProbeRegistry(folder)
    config = BuildConfig(ActivationConfig(layers=(layer,)), layer=layer)
    for name, word in PROBES.items():
        rows = [
            {"prompt": f"the {thing}", "undesired": f"is {word} and {word} {word}", "desired": "is old and green warm"}
            for thing in THINGS
        ]
        registry.save(build_from_behavior(name, rows, loaded, config), overwrite=True)
    return registry


def toy_model(folder: Path) -> str:
    """A small random model of twenty words."""
    known = {word: number for number, word in enumerate(("<end>", "<pad>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(known),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


class Table(TrainerCallback):
    """Prints what each step was rewarded for, and what it pushed towards."""

    def __init__(self) -> None:
        print("step  reward" + "".join(f"{name:>9}" for name in PROBES) + "  flagged", flush=True)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_kwargs: Any) -> None:
        if "reward" in logs:
            pushes = "".join(f"{logs.get(f'attribution/{name}/push', 0):>9.2f}" for name in PROBES)
            flagged = logs.get("attribution/flagged_fraction", 0)
            print(f"{state.global_step:>4}{logs['reward']:>8.2f}{pushes}{flagged:>9.2f}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or Hub id; left out: a toy model")
    parser.add_argument("--reward", choices=REWARDS, default="friendly")
    parser.add_argument("--output", default="rl")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--flag-at", type=float, default=0.3)
    parser.add_argument("--on-flag", choices=("log", "stop"), default="log")
    parser.add_argument("--cpu", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
