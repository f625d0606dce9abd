"""Columns of images as they are stored: rows that are passed on must not be decoded and encoded anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import DataError
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from datasets import Features, Image

ROWS_AT_ONCE = 50
"""Of rows with images, which may be megabytes each."""


def as_stored(features: Mapping[str, Any]) -> Features | None:
    """The column types with images as their bytes or paths; None where there are no such columns."""
    return _stored(features) if any(True for _ in _images(features)) else None


def check_embedded(value: Any, feature: Any, where: str) -> None:
    """Refuse an image that is stored by its path alone: what writes datasets would copy it from wherever that leads.

    Raises:
        DataError: it is one.
    """
    if not isinstance(value, Mapping) or value.keys() != {"bytes", "path"} or value["bytes"] is not None:
        return
    if next(_images(feature), None) is feature:
        raise DataError(
            f"{where}: an image is stored by its path alone, '{printable(value.get('path'), 100)}'. Store its bytes: "
            "load_dataset(...), then cast_column with datasets.Image and save it once."
        )


def image_modes(features: Features | None) -> list[str]:
    """The modes that images are converted to as they are read."""
    return [image.mode for image in _images(features) if image.mode]


def is_transformed(dataset: Any) -> bool:
    """Whether rows are changed as they are read (``set_transform``): what is stored is not what is trained on."""
    return (getattr(dataset, "format", None) or {}).get("type") == "custom"


def _images(feature: Any) -> Iterator[Image]:
    """The types of images at any depth."""
    from datasets import Image

    if isinstance(feature, Image):
        yield feature
    inner = list(feature.values()) if isinstance(feature, Mapping) else getattr(feature, "feature", feature)
    for one in inner if isinstance(inner, list) else [inner]:
        if one is not feature:
            yield from _images(one)


def _stored(feature: Any) -> Any:
    from datasets import Image

    if isinstance(feature, Image):
        return replace(feature, decode=False)
    if isinstance(feature, dict):
        return type(feature)({name: _stored(one) for name, one in feature.items()})
    if isinstance(feature, list):
        return [_stored(one) for one in feature]
    return replace(feature, feature=_stored(feature.feature)) if hasattr(feature, "feature") else feature
