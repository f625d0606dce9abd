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


def check_arrow_path(path: Path, error: type[AttributionError]) -> None:
    """Refuse a name that Arrow cannot open: it takes UTF-8 only, while a file system takes any bytes.

    Raises:
        AttributionError: it is such a name; of class ``error``.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise error(
            f"{printable(path, 400)}: the name is not UTF-8, and Parquet and Arrow files can be neither read nor "
            "written under such a name. Rename it."
        ) from None
