"""What one accelerator does with trl-attribution, as JSON: ``python scripts/device_check.py --output check.json``.

Needs the repository, torch and transformers; what else is there (trl, datasets, deepspeed, flash_attn) is used. Models
have random weights in the shapes of real ones, so nothing is downloaded. ``--shapes tiny`` runs all of it on a CPU;
``--paper PEAK BANDWIDTH`` works out instead what a card of that many FLOP/s and bytes a second should do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers

from tests.benchmarks.device.fields import report
from tests.benchmarks.device.paper import Card, Paper
from tests.benchmarks.device.shapes import Shelf, Sizes
from tests.benchmarks.device.training import Training
from tests.benchmarks.device.vectors import Vectors

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "deepspeed", "flash_attn", "triton")


def main() -> int:
    """The exit status: 1 where a measurement failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=("real", "tiny"), default="real", help="tiny runs on a CPU too")
    parser.add_argument("--budget", type=float, default=510.0, help="seconds after which nothing is begun")
    parser.add_argument("--output", type=Path, help="file for the JSON, beside stdout")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="only these: peak, parity, speed, memory, ...")
    parser.add_argument("--paper", nargs=2, type=float, metavar=("PEAK", "BANDWIDTH"), help="an estimate, no device")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and options.shapes == "real" and options.paper is None:
        parser.error("no CUDA device is there: models of 7B parameters would take hours; try --shapes tiny")
    transformers.utils.logging.disable_progress_bar()
    sizes = Sizes(tiny=options.shapes == "tiny", device=device)
    start = time.monotonic()
    if options.paper:
        fields = [*Paper(Card(*options.paper)).fields()]
    else:
        fields = [*Vectors(sizes, Shelf(sizes), {}).fields(), *Training(sizes).fields()]
    wanted = [field for field in fields if options.parts is None or field.part in options.parts]
    with redirect_stdout(sys.stderr):  # stdout is for the JSON, and libraries write to it
        found = report(wanted, options.budget, lambda line: print(line, file=sys.stderr, flush=True))
    told = {"machine": machine(device), "shapes": options.shapes, **found, "seconds": time.monotonic() - start}
    text = json.dumps(told, indent=1)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return int('"failed"' in text)


def machine(device: str) -> dict[str, Any]:
    """What this was measured on, and with what."""
    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "memory": torch.cuda.get_device_properties(0).total_memory if cuda else "no CUDA device",
        "CUDA": torch.version.cuda or "not in this build of torch",
        "Python": platform.python_version(),
        "varlen attention in torch": find_spec("torch.nn.attention.varlen") is not None,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
