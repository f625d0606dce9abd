"""Hooks into trainers, importable as ``trl_attribution.callbacks``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.callbacks.arguments import AuditArguments
    from trl_attribution.callbacks.attribution import AttributionCallback
    from trl_attribution.callbacks.config import CallbackConfig
    from trl_attribution.callbacks.tracker import AttributionTracker
    from trl_attribution.manifest.weighted_loss import WeightedLossMixin
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["AttributionCallback", "AttributionTracker", "AuditArguments", "CallbackConfig", "WeightedLossMixin"]
