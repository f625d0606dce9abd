"""The one check of a file's format version."""

from __future__ import annotations

from trl_attribution.errors import AttributionError, StoreError
from trl_attribution.utils.text import printable


def check_format_version(
    version: object, newest: int, what: object, error: type[AttributionError] = StoreError
) -> None:
    """Refuse a file that this release cannot read.

    Args:
        version: what the file says.
        newest: the newest version that is read here; all from 1 on are.
        what: the file, at the beginning of the message.
        error: class of the error.

    Raises:
        AttributionError: ``version`` is newer, or no version at all.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise error(f"{what} is broken: its format version is {printable(version, 20)}, not a whole number from 1")
    refuse_newer(version, newest, what, error)


def refuse_newer(version: object, newest: int, what: object, error: type[AttributionError] = StoreError) -> None:
    """The same where a schema checks whatever is not newer.

    Raises:
        AttributionError: ``version`` is newer.
    """
    if isinstance(version, int) and version > newest:
        # Python does not print a number of thousands of digits, which YAML can hold.
        shown = version if version < 10**30 else "of many digits"
        raise error(
            f"{what} has format version {shown}; this trl-attribution reads up to {newest}. "
            "Install a newer trl-attribution to use it."
        )
