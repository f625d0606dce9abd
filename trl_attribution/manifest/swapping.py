"""The values that change when a pair is flipped; in a JSON line byte for byte, so that doing it twice is nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trl_attribution.errors import ManifestError
from trl_attribution.pairs.rows import Row
from trl_attribution.utils.text import printable

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_PAIRS_OF_LABELS = (("true", "false"), ("1", "0"), ("1.0", "0.0"), ("desirable", "undesirable"), ("yes", "no"))
_OPPOSITES = {one: other for both in _PAIRS_OF_LABELS for one, other in (both, both[::-1])}
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Turning:
    """What changes in the row of a flipped pair."""

    swaps: tuple[tuple[str, str], ...]
    """Columns whose values are exchanged; the responses come first."""
    negations: tuple[str, ...]
    """Columns whose numbers change their sign."""
    labels: tuple[str, ...] = ()
    """Columns whose labels become their opposite."""
    zeros: tuple[str, ...] = ()
    """Columns whose numbers become 0."""

    @property
    def singles(self) -> tuple[str, ...]:
        """Columns whose values change by themselves."""
        return (*self.negations, *self.labels, *self.zeros)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that may change."""
        return (*(name for pair in self.swaps for name in pair), *self.singles)

    def values(self, values: Mapping[str, Any], location: str) -> dict[str, Any]:
        """A row with its values exchanged and negated; columns keep their order.

        Raises:
            ManifestError: the row has one of two columns to exchange but not the other, or something else than a
                number to negate.
        """
        turned = dict(values)
        for first, second in self.swaps:
            self._check_both(values, first, second, location)
            if first in values:
                turned[first], turned[second] = values[second], values[first]
        for name in self.negations:
            if values.get(name) is not None:
                turned[name] = negated(values[name])
                if turned[name] is None:
                    raise ManifestError(
                        f"{location}: column '{printable(name)}' holds {printable(repr(values[name]), 40)}, which "
                        "cannot be negated. Take it out of --negate-columns, or mend the row."
                    )
        for name in self.labels:
            if name in values:
                turned[name] = opposite(values[name])
        for name in self.zeros:
            if name in values:
                turned[name] = type(values[name])(0)
        return turned

    def row(self, row: Row) -> Row:
        """A row turned, the line it was read from included.

        Raises:
            ManifestError: as for ``values``.
        """
        values = self.values(row.values, row.location)
        line = row.raw if row.raw_kind == "jsonl" else None
        raw = None if line is None else self._line(line, row.values, values)
        return Row(row.index, row.location, values, raw)

    def _line(self, raw: bytes, before: Mapping[str, Any], after: Mapping[str, Any]) -> bytes:
        swaps = [pair for pair in self.swaps if pair[0] in before]
        text = _exchanged(raw.decode("utf-8"), swaps)
        changed = [name for name in self.negations if before.get(name) is not None]
        text = _with_signs_turned(text, {name: after[name] for name in changed})
        return _with_values(text, {name: after[name] for name in (*self.labels, *self.zeros) if name in after}).encode()

    def _check_both(self, values: Mapping[str, Any], first: str, second: str, location: str) -> None:
        if (first in values) == (second in values):
            return
        there, lacking = (first, second) if first in values else (second, first)
        raise ManifestError(
            f"{location}: has column '{printable(there)}' but not '{printable(lacking)}', with which it would be "
            "exchanged. Add the column to the row, or name it in --leave-columns."
        )


def negated(value: Any) -> Any:
    """The number with its sign turned, also one written as text, or None where ``value`` is no number.

    Zero and NaN have no sign to turn and stay, so that turning twice gives the value back.

    >>> negated(0.25), negated("-3"), negated(0), negated("high")
    (-0.25, '3', 0, None)
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value if value == 0 or value != value else -value
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return value if float(value) == 0 else _sign_turned(value)
    return value if value == "" else None


def opposite(label: Any) -> Any:
    """The other label, written as this one is.

    >>> opposite(True), opposite(0), opposite("Desirable"), opposite("no")
    (False, 1, 'Undesirable', 'yes')
    """
    if not isinstance(label, str):
        return type(label)(not label)
    word = label.strip()
    other = _OPPOSITES[word.lower()]
    return other.upper() if word.isupper() else other.capitalize() if word[:1].isupper() else other


def _with_values(text: str, values: Mapping[str, Any]) -> str:
    if not values:
        return text
    spans = _value_spans(text)
    return _replaced(text, {spans[name]: json.dumps(value) for name, value in values.items()})


def _exchanged(text: str, swaps: list[tuple[str, str]]) -> str:
    """``text`` with values exchanged; spacing, escapes, key order and newline stay.

    Of a key that comes twice the last value counts, as it does to ``json.loads``.
    """
    spans = _value_spans(text)
    new = {}
    for first, second in swaps:
        new[spans[first]] = text[slice(*spans[second])]
        new[spans[second]] = text[slice(*spans[first])]
    return _replaced(text, new)


def _with_signs_turned(text: str, values: Mapping[str, Any]) -> str:
    if not values:
        return text
    spans = _value_spans(text)
    new = {}
    for name, value in values.items():
        span = spans[name]
        written = text[slice(*span)]
        if isinstance(value, str):
            new[span] = json.dumps(value)
        elif value == 0 or written == "NaN":
            new[span] = written
        else:
            new[span] = _sign_turned(written)
    return _replaced(text, new)


def _replaced(text: str, new: Mapping[tuple[int, int], str]) -> str:
    pieces, place = [], 0
    for (start, end), written in sorted(new.items()):
        pieces += [text[place:start], written]
        place = end
    return "".join([*pieces, text[place:]])


def _sign_turned(number: str) -> str:
    return number.removeprefix("-") if number.startswith("-") else f"-{number}"


def _value_spans(text: str) -> dict[str, tuple[int, int]]:
    """Where in ``text`` the value of each top-level key starts and ends."""
    spans: dict[str, tuple[int, int]] = {}
    place = _skip(text, text.index("{") + 1)
    while text[place] != "}":
        key, place = _DECODER.raw_decode(text, place)
        start = _skip(text, _skip(text, place) + 1)  # past the colon
        _, end = _DECODER.raw_decode(text, start)
        spans[key] = (start, end)
        place = _skip(text, end)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return spans


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place
