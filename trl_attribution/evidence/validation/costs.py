"""What a part of a validation cost: device-seconds, FLOPs, memory, money."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from trl_attribution.audit.info import machine
from trl_attribution.evidence.validation.interventions import Dataset
from trl_attribution.evidence.validation.plan import ValidationPlan
from trl_attribution.models import LoadedModel
from trl_attribution.models.likelihood import linear_parameters
from trl_attribution.pairs import whole_text

_FORWARD = 2
"""FLOPs a parameter and token. A gradient for the layer below takes as many, one for the weights as many again."""


@dataclass(frozen=True)
class RunCost:
    """Of one part."""

    device_seconds: float = 0.0
    flops: int = 0
    """Of the linear layers, reckoned from parameters and tokens; 0 where a program of the user's own trains."""
    peak_memory_bytes: int = 0
    """Device memory where there is a GPU; else the most that this process has used so far."""

    def __add__(self, other: RunCost) -> RunCost:
        return RunCost(
            self.device_seconds + other.device_seconds,
            self.flops + other.flops,
            max(self.peak_memory_bytes, other.peak_memory_bytes),
        )

    def money(self, plan: ValidationPlan) -> float | None:
        """At the plan's price; None where it names none."""
        price = plan.price_per_device_hour
        return None if price is None else self.device_seconds / 3600 * price


class Meter:
    """Measures the seconds of a block and the memory it took."""

    def __init__(self, devices: int) -> None:
        self._devices = devices

    def start(self) -> None:
        """Begin."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._begin = time.perf_counter()

    def stop(self, flops: int = 0) -> RunCost:
        """End; the device-seconds are those of all devices that a cell occupies."""
        seconds = time.perf_counter() - self._begin
        found = machine()
        peak = found["peak_device_memory_bytes"] or found["peak_memory_bytes"]
        return RunCost(round(seconds * self._devices, 3), flops, int(peak))


def total(costs: Iterable[RunCost]) -> RunCost:
    """All of them together."""
    found = RunCost()
    for cost in costs:
        found += cost
    return found


def training_flops(plan: ValidationPlan, loaded: LoadedModel, dataset: Dataset, steps: int, batch: int) -> int:
    """Of ``steps`` steps of DPO: policy forward and backward, forward of the reference, recomputed activations.

    A reference pass that all cells share is not counted; it is one forward of the dataset. Nor is an adapter itself,
    which is small beside the model.
    """
    fields = plan.training.dpo
    if fields is None:
        return 0
    checkpointing = fields.get("gradient_checkpointing", True)
    reference = not fields.get("precompute_ref_log_probs", False)
    weight_gradients = plan.training.peft is None
    per_token = _FORWARD * (2 + weight_gradients + reference + checkpointing)
    mean = _tokens(loaded, dataset) / len(dataset.rows)
    return int(per_token * linear_parameters(loaded.model) * mean * steps * batch)


def _tokens(loaded: LoadedModel, dataset: Dataset) -> int:
    """Tokens of both sequences of every row, by a sample of them."""
    sample = dataset.rows[:: max(1, len(dataset.rows) // 256)]
    counted = sum(
        2 * _count(loaded, row["prompt"]) + _count(loaded, row["chosen"]) + _count(loaded, row["rejected"])
        for row in sample
    )
    return counted * len(dataset.rows) // len(sample)


def _count(loaded: LoadedModel, part: Any) -> int:
    return len(loaded.tokenizer(whole_text(part), add_special_tokens=False).input_ids)
