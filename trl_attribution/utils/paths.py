"""Paths as users write them: expanded, looked for, and near names for those that are not there."""

from __future__ import annotations

import difflib
import errno
import os
import re
from itertools import islice
from pathlib import Path

from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.utils.text import printable

_MOST_BESIDE = 10_000
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,2}")
"""A path has lost one of its slashes."""
_LONGEST_NAME = 255
"""Bytes, on every file system in use."""


def local_path(name: str | Path, error: type[AttributionError] = SettingsError) -> Path:
    """``name`` as a path, its ``~`` or ``~user`` replaced by that user's home folder.

    Raises:
        AttributionError: it is a URL, nobody here has such a home folder, or no file can have such a name; of class
            ``error``.
    """
    if url := _URL.match(str(name)):
        raise error(
            f"{printable(name, 300)}: {url[0]} is no place on this machine, and all files have to be. Copy them (aws "
            "s3 sync, gcloud storage rsync, rclone), and give the copy's path."
        )
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        user = printable(str(name).partition("/")[0])
        raise error(
            f"{printable(name)}: {user} has no home folder on this machine. Write the path out, or ./{user} if that is "
            "the name of a file."
        ) from None
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        raise error(f"{printable(name)}: file name too long. Check the path.")
    try:
        path.lstat()
    except ValueError as fault:  # a null byte
        raise error(f"{printable(name)}: no file can have this name ({fault}). Check the path.") from None
    except OSError as fault:
        # What Path.exists() does not take for "no", and every later look would raise again.
        if fault.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM):
            raise error(f"{printable(name)}: {str(fault.strerror).lower()}. Check the path.") from None
    return path


def is_there(path: Path) -> bool:
    """Whether something is at ``path``, whatever the path; a link to nothing is not."""
    return os.path.exists(path)  # noqa: PTH110  # Path.exists() raises for long names and closed folders


def what_to_check(path: Path) -> str:
    """What to do about a path with nothing at it: names beside it that are near, or where it was looked for."""
    if path.is_symlink():
        return f"It is a link to nothing: {printable(os.readlink(path))}."  # noqa: PTH115  # as it stands there
    near = _near(path)
    if near:
        return f"Did you mean {' or '.join(printable(one) for one in near)}?"
    return f"Check the path (current folder: {Path.cwd()})."


def _near(path: Path) -> list[Path]:
    """Up to two that lie beside ``path`` and are called nearly like it, whatever their suffix."""
    try:
        with os.scandir(path.parent) as entries:
            beside = [Path(entry.path) for entry in islice(entries, _MOST_BESIDE)]
    except OSError:
        return []
    stems = {one.stem.lower() for one in beside}
    close = difflib.get_close_matches(path.stem.lower(), stems, n=2, cutoff=0.7)
    return sorted((one for one in beside if one.stem.lower() in close), key=lambda one: close.index(one.stem.lower()))[
        :2
    ]


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
