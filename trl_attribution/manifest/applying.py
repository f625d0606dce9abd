"""Which rows a manifest touches, and the dataset with them filtered or flipped; everything else stays as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trl_attribution.dataset_io import Row, RowSource
from trl_attribution.errors import ManifestError
from trl_attribution.manifest.swapping import swap_values
from trl_attribution.pairs import FingerprintBuilder, Pair, PairReader, Reading

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_attribution.manifest.manifest import Manifest

SHOWN = 10


@dataclass(frozen=True)
class ApplyReport:
    """What applying a manifest did to a dataset, in rows."""

    rows_in: int
    rows_out: int
    filtered: int
    flipped: int
    pairs: int
    """Different listed pairs that were filtered or flipped."""
    duplicates: int
    """Rows among ``filtered`` or ``flipped`` beyond the first of their pair."""
    missing: int
    """Listed pairs that the dataset lacks; more than 0 only where that was allowed."""
    opposed: int
    """Rows that hold a flipped pair the other way round and stay: the flip now agrees with them."""
    unreadable: int
    """Rows that are no pairs; they were carried over as they are."""
    same_dataset: bool
    """Whether the pairs are those that were audited, in the same order."""


@dataclass(frozen=True)
class Plan:
    """The rows to filter or to flip, found in one pass before anything is written."""

    action: str
    touched: npt.NDArray[np.bool_]
    """``[rows_in]``: which rows the action falls on."""
    report: ApplyReport
    source: RowSource
    reading: Reading


class _Scan:
    """One pass over the pairs of a dataset: which listed pairs it holds, and in which rows."""

    def __init__(self, manifest: Manifest, undo: bool) -> None:
        self._undo = undo
        self._row_of = {decision.pair_id: decision.row for decision in manifest.decisions}
        self._acted_on = {decision.pair_id for decision in manifest.decisions if decision.action != "keep"}
        self._found: set[str] = set()
        self.rows: list[int] = []
        self.opposed = 0
        self.last_row = -1
        self.fingerprint = FingerprintBuilder()
        """Of the audited dataset, if ``rows`` are the rows that were flipped (undo) or none were."""
        self.listed_rows: list[int] = []
        """Those of ``rows`` that the decisions themselves name."""
        self.fingerprint_by_listed_rows = FingerprintBuilder()

    def add(self, pair: Pair) -> None:
        """Note one pair; ``original`` is the id it had in the audited dataset, if it is one of those acted on."""
        original, other = (pair.flipped_id, pair.pair_id) if self._undo else (pair.pair_id, pair.flipped_id)
        acted = original in self._acted_on
        listed = acted and self._row_of[original] == pair.row
        if acted:
            self.rows.append(pair.row)
        elif other in self._acted_on:
            self.opposed += 1
        if listed:
            self.listed_rows.append(pair.row)
        now = original if acted else pair.pair_id
        if now in self._row_of and (acted or now not in self._acted_on):
            self._found.add(now)
        self.last_row = pair.row
        self.fingerprint.add(now)
        self.fingerprint_by_listed_rows.add(original if listed else pair.pair_id)

    @property
    def missing(self) -> list[str]:
        return [pair_id for pair_id in self._row_of if pair_id not in self._found]

    @property
    def pairs(self) -> int:
        return len(self._found & self._acted_on)


def make_plan(
    manifest: Manifest, dataset: Any, reading: Reading, undo: bool = False, allow_missing: bool = False
) -> Plan:
    """Find the rows that ``manifest`` falls on, or refuse; nothing is written.

    Args:
        manifest: the decisions.
        dataset: whatever ``open_rows`` opens.
        reading: how its rows become pairs.
        undo: find the rows that were flipped by this manifest instead.
        allow_missing: go on where the dataset lacks listed pairs.

    Raises:
        ManifestError: the dataset lacks listed pairs, or is not this manifest's dataset flipped (undo).
        DataError: the dataset cannot be read as pairs.
    """
    action = manifest.header.action
    if undo and action != "flip":
        raise ManifestError(f"a {action} manifest cannot be undone, its rows are gone: go back to the original dataset")
    reader = PairReader(dataset, reading)
    scan = _Scan(manifest, undo)
    for pair in reader:
        scan.add(pair)
    if scan.missing and not allow_missing:
        raise ManifestError(_lacks(reader.source.name, scan, len(manifest.decisions), undo))
    rows, same = _rows_of_the_audited(scan, manifest.header.dataset_fingerprint, undo)
    if undo and not same and not allow_missing:
        raise ManifestError(
            f"{reader.source.name}: undoing the flips does not give back the dataset that was audited (fingerprint "
            f"{manifest.header.dataset_fingerprint[:16]}...). Rows were added, dropped, moved or changed since, or a "
            "flipped pair stood in it several times and both ways round. Go back to the original dataset, or accept "
            "that with --allow-missing."
        )
    last_row = max([scan.last_row, *(row.row for row in reader.skipped[-1:])])
    touched = np.zeros(last_row + 1, dtype=np.bool_)
    touched[rows] = True
    return Plan(action, touched, _report(action, scan, rows, len(touched), reader, same), reader.source, reading)


def _rows_of_the_audited(scan: _Scan, fingerprint: str, undo: bool) -> tuple[list[int], bool]:
    """The rows to act on, and whether they are those of the very dataset that was audited.

    A pair that stood both ways round before it was flipped stands twice the same way afterwards. Where undoing both
    gives another dataset than the audited one, the rows that the decisions name tell the two apart.
    """
    same = scan.fingerprint.hexdigest() == fingerprint
    if undo and not same and scan.fingerprint_by_listed_rows.hexdigest() == fingerprint:
        return scan.listed_rows, True
    return scan.rows, same


def _report(
    action: str, scan: _Scan, rows: list[int], rows_in: int, reader: PairReader, same_dataset: bool
) -> ApplyReport:
    filtered = len(rows) if action == "filter" else 0
    return ApplyReport(
        rows_in=rows_in,
        rows_out=rows_in - filtered,
        filtered=filtered,
        flipped=len(rows) - filtered,
        pairs=scan.pairs,
        duplicates=len(rows) - scan.pairs,
        missing=len(scan.missing),
        opposed=scan.opposed,
        unreadable=len(reader.skipped),
        same_dataset=same_dataset,
    )


def planned_rows(plan: Plan) -> Iterator[Row]:
    """The rows of the dataset after the plan, read from its source once more.

    Raises:
        ManifestError: the dataset has changed since the plan was made.
    """
    chosen, rejected = plan.reading.chosen_column, plan.reading.rejected_column
    count = 0
    for count, row in enumerate(plan.source, start=1):
        if count > len(plan.touched):
            break
        if not plan.touched[count - 1]:
            yield row
        elif plan.action == "flip":
            yield _flipped(row, chosen, rejected)
    if count != len(plan.touched):
        raise ManifestError(f"{plan.source.name} changed while it was being read: apply the manifest again")


def _flipped(row: Row, chosen: str, rejected: str) -> Row:
    raw = None if row.raw is None else swap_values(row.raw, chosen, rejected)
    return replace(row, values=_swapped(row.values, chosen, rejected), raw=raw)


def _swapped(values: Mapping[str, Any], chosen: str, rejected: str) -> dict[str, Any]:
    return {**values, chosen: values[rejected], rejected: values[chosen]}


def apply_to_list(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A new list of new dicts; the values are those of the rows given."""
    chosen, rejected = plan.reading.chosen_column, plan.reading.rejected_column
    if plan.action == "filter":
        return [dict(row) for row, touched in zip(rows, plan.touched, strict=True) if not touched]
    return [
        _swapped(row, chosen, rejected) if touched else dict(row)
        for row, touched in zip(rows, plan.touched, strict=True)
    ]


