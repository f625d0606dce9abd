"""Which other columns belong to one response, so that a flipped pair's scores and ratings change places with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from trl_attribution.errors import ManifestError
from trl_attribution.manifest.config import ColumnRules
from trl_attribution.manifest.order import Leaves, OrderEvidence, leaves_of, words_of
from trl_attribution.manifest.swapping import Turning, negated
from trl_attribution.pairs import Pair, Reading
from trl_attribution.pairs.rows import Row
from trl_attribution.utils.text import printable, some_lines

# Words that name one side of a pair, in column names of public preference datasets.
_SIDES = (("chosen", "rejected"), ("winner", "loser"), ("better", "worse"), ("preferred", "dispreferred"))
# Alone, without a column for the other side, the others are ordinary words.
_TELLING = {"chosen", "rejected", "winner", "loser"}
# What is said of a response: columns made of a side and these words only, there for both sides, are exchanged.
_MEASURES = frozenset(
    (
        *("score", "scores", "rating", "ratings", "reward", "rewards", "grade", "rank", "votes", "upvotes"),
        *("logp", "logps", "logprob", "logprobs", "prob", "probability", "loss", "ppl", "perplexity"),
        *("length", "len", "token", "tokens", "words", "chars", "count", "model", "models", "generator"),
    )
)
_QUALIFIERS = frozenset(
    (
        *("avg", "average", "mean", "sum", "total", "max", "min", "num", "n", "overall"),
        *("ref", "reference", "rm", "policy", "judge"),
    )
)
_GAPS = frozenset(("margin", "margins", "diff", "difference", "gap", "delta", "advantage"))
# Who won says nothing about a tie.
_UNSIDED = frozenset(("tie", "ties", "both", "neither"))
_COMPARED = 1000


@dataclass
class ColumnInspector:
    """Watches the rows that are to be flipped, and says in the end what has to change in them."""

    reading: Reading
    rules: ColumnRules
    _columns: dict[str, None] = field(default_factory=dict)
    _not_numbers: dict[str, str] = field(default_factory=dict)
    """Columns with a value that cannot be negated, and the first row where."""
    _copies: dict[str, str | None] = field(default_factory=dict)
    """Columns that held a copy of one response in every row so far, and of which; None once one did not."""
    _nested: dict[str, str] = field(default_factory=dict)
    """Columns that hold objects with one-sided entries, and the first such entry."""
    rows: int = 0
    compared: int = 0

    def see(self, row: Row, pair: Pair, turned: bool = False) -> None:
        """Note one row that will be flipped; ``turned`` where it was flipped before and this takes it back."""
        self.rows += 1
        for name, value in row.values.items():
            if name in self._own:
                continue
            self._columns[name] = None
            if value is None:
                continue
            if name not in self._not_numbers and negated(value) is None:
                self._not_numbers[name] = row.location
        leaves = self._further(row)
        self._see_copies(row, pair)
        for column, entry in _one_sided_entries(leaves, self._sides):
            self._nested.setdefault(column, entry)
        self._order.see(leaves, pair, turned)

    def compare(self, row: Row, pair: Pair) -> None:
        """Note one row that stays, for what its other columns do; the first ones are enough."""
        if self.compared < _COMPARED:
            self.compared += 1
            self._see_copies(row, pair)
            self._order.see(self._further(row), pair)

    def _see_copies(self, row: Row, pair: Pair) -> None:
        for name, value in row.values.items():
            if name not in self._own and value is not None and self._copies.get(name, "") is not None:
                found = _copied(value, row, pair, self.reading)
                self._copies[name] = found if found == self._copies.get(name, found) else None

    def _further(self, row: Row) -> Leaves:
        return leaves_of({name: value for name, value in row.values.items() if name not in self._own})

    def turning(self, name: str, columns: Iterable[str] | None) -> Turning:
        """What to exchange and to negate in a flipped row.

        Args:
            name: what messages call the dataset.
            columns: its columns where they are known.

        Raises:
            ManifestError: a rule names a column that is not there or is one of the pair's own, a column to negate
                holds something else than numbers, or a column looks one-sided and no rule names it.
        """
        own = (self.reading.chosen_column, self.reading.rejected_column)
        for column in columns or ():
            if column not in self._own:
                self._columns.setdefault(column)
        self._check_rules(name, known=columns is not None)
        if not self.rows:
            return Turning((own,), ())
        free = [column for column in self._columns if column not in self.rules.named]
        swaps = tuple(_known_swaps(_by_words(free), self._sides).items())
        negations = [column for column in free if _is_gap(column) and column not in self._not_numbers]
        taken = {*negations, *(column for pair in swaps for column in pair)}
        self._refuse_undeclared([column for column in free if column not in taken], name)
        for column in self.rules.negate:
            if column in self._not_numbers:
                raise ManifestError(
                    f"{self._not_numbers[column]}: column '{printable(column)}' holds no number, so it cannot be "
                    "negated. Take it out of --negate-columns."
                )
        return Turning((own, *self.rules.swap, *swaps), (*self.rules.negate, *negations))

    @cached_property
    def _order(self) -> OrderEvidence:
        return OrderEvidence()

    @cached_property
    def _own(self) -> tuple[str, ...]:
        reading = self.reading
        pair = (reading.prompt_column, reading.chosen_column, reading.rejected_column)
        return (*pair, reading.column("preference")) if reading.format == "rated" else pair

    @cached_property
    def _sides(self) -> tuple[tuple[str, str], ...]:
        """The words for the two sides, those of the pair's own columns first."""
        first, second = words_of(self.reading.chosen_column), words_of(self.reading.rejected_column)
        apart = [pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]]
        own = tuple(apart) if len(first) == len(second) and len(apart) == 1 else ()
        return tuple(dict.fromkeys((*own, *_SIDES)))

    def _check_rules(self, name: str, known: bool) -> None:
        for column in self.rules.named:
            if column in self._own:
                raise ManifestError(
                    f"{name}: column '{printable(column)}' is part of the pair itself. Leave it out of the rules for "
                    "further columns."
                )
            # Rows of a file without a list of columns have been seen only where they are flipped.
            if column not in self._columns and (known or self.rows):
                there = printable(", ".join(self._columns)) or "none"
                raise ManifestError(
                    f"{name}: no column '{printable(column)}' to exchange, negate or leave. Further columns there: "
                    f"{there}."
                )

    def _refuse_undeclared(self, columns: list[str], name: str) -> None:
        by_words = _by_words(columns)
        lines: list[str] = []
        said: set[str | None] = set()
        for column in columns:
            if column not in said:
                lines += self._suspicion(column, by_words)
                told = self._order.telling(column)
                said |= {_counterpart(column, by_words, self._sides), told and told.other}
        if lines:
            head = (
                f"{name}: flipping a pair would leave columns behind that look as if they belonged to one of its "
                "responses. Say what is to be done with each:"
            )
            raise ManifestError("\n".join([head, *some_lines(lines)]))

    def _suspicion(self, column: str, by_words: Mapping[tuple[str, ...], str]) -> Iterator[str]:
        shown = printable(column, 80)
        leave = f"--leave-columns {shown} if it may stay as it is"
        copied = self._copies.get(column)
        other = _counterpart(column, by_words, self._sides)
        told = self._order.telling(column)
        if copied:
            yield f"'{shown}' holds the same as {printable(copied, 80)}: {leave}"
        elif other is not None:
            yield f"'{shown}' and '{printable(other, 80)}': --swap-columns {shown}:{printable(other, 80)}, or {leave}"
        elif _is_gap(column):
            where = self._not_numbers[column]
            yield f"'{shown}' is named like a difference of two scores but holds no number ({where}): {leave}"
        elif told is not None and told.other in self._columns:
            pair = f"{shown}:{printable(told.other, 80)}"
            yield f"'{shown}' {told.how} ('{printable(told.other, 80)}' too): --swap-columns {pair}, or {leave}"
        elif _may_be_one_sided(column, self._sides) and not self._is_cleared(column):
            yield f"'{shown}' is named like one response: --swap-columns {shown}:OTHER, or {leave}"
        elif _may_be_signed(column) and column not in self._not_numbers:
            yield f"'{shown}' is named like a difference between the responses: --negate-columns {shown}, or {leave}"
        elif column in self._nested:
            entry = printable(self._nested[column], 80)
            yield f"'{shown}' has the entry '{entry}' inside: move it to a column of its own, or {leave}"
        elif told is not None:
            yield f"'{shown}' {told.how}: mend it by hand or drop it, or {leave}"

    def _is_cleared(self, column: str) -> bool:
        return not _UNSIDED.isdisjoint(words_of(column)) or self._order.is_cleared(column)


