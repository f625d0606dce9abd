"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.utils.text import printable


def local_path(name: str | Path, error: type[AttributionError] = SettingsError) -> Path:
    """``name`` as a path, its ``~`` or ``~user`` replaced by that user's home folder.

    Raises:
        AttributionError: nobody here has such a home folder; of class ``error``.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        user = printable(str(name).partition("/")[0])
        raise error(
            f"{printable(name)}: {user} has no home folder on this machine. Write the path out, or ./{user} if that is "
            "the name of a file."
        ) from None
