"""The faults a user can mend: each message says what is wrong, where, and what to do."""

from __future__ import annotations


class AttributionError(Exception):
    """Base of every error that is the input's fault, not the program's.

    The command line prints its message without a traceback and exits with code 2.
    """


class DataError(AttributionError):
    """A dataset, or a row of it, cannot be read as preference pairs."""


class ModelError(AttributionError):
    """A model or tokenizer cannot be loaded, or lacks what was asked of it."""


class StoreError(AttributionError):
    """A vector store is broken, foreign, or written by a newer version."""


class StoreBusyError(StoreError):
    """Another process writes to a vector store, or has done so since it was opened; it can be tried again."""


class ProbeError(AttributionError):
    """A probe cannot be built, read, or used with this model."""


class JudgeError(ProbeError):
    """A judge cannot say whether responses show a behavior; ``verdicts`` are those it reached."""

    def __init__(self, message: str, verdicts: tuple[bool | None, ...] = ()) -> None:
        super().__init__(message)
        self.verdicts = verdicts
        """One for each pair that was asked about, in order; None where it reached none."""


class ManifestError(AttributionError):
    """A manifest cannot be read, or does not fit the dataset."""


class SettingsError(AttributionError):
    """A setting is unknown, out of range, or contradicts what a folder was made with."""


def describe_difference(stored: dict[str, object], asked: dict[str, object]) -> str:
    """One line for each setting in which ``stored`` and ``asked`` differ, both values printed."""
    keys = sorted(stored.keys() | asked.keys())
    return "\n".join(
        f"  {key}: stored {stored.get(key)!r}, asked for {asked.get(key)!r}"
        for key in keys
        if stored.get(key) != asked.get(key)
    )


WRONG_VALUES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What Python raises where text is no JSON, JSON holds something else than was expected, or a template goes wrong."""
