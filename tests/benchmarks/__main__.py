"""``python -m tests.benchmarks [NAME ...]``: what ``make bench`` runs; writes docs/benchmarks/."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from rich.console import Console

from tests.benchmarks import (
    baselines,
    control_sources,
    decisions,
    in_run,
    judge,
    lottery,
    many_pairs,
    oracle,
    organisms,
    prediction,
    quality,
    quantized,
    reduction,
    sae,
    scan,
    sft,
    speed,
    steering,
    traits,
    triage,
    validation,
    witness,
)
from tests.benchmarks.pages import write_page

NAMES = (
    "speed",
    "quality",
    "scoring",
    "in-run",
    "organisms",
    "steering",
    "gate",
    "baselines",
    "baseline-effects",
    "judge",
    "decisions",
    "control-sources",
    "triage",
    "quantized",
    "witness",
    "scan",
    "traits",
    "prediction",
    "sft",
)
"""Those that run when none is named."""
BY_HAND = ("validation", "sae", "oracle", "many-pairs", "lottery")
"""Those that need something to be made first, or more time and space than all others together."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; all of them by default")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"), help="folder of the pages")
    parser.add_argument("--pairs", type=int, default=200, help="speed: pairs of HH-RLHF")
    parser.add_argument("--rounds", type=int, default=4, help="speed: rounds that the pairs are divided into")
    parser.add_argument("--layer", type=int, default=20, help="speed: layer of 30")
    parser.add_argument("--seeds", type=int, default=3, help="quality, organisms, scan, lottery: seeds 0, 1, ...")
    parser.add_argument("--share", type=float, default=1.0, help="quality: share of the default organism's pairs")
    parser.add_argument("--organism-pairs", type=int, default=400, help="organisms: pairs of each dataset")
    parser.add_argument(
        "--samples", type=int, default=200, help="organisms, sft: pairs that the recipes are built from"
    )
    parser.add_argument("--prompts", type=int, default=16, help="steering: prompts that M0 is steered on")
    parser.add_argument("--new-tokens", type=int, default=48, help="organisms, steering: tokens of a sampled response")
    parser.add_argument("--behavior-prompts", type=int, default=48, help="organisms, steering: prompts of a probe")
    parser.add_argument("--runs", type=int, default=5, help="in-run: pairs of runs, with and without the callback")
    parser.add_argument("--lora", action="store_true", help="in-run: LoRA as well as full fine-tuning")
    parser.add_argument("--bergson", metavar="PYTHON", help="in-run, baselines: bergson too, by this interpreter")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(".decisions"),
        help="decisions, control-sources, witness, scan, traits, prediction, sft, lottery: folder of what is kept",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/data"),
        help="decisions, control-sources, witness, scan, prediction, sae, many-pairs: folder of xstest/ and HH-RLHF",
    )
    parser.add_argument(
        "--draws",
        type=int,
        default=decisions.DRAWS,
        help="decisions, control-sources, witness: how many",
    )
    parser.add_argument("--other", type=Path, metavar="GGUF", help="decisions, traits: gemma-3-270m as a second M0")
    parser.add_argument("--m0", type=Path, metavar="FOLDER", help="quality: a second M0, such as one that refuses")
    parser.add_argument(
        "--validation", type=Path, metavar="FOLDER", help="validation: what make_smollm2.py made, validated"
    )
    parser.add_argument("--data-seed", type=int, default=0, help="validation: the seed that make_smollm2.py was given")
    parser.add_argument("--many", type=int, default=1_000_000, help="many-pairs: stored pairs")
    parser.add_argument("--ids", type=int, default=10_000_000, help="many-pairs: ids of the store's index")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="many-pairs: whose reading to compare with")
    parser.add_argument("--sae", type=Path, metavar="FOLDER", help="sae, lottery: what train_topk_sae.py wrote")
    parser.add_argument("--oracle", type=Path, metavar="FOLDER", help="oracle: what train_oracle.py wrote")
    parser.add_argument(
        "--minutes", type=float, help="lottery: begin no organism after so many; by default all are made"
    )
    parser.add_argument("--sentence", metavar="FOLDER", help="baselines: a sentence model")
    parser.add_argument("--threads", type=int, help="threads of torch; by default as many as torch takes")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - {*NAMES, *BY_HAND})
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; choose from {', '.join((*NAMES, *BY_HAND))}")
    if "sae" in options.names and options.sae is None:
        parser.error("sae needs --sae FOLDER: train one with examples/sae/train_topk_sae.py")
    if "oracle" in options.names and options.oracle is None:
        parser.error("oracle needs --oracle FOLDER: train one with examples/oracle/train_oracle.py")
    if "validation" in options.names and options.validation is None:
        parser.error("validation needs --validation FOLDER: it takes hours, and is run by trl-attribution validate")
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    for name in options.names or NAMES:
        console.rule(name)
        run(name, options, console)


