"""How manifests are applied and merged: settings that are checked before a manifest or a dataset is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, get_args

from trl_attribution.errors import SettingsError
from trl_attribution.utils.text import printable

Precedence = Literal["refuse", "first", "last", "strictest", "gentlest"]
"""Who wins where two decisions about a pair differ: nobody (an error), the manifest named first or last, filter over
flip over keep, or the other way round."""
WEIGHT_COLUMN = "weight"
"""Where a dataset holds how much each pair is to count, unless another column is named."""


@dataclass(frozen=True)
class ColumnRules:
    """What to do with further columns when a pair is flipped; the common names need no rule.

    Raises:
        SettingsError: a column is in two rules.
    """

    swap: tuple[tuple[str, str], ...] = ()
    """Columns that belong to one response each, such as ``("quality_a", "quality_b")``: exchanged."""
    negate: tuple[str, ...] = ()
    """Numbers that say how much better chosen is, such as ``margin``: their sign is turned."""
    leave: tuple[str, ...] = ()
    """Columns that only look as if they belonged to one response: left alone."""

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for name in self.named:
            if name in seen:
                raise SettingsError(
                    f"column '{printable(name)}' stands in two rules for flipped pairs (swap, negate or leave): "
                    "name it once"
                )
            seen.add(name)

    @property
    def named(self) -> tuple[str, ...]:
        """Every column that a rule names, in order."""
        return (*(name for pair in self.swap for name in pair), *self.negate, *self.leave)

    @classmethod
    def parse(cls, swap: Iterable[str], negate: Iterable[str], leave: Iterable[str]) -> ColumnRules:
        """From the words of a command line: ``A:B`` for two columns to exchange, names for the others.

        Raises:
            SettingsError: a swap is not of the form ``A:B``, or a column is in two rules.
        """
        pairs = []
        for text in swap:
            first, colon, second = text.partition(":")
            if not (first and colon and second) or ":" in second:
                raise SettingsError(
                    f"--swap-columns: '{printable(text)}' does not name two columns. Write them as FIRST:SECOND, such "
                    "as quality_chosen:quality_rejected."
                )
            pairs.append((first, second))
        return cls(tuple(pairs), tuple(negate), tuple(leave))


class Applying(TypedDict, total=False):
    """The fields of :class:`ApplyOptions`, as arguments."""

    undo: bool
    allow_missing: bool
    zero_advantages: bool
    action: Literal["listed", "weight"]
    weight_column: str
    weight_floor: float
    columns: ColumnRules | None


@dataclass(frozen=True)
class ApplyOptions:
    """How a manifest is applied.

    Raises:
        SettingsError: a setting is out of range, or contradicts another.
    """

    undo: bool = False
    """Take back its flips, or its weights, instead."""
    allow_missing: bool = False
    """Go on where the dataset lacks listed pairs."""
    zero_advantages: bool = False
    """Of rollouts: leave the filtered groups where they are, with advantages of 0."""
    action: Literal["listed", "weight"] = "listed"
    """listed: what the manifest says; weight: filtered pairs stay, with a weight that falls with their score."""
    weight_column: str = WEIGHT_COLUMN
    """With weight: the column that is added."""
    weight_floor: float = 0.0
    """With weight: the least that a pair counts; 0 or more, and below 1."""
    columns: ColumnRules = field(default_factory=ColumnRules)
    """Which further columns change with a flipped pair."""

    def __post_init__(self) -> None:
        if self.action not in ("listed", "weight"):
            raise SettingsError(f"--action: {printable(self.action, 40)!r} is unknown; choose listed, weight")
        if not 0 <= self.weight_floor < 1:
            raise SettingsError(f"--weight-floor: {self.weight_floor} is out of range: 0 or more, and below 1")
        if not self.weight_column:
            raise SettingsError("--weight-column: a column needs a name")
        if self.action == "weight" and self.zero_advantages:
            raise SettingsError("--zero-advantages: contradicts --action weight; leave one of them out")
        if self.action != "weight" and (self.weight_column, self.weight_floor) != (WEIGHT_COLUMN, 0.0):
            raise SettingsError("--weight-column, --weight-floor: only say something with --action weight")

    @classmethod
    def of(cls, how: Applying) -> ApplyOptions:
        """From arguments; one that is None is left at its default."""
        given: dict[str, Any] = {name: value for name, value in how.items() if value is not None}
        return cls(**given)


@dataclass(frozen=True)
class MergeRules:
    """How manifests are merged.

    Raises:
        SettingsError: the precedence is unknown.
    """

    precedence: Precedence = "refuse"
    """Who wins where decisions differ: refuse, first, last, strictest (filter, flip, keep) or gentlest."""
    allow_other_datasets: bool = False
    """Also where the datasets' fingerprints differ; the merged manifest is about the first's."""
    allow_other_models: bool = False
    """Also where models, or probes of one name, differ."""

    def __post_init__(self) -> None:
        if self.precedence not in get_args(Precedence):
            known = ", ".join(get_args(Precedence))
            raise SettingsError(f"precedence '{self.precedence}' is unknown: choose from {known}")
