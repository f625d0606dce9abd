"""Does what a scan predicts from the pairs come true? SmolLM2 is trained on small datasets, and asked before and after."""

from __future__ import annotations

import functools
import json
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks.pages import Results, write_page
from tests.benchmarks.prediction_data import PROMPTS, Case, cases, without_labels
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.behaviors import SamplingConfig
from trl_attribution.behaviors.responses import Responses, kept_responses, read_behaviors
from trl_attribution.discovery import ScanResult, changes_of
from trl_attribution.discovery.findings import Agreement, Prediction, TraitChange
from trl_attribution.discovery.prediction import agreement
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.utils.atomic import write_json, write_lines

LAYER = 20
NULL = "mix, labels shuffled"
SAMPLING = SamplingConfig(n=1, max_new_tokens=40, batch_size=48)
DPO: Mapping[str, Any] = dict(
    learning_rate=5e-4,
    lr_scheduler_type="constant_with_warmup",
    warmup_steps=3,
    num_train_epochs=1,
    per_device_train_batch_size=8,
    gradient_checkpointing=False,
    beta=0.1,
    max_length=256,
    use_cpu=True,
    bf16=False,
    seed=0,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    logging_strategy="no",
)
LORA: Mapping[str, Any] = dict(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"])
SHOWN = 5
_FAILED = 0.05
"""A prediction of less is not shown among the largest."""


@dataclass(frozen=True)
class Trained:
    """What was predicted of one dataset, and what training on it did."""

    name: str
    pairs: int
    prediction: Prediction


def run(output: Path, command: str, cache: Path, data: Path, console: Console) -> None:
    folder = cache / "prediction"
    model = functools.cache(lambda: load_model(embedded_gguf(), dtype="bfloat16"))
    found = []
    for name, build in {**cases(data, model), NULL: functools.partial(_null, folder)}.items():
        console.print(f"{name}: training and sampling, or what is kept")
        place = folder / name.replace(", ", "-").replace(" ", "-")
        respond(place, build, model)
        found.append(checked(name, place, model()))
        for table in tables_of(found):
            table.show(console)
    write_page(output / "prediction.md", "Prediction", lead(), command, tables_of(found))


def respond(place: Path, build: Callable[[], Case], model: Callable[[], LoadedModel]) -> None:
    """Sample M0, train, and sample M1, as far as ``place`` does not hold it; each part is kept when it is done."""
    rows, prompts, before, after = (
        place / name for name in ("data.jsonl", "prompts.jsonl", "before.json", "after.json")
    )
    if not prompts.exists():
        case = build()
        place.mkdir(parents=True, exist_ok=True)
        write_lines(rows, case.rows)
        write_lines(prompts, [{"prompt": prompt} for prompt in case.prompts])
    behaviors = read_behaviors(prompts)
    if (
        (same := place.parent / "mix" / "before.json") != before
        and place.name.startswith("mix")
        and not before.exists()
    ):
        shutil.copy(same, before)  # the same prompts
    kept_responses(before, behaviors, model(), SAMPLING)
    if not after.exists():
        start, busy = time.perf_counter(), time.process_time()
        kept_responses(after, behaviors, trained(_lines(rows), place), SAMPLING)
        taken = {"seconds": time.perf_counter() - start, "processor": time.process_time() - busy}
        write_json(place / "taken.json", taken)


def trained(rows: Sequence[Mapping[str, Any]], place: Path) -> LoadedModel:
    """M0 after one epoch of DPO with an adapter, merged."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    base = load_model(embedded_gguf(), dtype="bfloat16")
    base.model.set_attn_implementation("eager")  # the backward pass of SDPA is slow on a CPU
    bare = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = DPOTrainer(
            base.model,
            args=DPOConfig(output_dir=str(place / "trainer"), **DPO),
            train_dataset=Dataset.from_list(bare),
            processing_class=base.tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        )
        trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().eval()
    return replace(base, model=model, name="M1")


def checked(name: str, place: Path, model: LoadedModel) -> Trained:
    """A scan of the dataset, and its prediction beside what the responses show."""
    behaviors = read_behaviors(place / "prompts.jsonl")
    changes = changes_of(behaviors, Responses.load(place / "before.json"), Responses.load(place / "after.json"))
    rows = _lines(place / "data.jsonl")
    found: ScanResult = DataAuditor(model, layers=[LAYER]).scan(
        rows, place / "audit", changes=changes, unnamed=False, source_column="source"
    )
    assert found.prediction is not None
    return Trained(name, found.pairs, found.prediction)


def tables_of(found: Sequence[Trained]) -> list[Results]:
    return [agreement_table(found), crossed_table(found), largest_table(found)]


def _null(folder: Path) -> Case:
    return without_labels(
        Case(_lines(folder / "mix" / "data.jsonl"), [one["prompt"] for one in _lines(folder / "mix" / "prompts.jsonl")])
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
