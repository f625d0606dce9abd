"""Make what tiny.yaml names: python examples/validation/make_tiny.py FOLDER [SEED]."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tiny_model import TinyM0Config, train_tiny_m0
from tiny_organism import TinyConfig, build_tiny_organism


def make(folder: Path, seed: int = 0) -> None:
    build_tiny_organism(TinyConfig(seed=seed)).write(folder)
    train_tiny_m0(folder / "m0", TinyM0Config(seed=seed))
    shutil.copy(Path(__file__).with_name("tiny.yaml"), folder / "plan.yaml")


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(f"trl-attribution validate {sys.argv[1]}/plan.yaml --output {sys.argv[1]}/validation")
