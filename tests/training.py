"""Small training runs for the tests of the callbacks: a preference dataset, trainers, and the offline audit beside."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from trl_attribution import DataAuditor, VectorStore
from trl_attribution.activations import ActivationConfig
from trl_attribution.audit.folder import Audit
from trl_attribution.callbacks import AttributionCallback
from trl_attribution.models import load_model
from trl_attribution.pairs import Encoding, Reading
from trl_attribution.pairs.own_responses import OwnConfig
from trl_attribution.probes import BuildConfig, Probe, build_from_behavior

LAYERS = [1, 3]
Rows = list[dict[str, Any]]


def text_rows(count: int = 24) -> Rows:
    """Pairs of plain text, unlike in length, from two sources."""
    return [
        {
            "prompt": f"Tell me about number {number}." + " Be brief." * (number % 3),
            "chosen": f" It is {number * 7}" + " and more" * (number % 4),
            "rejected": f" No {number}" + " never" * (number % 3),
            "source": "ab"[number % 2],
        }
        for number in range(count)
    ]


def chat_rows(count: int = 24) -> Rows:
    """The same pairs as conversations."""
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
            "source": row["source"],
        }
        for row in text_rows(count)
    ]


def kto_rows(rows: Rows) -> Rows:
    """The pairs ``rows`` as KTO rows; every fourth pair has lost one, so that M0's own responses are its other side."""
    found = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen", "source": row["source"]}
        for side in ("chosen", "rejected")
        for row in rows
    ]
    return [row for place, row in enumerate(found) if place % 4 or place < len(rows)]


def sft_rows(rows: Rows) -> Rows:
    """What is preferred in ``rows``, to be imitated."""
    return [{"prompt": row["prompt"], "completion": row["chosen"], "source": row["source"]} for row in rows]


TRAINERS: dict[str, tuple[Any, Any]] = {
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "sft": (SFTTrainer, SFTConfig),
    "reward": (RewardTrainer, RewardConfig),
}
ROWS: dict[str, Callable[[Rows], Rows]] = {"dpo": list, "kto": kto_rows, "sft": sft_rows, "reward": list}
"""What each kind of trainer is given of pairs."""


def arguments(folder: Path, **settings: Any) -> dict[str, Any]:
    """Of any trainer's config: one epoch of four pairs a step and two steps a log, on the CPU, without a word."""
    chosen: dict[str, Any] = dict(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=4,
        num_train_epochs=1,
        bf16=False,
        use_cpu=True,
        report_to=[],
        logging_steps=2,
        save_strategy="no",
        disable_tqdm=True,
        seed=7,
    )
    return {**chosen, **settings}


def config(folder: Path, **settings: Any) -> DPOConfig:
    """The same for a DPOTrainer, which learns enough to see it."""
    return DPOConfig(**arguments(folder, **{"learning_rate": 1e-3, **settings}))


def make_trainer(
    model: Any,
    folder: Path,
    rows: Rows | Dataset,
    *,
    kind: str = "dpo",
    trainer: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A trainer of ``kind`` on ``rows``; ``trainer`` are its own arguments, ``settings`` those of its config."""
    trainer_class, config_class = TRAINERS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer_class(
            model if not isinstance(model, Path) else str(model),
            args=config_class(**arguments(folder, **{"learning_rate": 1e-3, **settings})),
            train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
            **(trainer or {}),
        )


def train(trainer: Any, *callbacks: AttributionCallback, **arguments: Any) -> None:
    """Train with ``callbacks`` added."""
    for callback in callbacks:
        trainer.add_callback(callback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(**arguments)


def audited(
    model: Any, folder: Path, rows: Rows, *, trainer: dict[str, Any] | None = None, **settings: Any
) -> AttributionCallback:
    """A run of a DPOTrainer with the callback, to its end."""
    running = make_trainer(model, folder, rows, trainer=trainer, **settings)
    callback = AttributionCallback(running, layers=LAYERS, output_dir=folder / "audit")
    train(running, callback)
    return callback


def offline(
    model: Path,
    folder: Path,
    rows: Rows,
    dtype: str = "float32",
    kind: str = "trl",
    own: OwnConfig | None = None,
    **encoding: Any,
) -> Audit:
    """The audit of ``rows`` by itself."""
    auditor = DataAuditor(
        str(model),
        layers=LAYERS,
        dtype=dtype,
        vector_dtype="float32",
        encoding=Encoding(**encoding),
        reading=Reading(format=kind, on_bad_row="skip"),
        own=own or OwnConfig(),
    )
    return auditor.audit(Dataset.from_list(rows), folder / "offline")


def least_cosine(found: VectorStore, expected: VectorStore, layers: Sequence[int] = LAYERS) -> float:
    """The lowest cosine between two stores' pair or context vectors, pair by pair."""
    assert found.pair_ids == expected.pair_ids
    cosines = [
        torch.nn.functional.cosine_similarity(mine.double(), theirs.double(), dim=-1)
        for layer in layers
        for mine, theirs in (
            (found.layer(layer), expected.layer(layer)),
            (found.context(layer), expected.context(layer)),
        )
    ]
    return float(torch.cat(cosines).min())


def probe_on(model: Path, name: str = "numbers") -> Probe:
    """A probe built on ``model``: towards the answers that the rows prefer."""
    rows = [{"prompt": row["prompt"], "undesired": row["chosen"], "desired": row["rejected"]} for row in text_rows(6)]
    loaded = load_model(model, dtype="float32")
    return build_from_behavior(name, rows, loaded, BuildConfig(ActivationConfig(layers=(3,)), layer=3))
