"""Columns of images and other media as they are stored: rows that are passed on must not be decoded and encoded anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Features

ROWS_AT_ONCE = 50
"""Of rows with media, which may be megabytes each."""


def as_stored(features: Features) -> Features | None:
    """The column types with nothing decoded (an image is its bytes or its path); None where nothing would be."""
    stored = _stored(features)
    return None if stored == features else stored


def image_modes(features: Any) -> list[str]:
    """The modes that columns of images are converted to as they are read."""
    if isinstance(features, Mapping):
        return [mode for one in features.values() for mode in image_modes(one)]
    if hasattr(features, "feature"):
        return image_modes(features.feature)
    mode = getattr(features, "mode", None) if hasattr(features, "decode_example") else None
    return [mode] if mode else []


def _stored(feature: Any) -> Any:
    if isinstance(feature, dict):
        return type(feature)({name: _stored(one) for name, one in feature.items()})
    if isinstance(feature, list):
        return [_stored(one) for one in feature]
    if hasattr(feature, "feature"):
        return replace(feature, feature=_stored(feature.feature))
    return replace(feature, decode=False) if hasattr(feature, "decode_example") and hasattr(feature, "decode") else feature
