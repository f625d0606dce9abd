"""How callers hear of the progress of work in stages."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""Called with the stage (``read``, ``vectors``, ``scores``, ...), what is done of it, and its total (0 if unknown)."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress of a caller who asked for none."""
