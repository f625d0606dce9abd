"""Times as people read them."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """In seconds, minutes or hours, whichever reads best.

    >>> duration_text(40.08), duration_text(600)
    ('40.1 s', '10.0 min')
    """
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
