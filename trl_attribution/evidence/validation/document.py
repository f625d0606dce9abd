"""``validation.json``: everything that a validation found, in one versioned file."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trl_attribution.audit.info import machine, versions
from trl_attribution.evidence.validation.cells import BASELINE, M0, Condition
from trl_attribution.evidence.validation.conclusions import Claim
from trl_attribution.evidence.validation.costs import RunCost, total
from trl_attribution.evidence.validation.plan import plan_digest
from trl_attribution.evidence.validation.records import CellResult
from trl_attribution.evidence.validation.running import Validation
from trl_attribution.evidence.validation.statistics import Bootstrap, IntervalEstimate, share
from trl_attribution.evidence.validation.stored import FORMAT, VERSION
from trl_attribution.utils.atomic import write_json


@dataclass(frozen=True)
class ConditionSummary:
    """One condition over its seeds."""

    condition: Condition
    shares: dict[str, IntervalEstimate]
    """By measure, with 95% intervals."""
    accuracy: float | None
    margin: float | None
    perplexity: float | None
    steps: int
    filtered: float
    flipped: float
    weighed: float
    cost: RunCost
    """Of all its seeds."""


def summaries(validation: Validation) -> list[ConditionSummary]:
    """Every condition over its seeds, in the plan's order."""
    return [_summary(validation, condition) for condition in validation.results]


def costs(validation: Validation) -> dict[str, RunCost]:
    """Of each part: making the audits, training, measuring, and all."""
    results = [result for each in validation.results.values() for result in each]
    parts = {
        "audit": total(
            RunCost(round(one.seconds * validation.plan.devices, 3), one.flops) for one in validation.rankings.values()
        ),
        "training": total(result.training for result in results),
        "measuring": total(result.measuring for result in results),
    }
    return {**parts, "all": total(parts.values())}


def to_json(validation: Validation) -> dict[str, Any]:
    """The whole validation as plain JSON values; what is infinite or undefined is null."""
    plan, conclusion = validation.plan, validation.conclusion
    found: dict[str, Any] = {
        "format": FORMAT,
        "format_version": VERSION,
        "answer": conclusion.answer,
        "sentence": conclusion.sentence,
        "by_behavior": dict(conclusion.by_behavior),
        "claims": [_claim(one) for one in conclusion.claims],
        "conditions": [_described(one) for one in summaries(validation)],
        "cells": [
            {"name": result.cell.name, **result.cell.to_json(), **_result(result)}
            for each in validation.results.values()
            for result in each
        ],
        "rankings": {
            name: {"origin": one.origin, "pairs": len(one.pair_ids), "above_zero": one.towards}
            for name, one in validation.rankings.items()
        },
        "judges": validation.judges,
        "notes": list(validation.notes),
        "cost": {
            name: {**asdict(one), "money": one.money(plan), "currency": plan.currency}
            for name, one in costs(validation).items()
        },
        "statistics": plan.statistics.model_dump(mode="json"),
        "settings": validation.settings,
        "plan_sha256": plan_digest(plan),
        "versions": versions(),
        "machine": machine(),
    }
    return {name: _finite(value) for name, value in found.items()}


def save(validation: Validation) -> Path:
    """Write ``validation.json`` into the validation's folder, atomically."""
    path = validation.folder / "validation.json"
    write_json(path, to_json(validation))
    return path


def _summary(validation: Validation, condition: Condition) -> ConditionSummary:
    results = validation.results[condition]
    settings = validation.plan.statistics
    shares = {}
    for measure in results[0].shares:
        shares_SM = np.array([result.shares[measure] for result in results])
        seeds, prompts = shares_SM.shape
        bootstrap = Bootstrap.drawn(seeds, prompts, settings.resamples, settings.seed)
        shares[measure] = share(shares_SM, bootstrap)
    return ConditionSummary(
        condition=condition,
        shares=shares,
        accuracy=None if condition == M0 else _mean([result.accuracy for result in results]),
        margin=_mean([result.margin for result in results]),
        perplexity=_mean([result.perplexity for result in results]),
        steps=results[0].steps,
        filtered=_mean([result.changes.get("filtered", 0) for result in results]) or 0.0,
        flipped=_mean([result.changes.get("flipped", 0) for result in results]) or 0.0,
        weighed=_mean([result.changes.get("weighed", 0) for result in results]) or 0.0,
        cost=total(cost for result in results for cost in (result.training, result.measuring)),
    )


def _described(one: ConditionSummary) -> dict[str, Any]:
    values = asdict(one)
    condition = values.pop("condition")
    return {"name": one.condition.name, **condition, "is_baseline": one.condition == BASELINE, **values}


def _claim(claim: Claim) -> dict[str, Any]:
    against = [
        {"control": one.control, **asdict(one.comparison), "advantage": asdict(one.advantage)} for one in claim.against
    ]
    return {**asdict(claim), "condition": claim.condition.name, "against": against}


def _result(result: CellResult) -> dict[str, Any]:
    values = result.to_json()
    shares = values.pop("shares")
    return {"means": {measure: sum(each) / len(each) for measure, each in shares.items()}, **values}


def _mean(values: list[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
