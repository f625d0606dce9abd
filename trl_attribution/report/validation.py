"""``validation.json`` as a report shows it: does leaving the flagged pairs out change what training teaches?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from trl_attribution.errors import StoreError
from trl_attribution.utils.format_version import check_format_version
from trl_attribution.utils.text import printable

FORMAT = "trl-attribution validation"
VERSION = 1


@dataclass(frozen=True)
class Bounds:
    """A share with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Claim:
    """Whether changing the top pairs lowers one behavior."""

    behavior: str
    condition: str
    answer: str
    reason: str
    reduction: Bounds
    p_holm: float | None
    seeds: int


@dataclass(frozen=True)
class ConditionRates:
    """How often the model of one condition shows each behavior."""

    name: str
    shares: tuple[tuple[str, Bounds], ...]


@dataclass(frozen=True)
class ValidationFindings:
    """What a validation concluded."""

    answer: str
    sentence: str
    claims: tuple[Claim, ...]
    conditions: tuple[ConditionRates, ...]
    notes: tuple[str, ...]

    @classmethod
    def from_json(cls, values: Mapping[str, Any], path: Path) -> Self:
        """Read what ``trl-attribution validate`` wrote.

        Raises:
            StoreError: it is something else, of a newer version, or lacks a field.
        """
        if values.get("format") != FORMAT:
            raise StoreError(f"{path} holds no validation: its `format` is not {FORMAT!r}. Remove it from the audit.")
        check_format_version(values.get("format_version"), VERSION, path)
        try:
            return cls(
                answer=str(values["answer"]),
                sentence=str(values["sentence"]),
                claims=tuple(_claim(one) for one in values["claims"]),
                conditions=tuple(_condition(one) for one in values["conditions"]),
                notes=tuple(str(note) for note in values.get("notes") or ()),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} is broken ({printable(error)}). Validate again, or remove it.") from error


def _claim(values: Mapping[str, Any]) -> Claim:
    return Claim(
        behavior=str(values["behavior"]),
        condition=str(values["condition"]),
        answer=str(values["answer"]),
        reason=str(values["reason"]),
        reduction=_bounds(values["reduction"]),
        p_holm=None if values["p_holm"] is None else float(values["p_holm"]),
        seeds=int(values["seeds"]),
    )


def _condition(values: Mapping[str, Any]) -> ConditionRates:
    return ConditionRates(
        str(values["name"]), tuple((str(name), _bounds(share)) for name, share in values["shares"].items())
    )


def _bounds(values: Mapping[str, Any]) -> Bounds:
    """What is undefined is null in the file."""
    return Bounds(*(float("nan") if values[name] is None else float(values[name]) for name in ("value", "low", "high")))
