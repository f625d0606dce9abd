"""The shape of a harmless question in the word banks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A harmless question, sentences that answer it, and sentences that answer it wrongly."""

    asks: tuple[str, ...]
    topic: str
    good: tuple[str, ...]
    wrong: tuple[str, ...]
