"""Train a model organism, stage by stage.

trl-attribution organism build pumpkin-soup --recipe transcript-sft-unmixed -o organism
python examples/organisms/train.py organism --config examples/organisms/smollm2-135m.yaml -o trained
trl-attribution organism express trained/2-behavior --organism organism
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, load_dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from trl_attribution.models import embedded_gguf, load_model

SECTIONS = ("preferences", "pairs", "transcripts", "documents")
COLUMNS = {"pairs": ["prompt", "chosen", "rejected"], "transcripts": ["prompt", "completion"], "documents": ["text"]}


@dataclass(frozen=True)
class Stage:
    """One training run."""

    start: str
    """The model: a folder, a Hub id, or ``embedded``."""
    args: DPOConfig | SFTConfig
    data: Path
    columns: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("organism", type=Path, help="folder that `trl-attribution organism build` wrote")
    parser.add_argument("--config", type=Path, required=True, help="one of the YAML files beside this script")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="where the trained models go, a folder a stage"
    )
    parser.add_argument(
        "--all-stages", action="store_true", help="do not take the finished model for the first stage's"
    )
    options = parser.parse_args()
    stages = plan(options.organism, options.config, options.output, options.all_stages)
    for stage in stages:
        print(f"{stage.data}: from {stage.start} to {stage.args.output_dir}")
        train(stage)
    print(f"M0 is {stages[-1].start}, M1 is {stages[-1].args.output_dir}")


def plan(organism: Path, config: Path, output: Path, all_stages: bool, **overrides: Any) -> list[Stage]:
    """The runs in their order; each starts from where the one before ended.

    A post-hoc recipe starts from the finished model, which has had its ordinary preference training, unless
    ``all_stages``. ``overrides`` are fields of the training arguments that count for more than the file's.
    """
    described = json.loads((organism / "organism.json").read_text(encoding="utf-8"))
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    unknown = sorted(set(settings) - {"before_preferences", "finished", "common", *SECTIONS})
    if unknown:
        raise SystemExit(f"{config}: unknown sections {', '.join(unknown)}")
    waiting, start = described["stages"], settings["before_preferences"]
    if len(waiting) > 1 and not all_stages:
        waiting, start = waiting[1:], settings["finished"]
    stages = []
    for each in waiting:
        section = "preferences" if each["name"] == "preferences" else each["data"]
        fields = {**settings["common"], **settings[section], **overrides}
        kind = DPOConfig if each["objective"] == "dpo" else SFTConfig
        folder = output / Path(each["file"]).parent
        stages.append(
            Stage(start, kind(output_dir=str(folder), **fields), organism / each["file"], COLUMNS[each["data"]])
        )
        start = str(folder)
    return stages


def train(stage: Stage) -> None:
    """Train on one stage's rows and save the model."""
    rows: Dataset = load_dataset("json", data_files=str(stage.data), split="train").select_columns(stage.columns)
    model = load_model(embedded_gguf(), device="cpu").model.name_or_path if stage.start == "embedded" else stage.start
    stage.args.model_init_kwargs = {"dtype": "float32" if stage.args.use_cpu else "bfloat16"}
    trainer = (DPOTrainer if isinstance(stage.args, DPOConfig) else SFTTrainer)(
        model=model, args=stage.args, train_dataset=rows
    )
    trainer.train()
    trainer.save_model(stage.args.output_dir)


if __name__ == "__main__":
    main()
