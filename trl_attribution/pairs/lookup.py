"""Pairs of a dataset by their ids: what an audit says of them is read beside their texts, of which it stores none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import AttributionError
from trl_attribution.pairs.examples import OwnResponses
from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.formats import Pair, Reading
from trl_attribution.pairs.reader import PairReader
from trl_attribution.pairs.rows import Row, RowSource

if TYPE_CHECKING:
    from datasets import Dataset


def pairs_by_id(
    dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | RowSource,
    reading: Reading,
    pair_ids: Iterable[str],
    own: OwnResponses | None = None,
) -> dict[str, Pair]:
    """The pairs with the given ids, as far as the dataset holds them."""
    wanted = set(pair_ids)
    found: dict[str, Pair] = {}
    for pair in _reader(dataset, reading, own):
        if pair.pair_id in wanted:
            found.setdefault(pair.pair_id, pair)
            if len(found) == len(wanted):
                break
    return found


def pairs_at_rows(
    dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | RowSource,
    reading: Reading,
    rows: Mapping[str, int],
    own: OwnResponses | None = None,
) -> dict[str, Pair]:
    """The pairs with the given ids, looked for at the ``rows`` where they were audited, then everywhere.

    Examples that have one side only are given M0's ``own`` responses as the other, where these are at hand.

    Only the rows asked for are made into pairs, so that a large dataset takes as long as it takes to read.
    """
    found = _plainly_read(dataset, reading, rows, own)
    wanted = {row: pair_id for pair_id, row in rows.items() if pair_id not in found}
    if not wanted:
        return found
    reader = _reader(dataset, reading, own)
    last = max(wanted, default=-1)
    for row in reader.rows():
        if row.index > last:
            break
        if row.index in wanted:
            try:
                pair = reader.read(row)
            except RowFault:
                continue  # the dataset is not what it was: the pair may stand elsewhere
            if pair.pair_id == wanted[row.index]:
                found[pair.pair_id] = pair
    missing = rows.keys() - found.keys()
    return found | pairs_by_id(dataset, reading, missing, own) if missing else found


def _reader(dataset: Any, reading: Reading, own: OwnResponses | None) -> PairReader:
    reader = PairReader(dataset, replace(reading, on_bad_row="skip"))
    reader.own = own
    return reader


@dataclass(frozen=True)
class _PlainLines:
    """The rows of a JSONL file without the types that ``datasets`` gives them, whose import takes a second."""

    path: Path
    kind: str = "jsonl"
    columns: list[str] | None = None
    features: None = None
    num_rows: int | None = None

    @property
    def name(self) -> str:
        """The file's."""
        return str(self.path)

    def __iter__(self) -> Iterator[Row]:
        with self.path.open("rb") as file:
            filled = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            for index, (number, line) in enumerate(filled):
                values = json.loads(line)
                if isinstance(values, dict):
                    yield Row(index, f"{self.path}:{number}", values, file=self.path, line=number)


def _plainly_read(dataset: Any, reading: Reading, rows: Mapping[str, int], own: OwnResponses | None) -> dict[str, Pair]:
    """Those of the pairs that stand in a plain JSONL file as they were audited: their ids tell."""
    if not isinstance(dataset, str | Path) or Path(dataset).suffix != ".jsonl" or not Path(dataset).is_file():
        return {}
    last, found = max(rows.values(), default=-1), {}
    wanted = set(rows.values())
    try:
        reader = _reader(_PlainLines(Path(dataset)), reading, own)
        for row in reader.rows():
            if row.index > last:
                break
            if row.index in wanted:
                pair = reader.read(row)
                found[pair.pair_id] = pair
    except (RowFault, AttributionError, OSError, ValueError, RecursionError):
        return {}
    return {pair_id: found[pair_id] for pair_id in rows if pair_id in found}
