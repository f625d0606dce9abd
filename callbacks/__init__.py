"""Hooks into trainers, importable as ``trl_attribution.callbacks``."""

from trl_attribution.callbacks.attribution import AttributionCallback
from trl_attribution.callbacks.config import CallbackConfig

__all__ = ["AttributionCallback", "CallbackConfig"]
