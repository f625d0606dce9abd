"""What a model shows, and what a direction does to it: expression rates, steering, the difference of two models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.evidence.readouts.config import DoseConfig, Positions
    from trl_attribution.evidence.readouts.difference import difference_probe
    from trl_attribution.evidence.readouts.doses import Dose, DoseCurve, dose_curve
    from trl_attribution.evidence.readouts.expression import (
        Expression,
        Shown,
        express,
        is_repetitive,
        one_behavior,
        responses_of,
    )
    from trl_attribution.evidence.readouts.steering import steered
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Dose",
    "DoseConfig",
    "DoseCurve",
    "Expression",
    "Positions",
    "Shown",
    "difference_probe",
    "dose_curve",
    "express",
    "is_repetitive",
    "one_behavior",
    "responses_of",
    "steered",
]
