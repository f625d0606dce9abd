"""``validation.json`` read back: does leaving the flagged pairs out change what training teaches?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trl_attribution.errors import StoreError
from trl_attribution.evidence.validation.statistics import IntervalEstimate
from trl_attribution.utils.json_file import read_json
from trl_attribution.utils.text import printable

FORMAT = "trl-attribution validation"
VERSION = 1
_ADVICE = "Validate again, or remove it from the audit."


@dataclass(frozen=True)
class ToldClaim:
    """Whether changing the top pairs lowers one behavior."""

    behavior: str
    condition: str
    answer: str
    reason: str
    reduction: IntervalEstimate
    p_holm: float | None
    seeds: int


@dataclass(frozen=True)
class ConditionRates:
    """How often the model of one condition shows each behavior."""

    name: str
    shares: Mapping[str, IntervalEstimate]


@dataclass(frozen=True)
class ValidationFindings:
    """What a validation concluded."""

    answer: str
    sentence: str
    claims: tuple[ToldClaim, ...]
    conditions: tuple[ConditionRates, ...]
    notes: tuple[str, ...] = ()


def read_validation(path: Path) -> ValidationFindings:
    """Read what ``trl-attribution validate`` wrote.

    Raises:
        StoreError: it is something else, of a newer version, or lacks a field.
    """
    values = read_json(path, FORMAT, VERSION, advice=_ADVICE)
    try:
        return TypeAdapter(ValidationFindings).validate_python(values)
    except ValidationError as error:
        raise StoreError(f"{path} is broken ({printable(error)}). {_ADVICE}") from error
