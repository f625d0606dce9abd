"""Does what a scan predicts from the pairs come true? SmolLM2 trained on small datasets, asked before and after."""

from __future__ import annotations

import functools
import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tests.benchmarks.pages import Results, write_page
from tests.benchmarks.prediction_data import PROMPTS, Case, mix, others, without_labels
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.behaviors import SamplingConfig
from trl_attribution.behaviors.responses import Responses, kept_responses, read_behaviors
from trl_attribution.discovery import ScanResult, changes_of
from trl_attribution.discovery.findings import Prediction, TraitChange
from trl_attribution.discovery.prediction import agreement, agreement_of
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.pairs import Reading
from trl_attribution.report.prediction import largest
from trl_attribution.utils.atomic import write_json, write_lines
from trl_attribution.utils.text import counted

LAYER = 20
NULL = "mix, labels shuffled"
SAMPLING = SamplingConfig(n=1, max_new_tokens=32, batch_size=64)
DPO: Mapping[str, Any] = dict(
    learning_rate=5e-4,
    lr_scheduler_type="constant_with_warmup",
    warmup_steps=3,
    num_train_epochs=1,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
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
LEAST = 10
"""Pairs of a topic."""
SHOWN = 5


@dataclass(frozen=True)
class Trained:
    """What was predicted of one dataset, and what training on it did."""

    name: str
    pairs: int
    prediction: Prediction

    @property
    def overall(self) -> list[TraitChange]:
        """Those over all topics that were measured."""
        return [one for one in self._measured if one.topic is None]

    @property
    def by_topic(self) -> list[TraitChange]:
        """Those of single topics that were measured."""
        return [one for one in self._measured if one.topic is not None]

    @property
    def _measured(self) -> list[TraitChange]:
        return [one for one in self.prediction.changes if one.measured is not None]


def run(output: Path, command: str, cache: Path, data: Path, console: Console) -> None:
    folder = cache / "prediction"
    model = functools.cache(lambda: load_model(embedded_gguf(), dtype="bfloat16"))
    cases: dict[str, Callable[[], Case]] = {
        "mix": lambda: mix(model()),
        NULL: functools.partial(_null, folder),
        **others(data),
    }
    found: list[Trained] = []
    for name, build in cases.items():
        console.print(f"{name}: training and sampling, or what is kept")
        place = folder / name.replace(", ", "-").replace(" ", "-")
        respond(place, build, model)
        found.append(checked(name, place, model()))
        # What is there so far: the whole takes long on a small machine.
        write_page(output / "prediction.md", "Prediction", lead(len(cases) - len(found)), command, tables_of(found))
    for table in tables_of(found):
        table.show(console)


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
    known = place.parent / "mix"
    if known != place and not before.exists() and _same(known / prompts.name, prompts):
        shutil.copy(known / before.name, before)  # M0 was asked already
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
    # M0 gave some prompts of the mix the same answer twice: training learns nothing from those.
    auditor = DataAuditor(model, layers=[LAYER], reading=Reading(on_bad_row="skip"))
    found: ScanResult = auditor.scan(rows, place / "audit", changes=changes, unnamed=False, min_pairs=LEAST)
    assert found.prediction is not None
    return Trained(name, found.pairs, found.prediction)


def tables_of(found: Sequence[Trained]) -> list[Results]:
    return [agreement_table(found), crossed_table(found), largest_table(found)]


def agreement_table(found: Sequence[Trained]) -> Results:
    """How well predicted and measured agree, dataset by dataset and over all that have labels."""
    rows = []
    for one in found:
        rows += [
            (one.name, str(one.pairs), what, *_agreement(changes), _share(reachable(changes)))
            for what, changes in (("traits", one.overall), ("topic x trait", one.by_topic))
        ]
    labeled = [one for one in found if one.name != NULL]
    for what, parts in (
        ("traits", [one.overall for one in labeled]),
        ("topic x trait", [one.by_topic for one in labeled]),
    ):
        rows.append(("all with labels", "", what, *_agreement([each for part in parts for each in part]), ""))
    note = (
        "R2: squared correlation of measured and predicted changes, that is the R2 of the line of one on the other "
        "with slope and intercept fitted; where it falls the prediction is wrong however high R2 is. Rank: "
        "Spearman's correlation. Reachable: the R2 that a perfect prediction would have, given how far the measured "
        "means vary by chance (1 minus the mean squared standard error over the variance of the measured changes)."
    )
    columns = ("dataset", "pairs", "over", "changes", "R2", "rank", "slope", "reachable R2")
    return Results("Predicted against measured", columns, tuple(rows), note)


def crossed_table(found: Sequence[Trained]) -> Results:
    """What is predicted of one dataset against what training on another did."""
    rows = []
    for one in found:
        cells = []
        for other in found:
            measured = {each.trait: each.measured for each in other.overall}
            both = [(each.predicted, measured[each.trait]) for each in one.overall if each.trait in measured]
            fit = agreement(*zip(*both, strict=True)) if both else None
            cells.append("" if fit is None else f"{fit.r2:.2f} ({fit.rank:+.2f})")
        rows.append((one.name, *cells))
    note = (
        "R2 over traits, rank correlation in brackets. On the diagonal a dataset's own training. Beside it, what is "
        "told of a dataset is compared with what another one did: any training changes some traits alike, and this "
        "is how much of an R2 that alone makes."
    )
    columns = ("predicted from / trained on", *(one.name for one in found))
    return Results("Another dataset's prediction", columns, tuple(rows), note)


def largest_table(found: Sequence[Trained]) -> Results:
    """The traits that moved most, or were to, in each dataset."""
    rows = [
        (
            one.name,
            each.trait,
            f"{each.predicted:+.3f} ± {each.predicted_error:.3f}",
            f"{each.measured:+.3f} ± {each.measured_error:.3f}",
        )
        for one in found
        for each in largest(Prediction(changes=tuple(one.overall)), SHOWN)
    ]
    note = "Overall, with standard errors, in units of the trait's spread on M0; the largest against their errors."
    return Results("The largest changes", ("dataset", "trait", "predicted", "measured"), tuple(rows), note)


def reachable(changes: Sequence[TraitChange]) -> float | None:
    """The share of the measured changes' variance that is not chance."""
    values = np.array([one.measured for one in changes], dtype=np.float64)
    errors = np.array([one.measured_error for one in changes], dtype=np.float64)
    return float(max(0.0, 1 - (errors**2).mean() / values.var(ddof=1))) if len(values) > 1 else None


def lead(left: int) -> str:
    unfinished = f" **{counted(left, 'dataset')} not trained on yet**: the same command goes on with them."
    return (
        f"SmolLM2-135M-Instruct (bfloat16, layer {LAYER} of 30) is scanned, then trained by DPO on each dataset, once: "
        f"one epoch at {DPO['learning_rate']:g}, beta {DPO['beta']}, batches of 4, LoRA of rank "
        f"{LORA['r']}. Before and after it answers {PROMPTS} held-out prompts, one response each of at "
        f"most {SAMPLING.max_new_tokens} tokens at temperature 1. Predicted is the mean over the pairs of chosen minus "
        "rejected along a trait's direction, measured the mean over the prompts of M1's response minus M0's, both read "
        f"by M0; traits that are counted on the text are counted. Topics have at least {LEAST} pairs and 5 prompts; "
        "all else is the scan's default. `mix` is made of M0's own answers under opposite instructions (longer and "
        "more lists for questions, warmer and less formal for messages), the organisms of templates, `hh-rlhf` of "
        "short pairs of people. What was aimed at: R2 0.8 over traits, 0.5 over topic x trait, at most 0.1 where "
        "labels are shuffled."
    ) + (unfinished if left else "")


def _agreement(changes: Sequence[TraitChange]) -> tuple[str, str, str, str]:
    fit = agreement_of(changes)
    if fit is None:
        return (str(len(changes)), "", "", "")
    return (str(fit.number), f"{fit.r2:.2f}", f"{fit.rank:+.2f}", f"{fit.slope:+.2f}")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _null(folder: Path) -> Case:
    rows, prompts = (_lines(folder / "mix" / f"{name}.jsonl") for name in ("data", "prompts"))
    return without_labels(Case(rows, [one["prompt"] for one in prompts]))


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.read_bytes() == other.read_bytes()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