def run(name: str, options: argparse.Namespace, console: Console) -> None:
    command = command_for(name)
    if name == "speed":
        speed.run(options.output, command, options.pairs, options.rounds, options.layer, console)
    elif name == "many-pairs":
        many_pairs.run(options.output, command, options.many, options.ids, options.against, options.data, console)
    elif name == "quality":
        quality.run(options.output, command, tuple(range(options.seeds)), options.share, options.m0, console)
    elif name == "validation":
        validation.run(options.output, command, options.validation, options.data_seed, console)
    elif name == "sae":
        sae.run(options.output, command, options.sae, options.data, console)
    elif name == "oracle":
        oracle.run(options.output, command, options.oracle, console)
    elif name == "lottery":
        lottery.run(options.output, command, options.cache, options.sae, options.seeds, options.minutes, console)
    elif name == "organisms":
        size = organisms.Size(options.organism_pairs, options.samples, options.new_tokens, options.behavior_prompts)
        organisms.run(options.output, command, tuple(range(options.seeds)), size, console)
    elif name == "baselines":
        chosen = baselines.BaselineOptions(
            tuple(range(options.seeds)), options.share, options.sentence, options.bergson
        )
        baselines.run(options.output, command, chosen, console)
    elif name == "decisions":
        decisions.run(options.output, command, options.cache, options.data, console, options.draws, options.other)
    elif name == "triage":
        triage.run(options.output, command, options.cache, options.data, console, options.draws)
    elif name == "quantized":
        quantized.run(options.output, command, options.data, console)
    elif name == "control-sources":
        control_sources.run(options.output, command, options.cache, options.data, console, options.draws)
    elif name == "witness":
        witness.run(options.output, command, options.cache, options.data, console, options.draws)
    elif name == "scan":
        scan.run(options.output, command, options.cache, options.data, options.seeds, console)
    elif name == "traits":
        traits.run(options.output, command, options.cache, options.data, options.other, console)
    elif name == "sft":
        sft.run(options.output, command, options.cache, options.samples, console)
    elif name == "prediction":
        prediction.run(options.output, command, options.cache, options.data, console)
    elif name == "baseline-effects":
        reduction.run(options.output, command, tuple(range(options.seeds)), console)
    elif name == "judge":
        judge.run(options.output, command, console)
    elif name == "gate":
        gate(options.output, command, console)
    elif name == "steering":
        steering.run(options.output, command, options.prompts, options.new_tokens, options.behavior_prompts, console)
    elif name == "in-run":
        in_run.run(options.output, command, options.runs, options.lora, options.bergson, console)
    else:
        scoring(options.output, command, console)


def command_for(name: str) -> str:
    """The command that makes this page again: that of the Makefile, unless options were given."""
    options = [argument for argument in sys.argv[1:] if argument not in {*NAMES, *BY_HAND}]
    folders = ("--sentence", "--cache", "--m0", "--validation", "--data", "--sae", "--oracle")
    for option, shown in (
        ("--bergson", "PYTHON"),
        ("--other", "GGUF"),
        ("--against", "CHECKOUT"),
        *((name, "FOLDER") for name in folders),
    ):
        if option in options:  # where it lies on this machine is nobody else's business
            options[options.index(option) + 1] = shown
    return f"make bench ARGS={name}" if not options else f"python -m tests.benchmarks {name} {' '.join(options)}"


def scoring(output: Path, command: str, console: Console) -> None:
    """Memory and time of scoring: processes of its own measure it, so that nothing here counts."""
    table = printed("bench_scoring", console)
    lead = f"Scoring, flagging and writing a store on disk, each size in a process of its own.\n\n{table}"
    write_page(output / "scoring.md", "Scoring", lead, command, [])


def gate(output: Path, command: str, console: Console) -> None:
    """What the gate takes beside computing vectors: the real command in processes of its own."""
    lead = (
        "`trl-attribution gate` on a dataset in a git repository, from the start of Python to the verdict, with all "
        f"vectors stored: what a gate takes beside computing those of new pairs.\n\n{printed('bench_gate', console)}"
    )
    write_page(output / "gate.md", "Gate", lead, command, [])


def printed(module: str, console: Console) -> str:
    """The Markdown that a benchmark prints when it runs by itself."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    console.print(done.stdout, markup=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
