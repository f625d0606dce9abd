"""A dataset's pairs one after the other, its bad rows collected and reported together."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from trl_attribution.errors import DataError
from trl_attribution.pairs.columns import format_of
from trl_attribution.pairs.examples import OwnResponses, form_of_example, read_example
from trl_attribution.pairs.faults import UNTAUGHT, RowFault, SkippedRow
from trl_attribution.pairs.formats import LAYOUTS, Form, Pair, Reading, form_of, read_pair
from trl_attribution.pairs.images import IMAGE_COLUMNS, has_images
from trl_attribution.pairs.images import SHOWN as IMAGE_SHOWN
from trl_attribution.pairs.layouts import in_trl_form, recognized
from trl_attribution.pairs.rows import Row, RowSource, open_rows
from trl_attribution.pairs.units import Units, by_group, by_label
from trl_attribution.pairs.unsupported import refuse_images, refuse_unsupported
from trl_attribution.utils.kinds import EXAMPLES, Kind
from trl_attribution.utils.text import MOST_SHOWN, printable, some_lines, tally

if TYPE_CHECKING:
    from datasets import Dataset

_PEEK_ROWS = 100
_OTHER_NAMES = {
    "prompt": ("instruction", "question", "query", "input", "context", "problem", "conversation", "messages"),
    "chosen": ("preferred", "accepted", "winner", "better", "positive", "win", "response_chosen", "output_1"),
    "rejected": ("dispreferred", "refused", "loser", "worse", "negative", "lose", "response_rejected", "output_2"),
}
_PROMPT_NAMES = ("prompt", "prompts", "instructions", "user_prompt", *_OTHER_NAMES["prompt"])
_IN_CHAT = " Where it is asked as a chat message, add --format alpaca too."
_FEW_WORDS = 3
_GROUPED: dict[Kind, Callable[[Iterable[Row], Reading], Units]] = {"kto": by_label, "rollouts": by_group}
"""Kinds of examples that may have several rows, and how these are found."""


class PairReader:
    """The pairs of a dataset, in row order; can be iterated again from the start.

    With ``on_bad_row="error"`` iteration stops yielding at the first bad row, reads the rest for its faults, and
    raises one ``DataError`` that lists the first ten. With ``"skip"`` they are left out and kept in ``skipped``.

    Args:
        dataset: whatever ``open_rows`` opens.
        reading: column names, format, split and what to do about bad rows.

    Raises:
        DataError: the dataset cannot be opened, is empty, or lacks a column.
    """

    def __init__(
        self,
        dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | RowSource,
        reading: Reading | None = None,
    ) -> None:
        self.reading = reading or Reading()
        self.source: RowSource = open_rows(dataset, self.reading.split)
        self.skipped: list[SkippedRow] = []
        opened = iter(self.source)
        head = list(islice(opened, _PEEK_ROWS))
        if not head:
            raise DataError(f"{self.source.name}: holds no rows. Give a dataset with at least one preference pair.")
        names = (self.source.features or {}).get(self.reading.source_column)
        self._source_names: list[str] = getattr(names, "names", [])
        self._columns = self.source.columns or list(dict.fromkeys(name for row in head for name in row.values))
        self.reading = recognized(self.reading, self._columns, head[0].values, self.source.name)
        if self.reading.format == "auto" and (found := format_of(dict.fromkeys(self._columns), self.reading)):
            self.reading = replace(self.reading, format=found)
        self.own: OwnResponses | None = None
        """M0's own responses, where they are at hand: the other side of examples that have only one."""
        refuse_unsupported(self.source.name, self._columns, self.reading)
        if self.kind == "pair":
            self._check_columns(head)
        self.form: Form | None = self._first_form(head)
        if self.has_images:
            refuse_images(self.source, self._columns, self.reading, self.form)
        if self.kind == "pair":
            self._check_overlooked_prompt(head)
        self._begun: Iterator[Row] | None = chain(head, opened)
        self._units: Units | None = None

    @property
    def kind(self) -> Kind:
        """What the dataset holds examples of: ``pair``, ``kto``, ``sft`` or ``rollouts``."""
        return self.reading.kind

    @property
    def has_images(self) -> bool:
        """Whether TRL takes it for a dataset of images; single rows may have none."""
        return has_images(self._columns)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of how rows became examples; known once they were read."""
        shown = (f"{IMAGE_SHOWN} stands for an image wherever pairs are shown",) if self.has_images else ()
        return shown if self._units is None else self._units.notes

    def rows(self) -> Iterator[Row]:
        """All rows of the source; the first time without reading those again that were looked at when it was opened.

        Rows that make up one example come as the first of them, with the others as its ``members``.
        """
        if self.kind in _GROUPED and self._units is None:
            self._units = _GROUPED[self.kind](self.source, self.reading)
        begun, self._begun = self._begun, None
        rows = iter(self.source) if begun is None else begun
        return rows if self._units is None else self._units.of(rows)

    @property
    def format(self) -> str:
        """What ``auto`` was resolved to."""
        if self.kind != "pair" or self.reading.format in LAYOUTS:
            return self.reading.format
        return "anthropic" if self.form is not None and self.form.anthropic else "trl"

    @property
    def conversational(self) -> bool | None:
        """Whether the rows are messages; None where there is no row to tell it by."""
        return None if self.form is None else self.form.conversational

    @property
    def resolved(self) -> Reading:
        """How the rows are read, what ``auto`` was resolved to in its place: to be stored with what is made of them."""
        return replace(self.reading, format=self.format)

    def ending_with(self, eos_token: str | None) -> Self:
        """From here on, plain responses are read without the ``eos_token`` that TRL would put at their end.

        Called wherever ids are made beside a tokenizer, in a run and offline, so that both give a pair the same one.
        """
        if self.form is not None and not self.form.conversational and not self.has_images:  # there TRL puts none
            self.reading = replace(self.reading, eos_token=eos_token)
        return self

    def __iter__(self) -> Iterator[Pair]:
        """Yield the good rows as pairs; as :meth:`rows_and_pairs`."""
        return (pair for _, pair in self.rows_and_pairs())

    def rows_and_pairs(self) -> Iterator[tuple[Row, Pair]]:
        """Yield the good rows, each with its pair.

        Raises:
            DataError: bad rows with ``on_bad_row="error"``, or not one good row.
        """
        self.skipped = []
        faults = _Faults(str(EXAMPLES[self.kind]))
        refuse = self.reading.on_bad_row == "error"
        good = 0
        for row, read in self.each():
            if isinstance(read, RowFault):
                harmless = read.reason in UNTAUGHT
                if not harmless:
                    faults.add(row, read)
                if harmless or not refuse:
                    members = row.members or (row,)
                    self.skipped += (SkippedRow(one.index, one.location, read.reason) for one in members)
                continue
            good += 1
            if not (refuse and faults.count):
                yield row, read
        if faults.count and (refuse or not good):
            raise DataError(faults.message(self.source.name, good + faults.count, skippable=good > 0))
        if not good:
            reasons = ", ".join(sorted({row.reason for row in self.skipped}))
            raise DataError(f"{self.source.name}: no example teaches anything ({reasons}: all of them).")

    def each(self) -> Iterator[tuple[Row, Pair | RowFault]]:
        """Every row of the source with its pair, or with what keeps it from being one."""
        return ((row, self._read(row)) for row in self.rows())

    def again(self, wanted: Collection[int], id_of: Callable[[int], str]) -> Iterator[tuple[Row, Pair]]:
        """The rows whose numbers are ``wanted``, in order; only these are read as pairs.

        Raises:
            DataError: a row is gone, or no longer holds the pair whose id is ``id_of(row)``.
        """
        left = len(wanted)
        for row in self.rows() if wanted else ():
            if row.index not in wanted:
                continue
            read = self._read(row)
            if isinstance(read, RowFault) or read.pair_id != id_of(row.index):
                raise DataError(f"{row.location} changed while it was read: start again.")
            yield row, read
            left -= 1
            if not left:
                return
        if left:
            raise DataError(f"{self.source.name} changed while it was read ({left:,} pairs are gone): start again.")

    def _read(self, row: Row) -> Pair | RowFault:
        try:
            return self.read(row)
        except RowFault as fault:
            return fault

    def read(self, row: Row) -> Pair:
        """One row of the source as a pair.

        Raises:
            RowFault: it is none.
        """
        default = "unknown" if self.reading.source_column in self._columns else "all"
        values = self._with_its_source_named(row.values) if self._source_names else row.values
        if self.kind != "pair":
            return read_example(replace(row, values=values), self.reading, self.form, default, self.own)
        if self.has_images and not has_images(values):  # a line may lack what others have
            values = {**values, **dict.fromkeys(set(IMAGE_COLUMNS) & set(self._columns))}
        values = in_trl_form(values, self.reading)
        return read_pair(values, self.reading, self.form, row.index, row.location, default, row.file)

    def _with_its_source_named(self, values: dict[str, Any]) -> dict[str, Any]:
        """The source of a ``ClassLabel`` column by its name, which such a column stores apart from its rows."""
        number = values.get(self.reading.source_column)
        name = self._source_names[number] if isinstance(number, int) and number >= 0 else None
        return {**values, self.reading.source_column: name}

    def _first_form(self, head: list[Row]) -> Form | None:
        for row in head:
            try:
                if self.kind != "pair":
                    return form_of_example(row.values, self.reading)
                return form_of(in_trl_form(row.values, self.reading), self.reading)
            except RowFault:
                continue
        return None

    def _check_columns(self, head: list[Row]) -> None:
        reading = self.reading
        needed = {"chosen": reading.chosen_column, "rejected": reading.rejected_column}
        if reading.prompt_column not in ("prompt", ""):
            needed["prompt"] = reading.prompt_column
        if reading.source_column != "source":
            needed["source"] = reading.source_column
        missing = {role: name for role, name in needed.items() if name not in self._columns}
        if missing:
            hints = [self._hint(role, name, head) for role, name in missing.items()]
            raise DataError(
                f"{self.source.name}: no column {' or '.join(repr(name) for name in missing.values())}. "
                f"Columns there: {printable(', '.join(self._columns))}. {' '.join(dict.fromkeys(hints))}"
            )

    def _check_overlooked_prompt(self, head: list[Row]) -> None:
        """Without a prompt column TRL takes what the responses share; a prompt under another name would be lost."""
        reading = self.reading
        if self.form is None or self.form.anthropic or reading.prompt_column == "" or reading.format in LAYOUTS:
            return
        if self.form.explicit and any(row.values.get(reading.prompt_column) for row in head):
            return
        rows = [row.values for row in head if isinstance(row.values.get(reading.chosen_column), str | list)]
        own = {reading.prompt_column, reading.chosen_column, reading.rejected_column, reading.source_column}
        alone = _mostly(_share_no_prompt(row[reading.chosen_column], row.get(reading.rejected_column)) for row in rows)
        for name in self._columns:
            if name in own or not (name.lower() in _PROMPT_NAMES or (alone and _reads_like_prompts(rows, name))):
                continue
            if _mostly(_is_outside(row.get(name), row[reading.chosen_column]) for row in rows):
                shown = printable(name)
                lack = "no column 'prompt'" if not self.form.explicit else f"no prompt in '{reading.prompt_column}'"
                raise DataError(
                    f"{self.source.name}: {lack}, but '{shown}' looks like one and is not inside the "
                    f"responses. Add --prompt-column {shown} (Reading(prompt_column='{shown}')), or --prompt-column '' "
                    f"if the responses do contain their prompt or have none.{_IN_CHAT if self._is_text(rows) else ''}"
                )

    def _is_text(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        return all(isinstance(row[self.reading.chosen_column], str) for row in rows)

    def _hint(self, role: str, name: str, head: list[Row]) -> str:
        reading = self.reading
        taken = {reading.prompt_column, reading.chosen_column, reading.rejected_column, reading.source_column}
        texts = [column for column in self._columns if role == "source" or not _holds_ids(head, column)]
        lowered = {column.lower(): column for column in texts if column not in taken}
        close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
        close += [other for other in _OTHER_NAMES.get(role, ()) if other in lowered]
        close += [column for column in lowered if role in column]
        option = f"--{role}-column"
        if not close and len(texts) < len(self._columns):
            return "Token ids are no text: give the dataset that they were made from, with the texts of its responses."
        if not close:
            return f"Name the right one with {option}."
        found = printable(lowered[close[0]])
        return f"Did you mean '{found}'? Then add {option} {found} (Reading({role}_column='{found}'))."


def _mostly(tests: Iterable[bool]) -> bool:
    found = list(tests)
    return 2 * sum(found) > len(found)


def _share_no_prompt(chosen: Any, rejected: Any) -> bool:
    """Whether two texts begin too differently to hold one prompt."""
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        return False
    words = zip(chosen.split(), rejected.split(), strict=False)
    return len(list(takewhile(lambda both: both[0] == both[1], words))) < _FEW_WORDS


def _reads_like_prompts(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a column holds sentences that mostly differ from row to row."""
    texts = [value for row in rows if isinstance(value := row.get(name), str) and len(value.split()) >= _FEW_WORDS]
    return 2 * len(texts) > len(rows) and 2 * len(set(texts)) > len(rows)


