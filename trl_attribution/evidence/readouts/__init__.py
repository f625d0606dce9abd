"""What a model shows, and what a direction does to it: expression rates, steering, the difference of two models."""

from trl_attribution.evidence.readouts.difference import difference_probe
from trl_attribution.evidence.readouts.doses import Dose, DoseConfig, DoseCurve, dose_curve
from trl_attribution.evidence.readouts.expression import (
    Expression,
    Shown,
    express,
    is_repetitive,
    one_behavior,
    responses_of,
)
from trl_attribution.evidence.readouts.steering import Positions, steered

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
