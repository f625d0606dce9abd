"""Hooks into trainers, importable as ``trl_attribution.callbacks``."""

from trl_attribution.callbacks.arguments import AuditArguments
from trl_attribution.callbacks.attribution import AttributionCallback
from trl_attribution.callbacks.config import CallbackConfig
from trl_attribution.callbacks.tracker import AttributionTracker

__all__ = ["AttributionCallback", "AttributionTracker", "AuditArguments", "CallbackConfig"]
