"""Hooks into trainers, importable as ``trl_attribution.callbacks``."""
