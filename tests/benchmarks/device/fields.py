"""A report of which every field is there: a value, or why there is none."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


class NotHereError(Exception):
    """This machine lacks what a measurement takes."""


@dataclass(frozen=True)
class Field:
    """One measurement."""

    part: str
    name: str
    measure: Callable[[], Any]
    needs: float = 0.0
    """Seconds that it is expected to take on a real device."""


def report(fields: Iterable[Field], budget: float, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Measure one field after the other, by part; those that no time is left for say so."""
    start = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    for field in fields:
        used = time.monotonic() - start
        if used + field.needs > budget:
            value: Any = {"skipped": f"{field.needs:g} s needed, {budget - used:.0f} s left of {budget:g}"}
        else:
            value = attempt(field.measure)
        found.setdefault(field.part, {})[field.name] = value
        say(f"{time.monotonic() - start:6.1f} s  {field.part}, {field.name}: {value}")
    return found


def attempt(measure: Callable[[], Any]) -> Any:
    """What ``measure`` finds, or why it finds nothing: one that fails must not hide the others."""
    try:
        return measure()
    except NotHereError as error:
        return {"skipped": str(error)}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return {"failed": f"{type(error).__name__}: {error}"[:600], "where": f"{where.name}:{where.lineno}"}
