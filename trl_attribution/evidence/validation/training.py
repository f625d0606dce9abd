"""How a cell trains: TRL's DPOTrainer in this process, or the user's own program."""

from __future__ import annotations

import gc
import json
import math
import subprocess
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.evidence.validation.interventions import Dataset
from trl_attribution.evidence.validation.plan import ValidationPlan
from trl_attribution.evidence.validation.reference_pass import ReferencePass
from trl_attribution.manifest.config import WEIGHT_COLUMN
from trl_attribution.manifest.weighted_loss import check_loss_types, weigh_by_column
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.utils.atomic import write_lines
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import DPOConfig

_TAIL = 12


@dataclass(frozen=True)
class Trained:
    """A trained model, in memory."""

    loaded: LoadedModel
    steps: int
    """Optimizer steps."""


@dataclass(frozen=True)
class Job:
    """What one cell trains on, and how long."""

    dataset: Dataset
    seed: int
    steps: int
    folder: Path
    """For the trainer's own files; removed afterwards."""


TrainCell = Callable[[Job], Trained]


class StepCount:
    """How many optimizer steps a dataset of so many rows takes, as the trainer counts them."""

    def __init__(self, batch_size: int, epochs: float, accumulation: int = 1) -> None:
        self._batch_size, self._epochs, self._accumulation = batch_size, epochs, accumulation
        self.rows_a_step = batch_size * accumulation

    def of(self, rows: int) -> int:
        """Steps for ``rows`` rows: the last, smaller batch of an epoch counts."""
        batches = math.ceil(rows / self._batch_size)
        return math.ceil(self._epochs * max(1, math.ceil(batches / self._accumulation)))


def step_count(plan: ValidationPlan, folder: Path) -> StepCount:
    """The plan's.

    Raises:
        SettingsError: DPOConfig or LoraConfig refuses the plan's fields, or pairs cannot be weighed as the plan asks;
            checked here, before anything is trained.
    """
    if plan.training.dpo is None:
        assert plan.training.batch_size is not None  # the plan has checked
        return StepCount(plan.training.batch_size, plan.training.epochs)
    lora_config(plan)
    config = dpo_config(plan, folder, seed=0, steps=1)
    if "weight" in plan.interventions:
        check_loss_types(config.loss_type)
    return StepCount(config.train_batch_size, config.num_train_epochs, config.gradient_accumulation_steps)


def trainer_of(plan: ValidationPlan, folder: Path) -> TrainCell:
    """What trains the plan's cells; what they share is kept in ``folder``."""
    return _Dpo(plan, ReferencePass(folder)) if plan.training.dpo is not None else _Command(plan)


def dpo_config(plan: ValidationPlan, folder: Path, seed: int, steps: int) -> DPOConfig:
    """DPOConfig of one cell: the plan's fields, and what a validation decides.

    Raises:
        SettingsError: a field is unknown or its value refused.
    """
    from trl import DPOConfig

    fields = plan.training.dpo or {}
    unknown = sorted(set(fields) - set(DPOConfig.__dataclass_fields__))
    if unknown:
        raise SettingsError(f"training.dpo.{printable(unknown[0], 60)}: DPOConfig has no such field")
    on_cpu = plan.device == "cpu" or not torch.cuda.is_available()
    defaults: dict[str, Any] = {"report_to": [], "logging_strategy": "no", "disable_tqdm": True}
    if on_cpu:
        defaults |= {"use_cpu": True, "bf16": False}
    own = {"output_dir": str(folder), "seed": seed, "data_seed": seed, "max_steps": steps, "save_strategy": "no"}
    try:
        with warnings.catch_warnings():
            # TRL sets fields itself that transformers has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            config = DPOConfig(**{**defaults, **fields, **own})
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise SettingsError(f"training.dpo: DPOConfig refuses it: {printable(error, 400)}") from error
    if config.precompute_ref_log_probs and config.sync_ref_model:
        raise SettingsError(
            "training.dpo: precompute_ref_log_probs takes the reference model for one that stays as it is, and "
            "sync_ref_model changes it. Leave one of them out."
        )
    return config


