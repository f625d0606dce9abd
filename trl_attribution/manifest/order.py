"""Which further columns tell the chosen response from the rejected one, by what their values do from row to row."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from trl_attribution.pairs import Pair
from trl_attribution.pairs.messages import Messages, text_of

Path = tuple[str | int, ...]
"""Where a value stands in a row: column, then keys and places in lists."""
Leaves = dict[Path, Any]

_BORDER = re.compile(r"([^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=[0-9]))")
_DEPTH, _MOST_LEAVES, _MOST_VALUES = 6, 500, 8
# Fewer rows agree by chance: then a column's name has to speak against it too.
_ENOUGH = 4
# What is said of two responses together, what of each of several, and what the sides of a pair are called.
_VERDICTS = frozenset(
    (
        *("label", "labels", "preferred", "preference", "choice", "selected", "winner", "loser"),
        *("best", "better", "safer", "worse", "worst", "rank", "ranks", "ranking", "rankings"),
    )
)
_MEASURES = frozenset(("rating", "ratings", "score", "scores"))
_SIDES = frozenset(("a", "b", "1", "2", "first", "second", "left", "right", "chosen", "rejected"))


@lru_cache(maxsize=4096)
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name, lower case: ``rewardChosen`` and ``reward-chosen`` are alike, ``output1`` has two."""
    return tuple(word.lower() for word in _BORDER.split(name) if word and word[0].isalnum())


def leaves_of(values: Mapping[str, Any]) -> Leaves:
    """The single values of a row by their paths, those inside JSON that stands in a text too."""
    found: Leaves = {}
    for path, value in chain.from_iterable(_walk((column,), value) for column, value in values.items()):
        found[path] = value
        if len(found) == _MOST_LEAVES:
            break
    return found