def _counterpart(column: str, by_words: Mapping[tuple[str, ...], str], sides: Iterable[tuple[str, str]]) -> str | None:
    """The column with the same name for the other side: ``score_rejected`` for ``chosen-score`` it is not."""
    words = words_of(column)
    for first, second in sides:
        for here, there in ((first, second), (second, first)):
            other = by_words.get(tuple(there if word == here else word for word in words))
            if here in words and other not in (None, column):
                return other
    return None


def _known_swaps(by_words: Mapping[tuple[str, ...], str], sides: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Columns of the first side with those of the other, where both are there and named by known words only."""
    found: dict[str, str] = {}
    for words, column in by_words.items():
        for side in sides:
            rest = set(words) - {side[0]}
            if side[0] in words and rest & _MEASURES and rest <= _MEASURES | _QUALIFIERS:
                other = _counterpart(column, by_words, [side])
                if other is not None:
                    found.setdefault(column, other)
    return found


def _is_gap(column: str) -> bool:
    words = set(words_of(column))
    sides = {"chosen", "rejected"}
    named = words & {"margin", "margins"} or (words & _GAPS and words & _MEASURES)
    return bool(named) and words <= _GAPS | _MEASURES | _QUALIFIERS | sides and len(words & sides) != 1


def _may_be_signed(column: str) -> bool:
    words = set(words_of(column))
    if not words or words & {"id", "ids", "index"}:
        return False
    return words <= _GAPS | {"ratio"} or "preference" in words or ("ratio" in words and bool(words & _MEASURES))


def _may_be_one_sided(column: str, sides: Iterable[tuple[str, str]]) -> bool:
    own = next(iter(sides))
    telling = _TELLING | {word for word in own if len(word) > 2}
    return any(word in telling for word in words_of(column))


def _one_sided_entries(leaves: Leaves, sides: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Columns with an entry inside, at any depth, that is named like one response; and that entry."""
    for column, *inside in leaves:
        for depth, step in enumerate(inside, start=1):
            if isinstance(step, str) and _may_be_one_sided(step, sides):
                yield str(column), ".".join(map(str, inside[:depth]))


def _copied(value: Any, row: Row, pair: Pair, reading: Reading) -> str | None:
    for column, response in ((reading.chosen_column, pair.chosen), (reading.rejected_column, pair.rejected)):
        last = response[-1].get("content") if isinstance(response, list) else response
        if value and isinstance(value, str | list) and value in (row.values[column], response, last):
            return column
    return None


def _by_words(columns: Iterable[str]) -> dict[tuple[str, ...], str]:
    return {words_of(column): column for column in columns}