def lora_config(plan: ValidationPlan) -> LoraConfig | None:
    """The adapter that a cell trains; None where all of M0's weights are trained.

    Raises:
        SettingsError: peft is not installed, a field is unknown or its value refused.
    """
    if plan.training.peft is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise SettingsError("training.peft needs peft: pip install peft") from error
    unknown = sorted(set(plan.training.peft) - set(LoraConfig.__dataclass_fields__))
    if unknown:
        raise SettingsError(f"training.peft.{printable(unknown[0], 60)}: LoraConfig has no such field")
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **plan.training.peft})
    except (ValueError, TypeError) as error:
        raise SettingsError(f"training.peft: LoraConfig refuses it: {printable(error, 400)}") from error


@dataclass(frozen=True)
class _Dpo:
    plan: ValidationPlan
    reference: ReferencePass

    def __call__(self, job: Job) -> Trained:
        from datasets import Dataset as Rows
        from trl import DPOTrainer

        plan = self.plan
        base = load_model(plan.model, plan.dtype, plan.device, plan.trust_remote_code)
        config = dpo_config(plan, job.folder, job.seed, job.steps)
        once = config.precompute_ref_log_probs
        config.precompute_ref_log_probs = False
        base.model.train()
        with warnings.catch_warnings():
            # Trainers' notices to their users, who are not there.
            warnings.simplefilter("ignore")
            try:
                rows = Rows.from_list(alike(job.dataset.rows))
                trainer = DPOTrainer(
                    base.model,
                    args=config,
                    train_dataset=rows,
                    processing_class=base.tokenizer,
                    peft_config=lora_config(plan),
                )
                if WEIGHT_COLUMN in rows.column_names:
                    weigh_by_column(trainer)
                _quieten(trainer)
                if once:
                    self.reference.attach(trainer)
                trainer.train()
            except (ValueError, TypeError, NotImplementedError) as error:
                raise SettingsError(f"training.dpo: DPOTrainer refuses it: {printable(error, 400)}") from error
        steps = int(trainer.state.global_step)
        model = trainer.accelerator.unwrap_model(trainer.model)
        if plan.training.peft is not None:
            model = model.merge_and_unload()
        # The optimizer and the reference model would stay in memory while the cell is measured.
        trainer.accelerator.free_memory()
        del trainer
        gc.collect()
        model.eval()
        return Trained(replace(base, model=model), steps)


@dataclass(frozen=True)
class _Command:
    plan: ValidationPlan

    def __call__(self, job: Job) -> Trained:
        plan = self.plan
        data, output, log = (job.folder / name for name in ("dataset.jsonl", "model", "log.txt"))
        write_lines(data, job.dataset.rows)
        values = {"model": plan.model, "dataset": data, "output": output, "seed": job.seed, "steps": job.steps}
        words = [_filled(word, values) for word in plan.training.command or []]
        with log.open("wb") as handle:
            try:
                done = subprocess.run(
                    words, check=False, stdout=handle, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
                )
            except OSError as error:
                raise SettingsError(
                    f"training.command: cannot start {printable(words[0])}: {error.strerror}"
                ) from error
        if done.returncode:
            raise SettingsError(
                f"training.command: {printable(' '.join(words), 300)} failed with exit code {done.returncode}; "
                f"the end of what it said:\n{_tail(log)}"
            )
        try:
            loaded = load_model(output, plan.dtype, plan.device, plan.trust_remote_code)
        except ModelError as error:
            raise ModelError(f"training.command ended well, but left no model at {{output}}: {error}") from error
        return Trained(loaded, job.steps)


def alike(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` with the same columns: ``datasets`` takes those of the first row and drops all others silently.

    Tools go as JSON, which TRL reads; a table wants the tools of all rows to be of one shape.
    """
    if any("tools" in row for row in rows):
        rows = [{**row, "tools": json.dumps(row["tools"]) if "tools" in row else None} for row in rows]
    if any("chat_template_kwargs" in row for row in rows):
        rows = [{"chat_template_kwargs": {}, **row} for row in rows]
    return rows


def _filled(word: str, values: dict[str, Any]) -> str:
    """Only the known placeholders: a word may hold other braces."""
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", str(value))
    return word


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {printable(line)}" for line in lines[-_TAIL:])


def _quieten(trainer: Any) -> None:
    """Without a progress bar a trainer prints its logs to standard output, where ours has the results."""
    from transformers import PrinterCallback

    with suppress(ValueError):
        trainer.remove_callback(PrinterCallback)