def _is_outside(prompt: Any, response: Any) -> bool:
    """Whether what may be a prompt is of the response's kind and not in it."""
    if not prompt or not isinstance(prompt, str | list) or isinstance(prompt, str) != isinstance(response, str):
        return False
    return (prompt.strip() if isinstance(prompt, str) else prompt[0]) not in response


def _holds_ids(head: list[Row], column: str) -> bool:
    value = next((value for row in head if (value := row.values.get(column)) is not None), None)
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


@dataclass
class _Faults:
    """Bad rows seen so far: all counted by reason, the first ten with their sentence."""

    what: str
    reasons: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.reasons.total()

    def add(self, row: Row, fault: RowFault) -> None:
        self.reasons[fault.reason] += 1
        if len(self.lines) < MOST_SHOWN:
            self.lines.append(f"{row.location}: column '{fault.field}' {fault.detail}")

    def message(self, name: str, rows: int, skippable: bool) -> str:
        by_reason = tally(dict(self.reasons.most_common()))
        fix = (
            "Mend these rows, or leave them out: --on-bad-row skip, or on_bad_row='skip' of Reading."
            if skippable
            else "Not one row can be read: check the column names and the format."
        )
        head = f"{name}: {self.count} of {rows} rows cannot be read as {self.what} ({by_reason})."
        return "\n".join([head, *some_lines(self.lines, self.count), fix])
