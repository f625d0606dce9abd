"""Rows that make up one example: both labels of a KTO prompt, the responses of a rollout group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trl_attribution.pairs.columns import column_of, label_of, prompt_of
from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.formats import Reading
from trl_attribution.pairs.identity import KEY_BYTES, prompt_key
from trl_attribution.pairs.rows import Row
from trl_attribution.utils.arrays import Integers
from trl_attribution.utils.text import counted

_NO_LABEL = 2


@dataclass(frozen=True)
class Units:
    """Which rows of a dataset belong together, found in one pass; memory holds 16 bytes a row afterwards."""

    unit_of: Integers
    """[R], a number that rows of one example share; -1 for rows by themselves."""
    sizes: Integers
    """Of each unit, how many rows it has."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the rows were grouped."""

    @classmethod
    def none(cls) -> Units:
        """Every row stands by itself."""
        return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))

    def of(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows as examples, each where its last row stands; those of an unfinished one are held in memory."""
        waiting: dict[int, list[Row]] = {}
        for row in rows:
            unit = int(self.unit_of[row.index]) if row.index < len(self.unit_of) else -1
            if unit < 0:
                yield row
                continue
            members = waiting.setdefault(unit, [])
            members.append(row)
            if len(members) == self.sizes[unit]:
                del waiting[unit]
                yield replace(members[0], members=tuple(members)) if len(members) > 1 else row


def by_label(rows: Iterable[Row], reading: Reading) -> Units:
    """Examples of KTO rows.

    Where a prompt has as many desirable as undesirable completions, the first of these is an example with the first of
    those, and so on: what TRL's ``unpair_preference_dataset`` makes of pairs is read as these pairs. Where there are
    more of one label, all rows of the prompt are one example. A row whose prompt has one label only stands by itself.
    """
    keys, labels = bytearray(), bytearray()
    for row in rows:
        keys += _key(row, reading)
        try:
            labels.append(label_of(row.values, reading))
        except RowFault:
            labels.append(_NO_LABEL)
    prompt = _numbers(keys)
    label = np.frombuffer(bytes(labels), dtype=np.uint8)
    least = prompt.max(initial=-1) + 1
    bad, good = (np.bincount(prompt[label == which], minlength=least) for which in (0, 1))
    both = ((bad > 0) & (good > 0))[prompt] & (label != _NO_LABEL)
    place = np.where((bad == good)[prompt], _ranks(2 * prompt + (label == 1)), 0)
    return _units(prompt, place, both)


def by_group(rows: Iterable[Row], reading: Reading) -> Units:
    """Examples of rollout rows: those of one prompt, step and group.

    A prompt may come up several times. Where it has a multiple of as many rows as most have, they are as many groups,
    in the order of the rows; any other number of rows is one group, of which some rows may be lost.
    """
    keys = bytearray()
    steps: dict[Any, None] = {}
    for row in rows:
        step, group = (row.values.get(column_of(role, row.values, reading)) for role in ("step", "group"))
        keys += _key(row, reading, step, group)
        if step is not None:
            steps.setdefault(step)
    group_of = _numbers(keys)
    counts = np.bincount(group_of)
    size = int(np.bincount(counts).argmax()) if len(counts) else 1
    even = counts % size == 0
    place = np.where(even[group_of], _ranks(group_of) // size, 0)
    uneven = int((~even).sum())
    notes = [*_step_notes(list(steps)), *([_uneven_note(uneven, size)] if uneven else [])]
    return replace(_units(group_of, place, np.ones(len(group_of), dtype=np.bool_)), notes=tuple(notes))


def _key(row: Row, reading: Reading, *further: Any) -> bytes:
    values = row.values
    try:
        prompt = prompt_of(values, reading)
    except RowFault:
        prompt = repr(values)  # reading the row says what is wrong with it
    return prompt_key(prompt, values.get("tools"), values.get("chat_template_kwargs"), *further)


def _numbers(keys: bytearray) -> Integers:
    """Equal keys get equal numbers."""
    _, numbers = np.unique(np.frombuffer(bytes(keys), dtype=f"V{KEY_BYTES}"), return_inverse=True)
    return numbers.astype(np.int64)


def _units(group: Integers, place: Integers, grouped: npt.NDArray[np.bool_]) -> Units:
    """Rows that agree in ``group`` and ``place``, as far as they are ``grouped``."""
    unit = np.full(len(group), -1, dtype=np.int64)
    _, unit[grouped] = np.unique(group[grouped] * (len(group) + 1) + place[grouped], return_inverse=True)
    return Units(unit, np.bincount(unit[grouped]))


def _ranks(groups: Integers) -> Integers:
    """Of each entry, how many equal ones stand before it."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(groups) else np.empty(0, dtype=np.int64)
    lengths = np.diff(np.r_[starts, len(groups)])
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, lengths)
    return ranks


def _step_notes(steps: Sequence[Any]) -> Iterator[str]:
    whole = sorted(step for step in steps if isinstance(step, int))
    gaps = np.diff(whole)
    if len(gaps) and gaps.min() > 1:
        yield (
            f"the rollouts are of every {int(gaps.min())}th step: with logging_steps above 1, TRL keeps the "
            "completions of the last one of these steps only. What the others taught is not here"
        )


def _uneven_note(uneven: int, size: int) -> str:
    groups = counted(uneven, "rollout group")
    return (
        f"{groups} of other sizes than {size}, as most have: rows were lost, or an evaluation at the same step has "
        "overwritten a file. They are read as they are"
    )
