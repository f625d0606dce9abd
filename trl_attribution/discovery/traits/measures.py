"""What is measured on the text of a response itself: the traits that need no model, and the check of those that do.

Axis letters: M measures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import yaml

from trl_attribution.behaviors.judging import refuses
from trl_attribution.pairs import Pair, whole_text
from trl_attribution.utils.arrays import Floats

_LONGEST = 20_000
MEASURES = (
    "words",
    "formatting",
    "refusals",
    "hedges",
    "apologies",
    "questions",
    "exclamations",
    "emojis",
    "links",
    "code",
    "first-person",
)
"""The M axis."""
SHAPE = ("words", "formatting")
"""What a response is like whatever it says; taken out of the scores of traits that are about what it says."""


class Counted(Protocol):
    """A trait that may be counted on the text."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def measure(self) -> str:
        """What is counted; empty where nothing is."""


def measured(pair: Pair) -> Floats:
    """``[M]``: each measure of the chosen response minus that of the rejected one; texts count to 20,000 characters."""
    return counts_of(whole_text(pair.chosen)) - counts_of(whole_text(pair.rejected))


def take_measures(traits: Sequence[Counted], scores: Floats, measures: Floats) -> dict[str, float]:
    """Put what is counted in the place of the scores of traits that are counted; gives the agreement of both."""
    agreement: dict[str, float] = {}
    for place, one in enumerate(traits):
        if not one.measure:
            continue
        counts = measures[:, MEASURES.index(one.measure)]
        probed = scores[:, place]
        if probed.any() and len(np.unique(counts)) > 1:
            agreement[one.name] = round(float(np.corrcoef(ranks(probed), ranks(counts))[0, 1]), 3)
        scores[:, place] = counts
    return agreement


def ranks(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Ranks, ties at their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    found: npt.NDArray[np.float64] = ((last - count + last - 1) / 2)[place]
    return found


def counts_of(text: str) -> Floats:
    """``[M]``: each measure of one response, to 20,000 characters."""
    kept = text[:_LONGEST]
    return np.array([counter(kept) for counter in _counters()], dtype=np.float32)


@cache
def _counters() -> tuple[Callable[[str], float], ...]:
    patterns = yaml.safe_load((files("trl_attribution.discovery.traits") / "measures.yaml").read_text(encoding="utf-8"))
    by_name: dict[str, Callable[[str], float]] = {
        "words": lambda text: math.log1p(len(text.split())),
        "refusals": lambda text: float(refuses("", text)),
        **{name: _counter(re.compile(pattern)) for name, pattern in patterns.items()},
    }
    return tuple(by_name[name] for name in MEASURES)


def _counter(pattern: re.Pattern[str]) -> Callable[[str], float]:
    """The logarithm of the count: the tenth of a list's points says less than the first."""
    return lambda text: math.log1p(sum(1 for _ in pattern.finditer(text)))
