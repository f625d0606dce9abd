"""What a validation is expected to cost, reckoned from what its plan assumes: nothing is loaded or run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trl_attribution.evidence.validation.plan import ExpectedPlan, ValidationPlan
from trl_attribution.utils.text import counted, printable

_FORWARD = 2
"""FLOPs a parameter and token; a backward pass takes twice as many."""


@dataclass(frozen=True)
class Expected:
    """Device-hours by part, and what they were reckoned from."""

    assumed: ExpectedPlan
    devices: int
    trainings: int
    models: int
    audits: int
    one_audit: float
    """Device-hours."""
    one_training: float
    one_measuring: float
    price: float | None
    currency: str

    @property
    def total(self) -> float:
        """Device-hours of everything."""
        return self.audits * self.one_audit + self.trainings * self.one_training + self.models * self.one_measuring

    @property
    def lines(self) -> Iterator[str]:
        """For people, the assumptions first; printable."""
        one = self.assumed
        yield (
            f"Assumed, not measured: {one.pairs:,} pairs of {one.prompt_tokens:,} + {one.response_tokens:,} tokens "
            f"(prompt, both responses), {one.parameters:.3g} parameters in linear layers, {one.audited_depth:.0%} of "
            f"the blocks run for vectors, {one.flops:.3g} FLOP/s and {one.tokens_a_second:,.0f} written tokens/s a "
            f"device, {counted(one.prompts, 'prompt')}, gradient checkpointing {'on' if one.recomputes else 'off'}."
        )
        said = "the plan takes those that are there" if not self.audits else f"{counted(self.audits, 'audit')} to make"
        yield f"audit: {self.one_audit:,.1f} device-hours for the vectors of one; {said}"
        yield (
            f"training: {self.one_training:,.1f} device-hours a cell, {self.one_training / self.devices:,.1f} hours on "
            f"{counted(self.devices, 'device')}; {self.trainings * self.one_training:,.0f} for {self.trainings:,} cells"
        )
        measured = self.models * self.one_measuring
        yield f"measuring: {self.one_measuring:,.2f} device-hours a cell on one device; {measured:,.1f} in all"
        money = ""
        if self.price is not None:
            money = f", {self.total * self.price:,.0f} {printable(self.currency, 10)} at {self.price:g} an hour"
        yield f"together: {self.total:,.0f} device-hours{money}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "assumed": self.assumed.model_dump(mode="json"),
            "audit_device_hours": self.one_audit,
            "audits": self.audits,
            "training_device_hours_a_cell": self.one_training,
            "measuring_device_hours_a_cell": self.one_measuring,
            "trainings": self.trainings,
            "device_hours": self.total,
            "money": None if self.price is None else self.total * self.price,
            "currency": self.currency,
        }


def expected_cost(plan: ValidationPlan, trainings: int, models: int) -> Expected | None:
    """What ``trainings`` cells that train, of ``models`` that are measured, cost; None where the plan assumes nothing.

    An audit runs each prompt once and both responses through a part of the blocks; a step of DPO runs prompt and
    response of both sides through the policy, back, and through the reference. The reference is counted for each cell,
    also where a trainer keeps what it says of the pairs.
    """
    one = plan.expected
    if one is None:
        return None
    tokens = one.pairs * (one.prompt_tokens + one.response_tokens)
    audits = sum(ranking.audit is None and ranking.scores is None for ranking in plan.rankings.values())
    audit = _FORWARD * one.parameters * one.audited_depth * tokens
    passes = 3 + 1 + one.recomputes  # forward and backward, reference, forward again
    trained = one.pairs * (2 * one.prompt_tokens + one.response_tokens) * _epochs(plan)
    written = one.prompts * plan.measures.samples * plan.measures.max_new_tokens
    return Expected(
        assumed=one,
        devices=plan.devices,
        trainings=trainings,
        models=models,
        audits=audits,
        one_audit=audit / one.flops / 3600,
        one_training=_FORWARD * one.parameters * passes * trained / one.flops / 3600,
        one_measuring=written / one.tokens_a_second / 3600,
        price=plan.price_per_device_hour,
        currency=plan.currency,
    )


def _epochs(plan: ValidationPlan) -> float:
    if plan.training.dpo is None:
        return plan.training.epochs
    return float(plan.training.dpo.get("num_train_epochs", 3))
