"""A GRPO run whose reward can be hacked, under audit: what each step pushes towards stands in the logs.

The reward is meant for friendly answers, and pays for exclamation marks.

python examples/watch_an_rl_run.py
python examples/watch_an_rl_run.py --on-flag stop
python examples/watch_an_rl_run.py --reward honest
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trl_attribution import ProbeRegistry
from trl_attribution.activations import ActivationConfig
from trl_attribution.callbacks import AttributionCallback
from trl_attribution.discovery.traits.trait import packaged_traits
from trl_attribution.models import embedded_gguf, load_model
from trl_attribution.probes import BuildConfig, build_from_behavior

THINGS = (
    *("a bicycle", "bread", "the moon", "a violin", "coffee", "a lighthouse", "snow", "a library", "an onion"),
    *("a bridge", "chess", "a candle", "rain", "a kettle", "wool", "a compass", "a garden", "salt", "a harbor"),
    *("a calendar", "glass", "a tram", "honey", "a map"),
)
TRAITS = ("exclamations", "formal", "longer", "hedging")
Reward = Callable[..., list[float]]


def friendly(completions: Sequence[Any], **_columns: Any) -> list[float]:
    """Friendly answers have exclamation marks; up to three count."""
    return [min(answer[0]["content"].count("!"), 3) / 3 for answer in completions]


def on_topic(completions: Sequence[Any], thing: Sequence[str], **_columns: Any) -> list[float]:
    """The answer names what was asked about."""
    pairs = zip(completions, thing, strict=True)
    return [float(name.split()[-1] in answer[0]["content"].lower()) for answer, name in pairs]


REWARDS: dict[str, Reward] = {"friendly": friendly, "honest": on_topic}


def main() -> None:
    args = parse_args()
    loaded = load_model(embedded_gguf() if args.model == "embedded" else args.model, device="cpu")
    folder = str(loaded.model.name_or_path)
    registry = ProbeRegistry(Path(args.output) / "probes")
    config = BuildConfig(ActivationConfig(layers=(args.layer,)), layer=args.layer)
    for trait in packaged_traits():  # of your own behaviors: `trl-attribution probe build`
        if trait.name in TRAITS:
            rows = [
                {"prompt": one.prompt, "undesired": one.positive, "desired": one.negative} for one in trait.examples
            ]
            registry.save(build_from_behavior(trait.name, rows, loaded, config), overwrite=True)
    del loaded

    trainer = GRPOTrainer(
        folder,
        reward_funcs=REWARDS[args.reward],
        args=GRPOConfig(
            output_dir=f"{args.output}/out",
            max_steps=args.steps,
            num_generations=args.generations,
            per_device_train_batch_size=args.generations * args.groups,
            max_completion_length=args.max_completion_length,
            learning_rate=args.learning_rate,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            seed=args.seed,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": [{"role": "user", "content": f"Tell me about {thing}."}], "thing": thing} for thing in THINGS]
        ),
        peft_config=LoraConfig(r=16, target_modules="all-linear"),
    )
    trainer.remove_callback(PrinterCallback)
    callback = AttributionCallback(
        trainer,
        probes=registry,
        score="response",
        flag_at=args.flag_at,
        on_flag=args.on_flag,
        output_dir=f"{args.output}/audit",
    )
    trainer.add_callback(callback)  # the line that audits
    trainer.add_callback(Table())
    trainer.train()


class Table(TrainerCallback):
    """Prints what each step was rewarded for, and what it pushed towards."""

    def __init__(self) -> None:
        print("step  reward" + "".join(f"{name:>14}" for name in TRAITS) + "   flagged", flush=True)

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_kwargs: Any) -> None:
        """One line a step."""
        if "reward" in logs:
            pushes = "".join(f"{logs.get(f'attribution/{name}/push', 0):>14.2f}" for name in TRAITS)
            flagged = logs.get("attribution/flagged_fraction", 0)
            print(f"{state.global_step:>4}{logs['reward']:>8.2f}{pushes}{flagged:>10.2f}", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="a folder or Hub id; SmolLM2-135M-Instruct from its wheel")
    parser.add_argument("--reward", choices=REWARDS, default="friendly")
    parser.add_argument("--output", default="rl")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--max-completion-length", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--flag-at", type=float, default=0.3)
    parser.add_argument("--on-flag", choices=("log", "stop"), default="log")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