def _walk(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    inside = _from_json(value) if isinstance(value, str) else value
    if isinstance(inside, Mapping) and inside and len(path) < _DEPTH:
        for key, entry in inside.items():
            yield from _walk((*path, str(key)), entry)
    elif isinstance(inside, list | tuple) and inside and len(path) < _DEPTH:
        for place, entry in enumerate(inside):
            yield from _walk((*path, place), entry)
    else:
        yield path, value


def _from_json(text: str) -> Any:
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class _Places(NamedTuple):
    """Where the responses stand in a row besides chosen and rejected: two paths alike but for one step."""

    path: Path
    step: int
    chosen: str | int
    rejected: str | int

    @property
    def own_words(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The words in which the two names differ: ``a`` and ``b`` of ``response_a`` and ``response_b``."""
        mine, theirs = words_of(str(self.chosen)), words_of(str(self.rejected))
        return tuple(one for one in mine if one not in theirs), tuple(one for one in theirs if one not in mine)


@dataclass
class _Seen:
    """What the values at one place of a row have done so far."""

    rows: int = 0
    signs: set[int] = field(default_factory=set)
    """Of how much greater the number for chosen is than the one for rejected."""
    other: str | None = None
    """The column of the numbers for rejected, where it is another one."""
    points: tuple[set[bool], set[bool]] = field(default_factory=lambda: (set(), set()))
    """Whether it named the place of chosen, counted from 0 or from 1."""
    verdicts: set[bool] = field(default_factory=set)
    """Whether it was a word or number for one side of a pair."""
    values: dict[bool, set[Any]] = field(default_factory=lambda: {True: set(), False: set()})
    """Its values where chosen stood in the first of two places, and where it did not."""

    def compare(self, mine: float | None, theirs: float | None, other: str | None = None) -> None:
        """Note the number for chosen and the one for rejected."""
        if mine is not None and theirs is not None:
            self.rows += 1
            self.signs.add((mine > theirs) - (mine < theirs))
            self.other = other


class Telling(NamedTuple):
    """What gives a column away."""

    how: str
    other: str | None = None
    """The column that it would be exchanged with."""


class OrderEvidence:
    """Watches the further columns of rows, and says which of them go with the order of the responses."""

    def __init__(self) -> None:
        self._seen: dict[Path, _Seen] = {}
        self._sides: Counter[tuple[str | int, str | int]] = Counter()
        """In how many rows chosen and rejected stood in which places."""

    def see(self, leaves: Leaves, pair: Pair, turned: bool = False) -> None:
        """Note one row; ``turned`` where its responses have changed places since the other columns were written."""
        sides = (pair.rejected, pair.chosen) if turned else (pair.chosen, pair.rejected)
        places = _places(leaves, *(_last_text(side) for side in sides))
        for path, value in leaves.items():
            if len(path) == 1 and value is not None and _is_verdict(path[0]):
                self._at(path).verdicts.add(_names_a_side(value))
        if places is None:
            self._see_lists_of_two(leaves)
            return
        self._sides[places.chosen, places.rejected] += 1
        if isinstance(places.chosen, int) and isinstance(places.rejected, int):
            self._at((*places.path[: places.step], "#")).compare(places.chosen, places.rejected)
        for path, value in leaves.items():
            self._see_beside(path, value, leaves, places)
            if len(path) == 1 and value is not None:
                self._see_alone(path, value, places)

    def telling(self, column: str) -> Telling | None:
        """How ``column`` tells which response is chosen; None where nothing says that it does."""
        for path, seen in self._seen.items():
            if path[0] == column and (found := self._judge(path, seen)) is not None:
                return found
        return None

    def is_cleared(self, column: str) -> bool:
        """Whether ``column`` was seen with the same values whichever response was chosen."""
        values = self._seen.get((column,), _Seen()).values
        return self._is_two_sided and bool(values[True] & values[False])

    def _judge(self, path: Path, seen: _Seen) -> Telling | None:
        named = bool((_VERDICTS | _MEASURES) & set(words_of(str(path[0]))))
        if len(seen.signs - {0}) == 1 and (named or seen.rows >= _ENOUGH):
            if path[-1] == "#":
                return Telling("lists the two responses in the order of the pair")
            return Telling("holds numbers that are ordered as the pair is", seen.other)
        if {True} in seen.points and (named or len(self._sides) > 1):
            return Telling("names the place of the chosen response")
        if self._is_two_sided:
            if _are_apart(seen.values[True], seen.values[False]):
                return Telling("has other values where the responses stand the other way round")
        elif seen.verdicts == {True}:
            return Telling("looks like a verdict on the two responses")
        return None

    @property
    def _is_two_sided(self) -> bool:
        """Whether each of the same two places has held chosen often enough to tell what goes with it."""
        sides = list(self._sides)
        return len(sides) == 2 and sides[0] == sides[1][::-1] and 2 * min(self._sides.values()) >= _ENOUGH

    def _at(self, path: Path) -> _Seen:
        return self._seen.setdefault(path, _Seen())

    def _see_beside(self, path: Path, value: Any, leaves: Leaves, places: _Places) -> None:
        """A number at a place like that of chosen, and the one like that of rejected: scores, ranks, votes."""
        for step in range(len(path)):
            other = _mirrored(path, step, places)
            if other in leaves:
                column = str(other[0]) if step == 0 else None
                key = path if step == 0 else (*path[:step], "*", *path[step + 1 :])
                self._at(key).compare(_number(value), _number(leaves[other]), column)

    def _see_alone(self, path: Path, value: Any, places: _Places) -> None:
        """A column of single values: does it name the place of chosen, or go with it?"""
        seen = self._at(path)
        for base, points in enumerate(seen.points):
            points.add(_points_at(value, places, base))
        values = seen.values[str(places.chosen) < str(places.rejected)]
        if len(values) < _MOST_VALUES and isinstance(value, str | int | float) and value == value:  # NaN is not
            values.add(value)

    def _see_lists_of_two(self, leaves: Leaves) -> None:
        """Where no other column holds the responses, two numbers under a name like a verdict's are about them."""
        for path, value in leaves.items():
            column = str(path[0])
            is_of_two = path[1:] == (0,) and (column, 1) in leaves and (column, 2) not in leaves
            if is_of_two and (_VERDICTS | _MEASURES).issuperset(words_of(column)):
                self._at((column, "*")).compare(_number(value), _number(leaves[column, 1]))


def _last_text(response: str | Messages) -> str:
    return response.strip() if isinstance(response, str) else text_of(response[-1]).strip()


def _places(leaves: Leaves, chosen: str, rejected: str) -> _Places | None:
    at: dict[str, list[Path]] = {chosen: [], rejected: []}
    for path, value in leaves.items():
        if isinstance(value, str) and (text := value.strip()) in at:
            at[text].append(path)
    for one in at[chosen]:
        for other in at[rejected]:
            steps = [step for step, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs]
            if len(one) == len(other) and len(steps) == 1:
                return _Places(one, steps[0], one[steps[0]], other[steps[0]])
    return None


def _mirrored(path: Path, step: int, places: _Places) -> Path | None:
    """``path`` with the place of rejected instead of that of chosen at ``step``; None where that one is not there."""
    here = path[step]
    if isinstance(here, int):
        return (*path[:step], places.rejected, *path[step + 1 :]) if here == places.chosen else None
    mine, theirs = places.own_words
    if isinstance(places.chosen, int) or len(mine) != 1 or len(theirs) != 1 or mine[0] not in words_of(here):
        return None
    pieces = (_like(piece, theirs[0]) if piece.lower() == mine[0] else piece for piece in _BORDER.split(here))
    return (*path[:step], "".join(pieces), *path[step + 1 :])


def _like(word: str, other: str) -> str:
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[:1].isupper() else other


def _points_at(value: Any, places: _Places, base: int) -> bool:
    """Whether a value names the place of chosen, where places in lists are counted from ``base``."""
    mine, number = places.own_words[0], _number(value)
    if isinstance(places.chosen, int):
        return number == places.chosen + base
    if number is not None:
        return number.is_integer() and mine == (str(int(number)),)
    return isinstance(value, str) and (
        value == places.chosen or (mine != () and words_of(value)[-len(mine) :] == mine and len(value) < 40)
    )


def _is_verdict(column: str | int) -> bool:
    return not _VERDICTS.isdisjoint(words_of(str(column)))


def _names_a_side(value: Any) -> bool:
    number = _number(value)
    if number is not None:
        return number in (-1, 0, 1, 2)
    words = words_of(value) if isinstance(value, str) and len(value) < 40 else ()
    return 0 < len(words) <= 2 and words[-1] in _SIDES


def _are_apart(first: set[Any], other: set[Any]) -> bool:
    """Whether numbers lie on different sides of zero, or few values on either side never meet."""
    if not first or not other:
        return False
    numbers = [[_number(value) for value in side] for side in (first, other)]
    known = [[number for number in side if number is not None] for side in numbers]
    if known == numbers and (max(known[0]) < 0 < min(known[1]) or max(known[1]) < 0 < min(known[0])):
        return True
    return first.isdisjoint(other) and len(first) + len(other) <= _ENOUGH


def _number(value: Any) -> float | None:
    if isinstance(value, str) and not re.fullmatch(r"-?\d{1,15}(\.\d+)?", value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number
