"""``store.json``: what the vectors of a store were made with, kept beside them."""

from __future__ import annotations

from pathlib import Path

from trl_attribution.errors import StoreError
from trl_attribution.store.settings import StoreSettings
from trl_attribution.utils.json_file import JsonFile


class StoreHeader(JsonFile):
    """The content of ``store.json``."""

    FORMAT = "trl-attribution vectors"
    ADVICE = "Restore it, or choose another folder."

    settings: StoreSettings


def write_settings(folder: Path, settings: StoreSettings) -> None:
    """Write ``store.json`` into ``folder``, atomically.

    Raises:
        AttributionError: the folder cannot be written.
    """
    StoreHeader(settings=settings).write(folder / "store.json")


def read_settings(folder: Path) -> StoreSettings:
    """The settings of the store at ``folder``.

    Raises:
        StoreError: there is no store, or its ``store.json`` is broken or of a newer version.
    """
    header = StoreHeader.read(folder / "store.json")
    if header is None:
        raise StoreError(f"there is no vector store at {folder}: it has no store.json. Run an audit first.")
    return header.settings