def apply_to_dataset(plan: Plan, dataset: Dataset) -> Dataset:
    """A new dataset with the same features and format; columns are exchanged in Arrow, batch by batch."""
    if not plan.touched.any():
        return dataset
    if plan.action == "filter":
        return dataset.select(np.flatnonzero(~plan.touched))
    return _flip_dataset(dataset, plan.touched, plan.reading.chosen_column, plan.reading.rejected_column)


def _flip_dataset(dataset: Dataset, touched: npt.NDArray[np.bool_], chosen: str, rejected: str) -> Dataset:
    import pyarrow as pa

    def flip(batch: Any, rows: Sequence[int]) -> Any:
        count = len(rows)
        moved = np.arange(count) + np.where(touched[np.asarray(rows)], count, 0)
        columns = {name: batch[name].combine_chunks() for name in (chosen, rejected)}
        both = pa.concat_arrays([columns[chosen], columns[rejected]])
        for name, places in ((chosen, moved), (rejected, (moved + count) % (2 * count))):
            batch = batch.set_column(batch.column_names.index(name), name, both.take(pa.array(places)))
        return batch

    look = dataset.format
    with _without_progress_bars():
        flipped = dataset.with_format("arrow").map(
            flip, with_indices=True, batched=True, features=dataset.features, load_from_cache_file=False
        )
    flipped.set_format(look["type"], look["columns"], look["output_all_columns"], **look["format_kwargs"])
    return flipped


def check_types(plan: Plan) -> None:
    """A typed format holds chosen and rejected in columns of fixed types: exchanging them needs equal types.

    Raises:
        ManifestError: they differ.
    """
    features = plan.source.features
    if plan.action != "flip" or features is None:
        return
    chosen, rejected = (features[name] for name in (plan.reading.chosen_column, plan.reading.rejected_column))
    if chosen != rejected:
        raise ManifestError(
            f"{plan.source.name}: columns '{plan.reading.chosen_column}' and '{plan.reading.rejected_column}' have "
            f"different types ({chosen} and {rejected}), so their values cannot be exchanged. Give both the same type "
            "(Dataset.cast_column), or convert the dataset to JSONL."
        )


def check_output_apart(source: object, output: Path) -> None:
    """Refuse to write over what is being read.

    Raises:
        ManifestError: the output is the input, lies in it, or holds it.
    """
    if not isinstance(source, str | Path) or not Path(source).expanduser().exists():
        return
    given, target = Path(source).expanduser().resolve(), output.expanduser().resolve()
    same = target.exists() and target.samefile(given)
    if same or target == given or given in target.parents or target in given.parents:
        raise ManifestError(f"the output {output} would overwrite the input {source}: choose another output path")


def _lacks(name: str, scan: _Scan, listed: int, undo: bool) -> str:
    missing = scan.missing
    shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
    hint = "Is it the dataset that was audited?"
    if scan.opposed and undo:
        hint = f"{scan.opposed} rows hold listed pairs that are not flipped: was this manifest undone already?"
    elif scan.opposed:
        hint = f"{scan.opposed} rows hold listed pairs the other way round: was this manifest applied already?"
    return (
        f"{name}: lacks {len(missing)} of the {listed} pairs that the manifest lists: {shown}. {hint} "
        "To go on with the pairs that are there, allow missing ones (--allow-missing)."
    )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """The library datasets shows a bar for every map; the caller's choice comes back afterwards."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()
