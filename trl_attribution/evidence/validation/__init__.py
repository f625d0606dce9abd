"""Does the attribution hold causally: interventions with controls, retraining, measures, statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

# Not on first use: `cells` is a module's name too.
from trl_attribution.evidence.validation.cells import Cell, Condition, cells, conditions
from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.evidence.validation.conclusions import Against, Claim, Conclusion, conclude
    from trl_attribution.evidence.validation.plan import ValidationPlan, load_plan
    from trl_attribution.evidence.validation.preparing import prepare_validation
    from trl_attribution.evidence.validation.running import Progressed, Validation, Validator
    from trl_attribution.evidence.validation.statistics import (
        Bootstrap,
        DifferenceTest,
        IntervalEstimate,
        sign_flip_test,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Against",
    "Bootstrap",
    "Cell",
    "Claim",
    "Conclusion",
    "Condition",
    "DifferenceTest",
    "IntervalEstimate",
    "Progressed",
    "Validation",
    "ValidationPlan",
    "Validator",
    "cells",
    "conclude",
    "conditions",
    "load_plan",
    "prepare_validation",
    "sign_flip_test",
]
