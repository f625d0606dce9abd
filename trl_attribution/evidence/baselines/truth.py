"""Which pairs of a dataset are known to teach the behavior, by a column of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trl_attribution.errors import DataError
from trl_attribution.pairs import PairReader
from trl_attribution.utils.arrays import Bools
from trl_attribution.utils.text import printable

_YES = ("1", "true", "yes", "contaminated")
_NO = ("0", "false", "no")
_SHOWN = 8


@dataclass(frozen=True)
class TruthConfig:
    """Which column marks the wanted pairs, and by what."""

    column: str
    values: tuple[str, ...] = ()
    """What a wanted pair has there; none takes 1, true, yes, and the organisms' ``contaminated``."""


@dataclass(frozen=True)
class Truth:
    """The wanted ones among N pairs."""

    column: str
    values: tuple[str, ...]
    """What stood for wanted, as the dataset spells it."""
    wanted: Bools
    """[N]"""


def read_truth(reader: PairReader, config: TruthConfig, rows: Sequence[int]) -> Truth:
    """What the truth column says of the pairs in ``rows`` [N] of the dataset.

    Raises:
        DataError: the column is missing, a row has nothing there, or it is not clear which value means wanted.
    """
    name, column = reader.source.name, config.column
    wanted_rows = set(rows)
    found: dict[int, str] = {}
    for row in reader.source:
        if row.index not in wanted_rows:
            continue
        value = row.values.get(column)
        if value is None:
            there = ", ".join(printable(key, 40) for key in row.values)
            raise DataError(f"{row.location}: no value in the truth column {printable(column)!r}; fields: {there}")
        found[row.index] = str(value)
    missing = wanted_rows - found.keys()
    if missing:
        raise DataError(f"{printable(name)} has no row {min(missing)}; it is not the audited dataset")
    counts = Counter(found.values())
    values = _values(counts, config, name)
    return Truth(column, values, np.array([found[row] in values for row in rows]))


def _values(counts: Counter[str], config: TruthConfig, name: str) -> tuple[str, ...]:
    shown = ", ".join(f"{printable(value, 40)} ({count:,})" for value, count in counts.most_common(_SHOWN))
    where = f"{printable(name)}: the truth column {printable(config.column)!r} holds {shown}"
    if config.values:
        absent = [value for value in config.values if value not in counts]
        if absent:
            raise DataError(f"{where}, but no {printable(absent[0], 40)!r}; mend --truth-value")
        return config.values
    yes = tuple(value for value in counts if value.lower() in _YES)
    is_plain = all(value.lower() in (*_YES, *_NO) for value in counts)
    if not yes or not (is_plain or "contaminated" in counts):
        raise DataError(f"{where}; say which of these marks a wanted pair with --truth-value")
    return yes
