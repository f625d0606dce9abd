"""What can be wrong with one row: a reason to count by, and a sentence that says how to mend it."""

from __future__ import annotations

from dataclasses import dataclass

from trl_attribution.errors import DataError

UNTAUGHT = frozenset(("zero_variance", "tie"))
"""Reasons for which an example is left out though nothing is wrong with it: training learns nothing from it."""


class RowFault(DataError):  # noqa: N818 (a fault of the data, collected more often than raised)
    """One row cannot be used as a preference pair.

    Attributes:
        reason: short slug to count by, such as ``empty_response``.
        field: the column at fault.
        detail: what is wrong with it, and how to mend it.
    """

    def __init__(self, reason: str, field: str, detail: str) -> None:
        self.reason = reason
        self.field = field
        self.detail = detail
        super().__init__(f"{field}: {detail}")


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row that was left out, where it stands and why."""

    row: int
    location: str
    reason: str
