"""What a behavior, and so its probe, may be called: names become folders and columns."""

from __future__ import annotations

import re

from trl_attribution.errors import ProbeError
from trl_attribution.utils.text import printable

NAME_RULE = "a letter or digit, then at most 63 letters, digits, dots, underscores or hyphens"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> None:
    """Make sure that ``name`` can be a probe's: it becomes a folder.

    Raises:
        ProbeError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ProbeError(f"probe name {printable(name, 80)!r} cannot be used: a name is {NAME_RULE}")
