"""Which rows a manifest touches, and the dataset with them filtered, flipped or weighed; all else stays as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from trl_attribution.errors import ManifestError
from trl_attribution.manifest.columns import ColumnInspector
from trl_attribution.manifest.config import ApplyOptions
from trl_attribution.manifest.kinds import check_kind, turning_of
from trl_attribution.manifest.swapping import Turning
from trl_attribution.manifest.tally import ApplyReport, SourceTally
from trl_attribution.manifest.weights import Weighing, pair_weights
from trl_attribution.pairs import FingerprintBuilder, Pair, PairReader, Reading
from trl_attribution.pairs.rows import Row, RowSource, open_rows
from trl_attribution.pairs.rows.files import FolderRows
from trl_attribution.pairs.rows.typed import without_progress_bars
from trl_attribution.utils.text import some

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_attribution.manifest.manifest import Manifest

_D = TypeVar("_D", bound="Dataset | Sequence[Mapping[str, Any]]")
KEEP, FILTER, FLIP, ZERO, WEIGH = 0, 1, 2, 3, 4
_DONE = {FILTER: "filtered", FLIP: "flipped", WEIGH: "weighed"}


@dataclass(frozen=True)
class Plan:
    """The rows to filter or to flip, found in one pass before anything is written."""

    actions: npt.NDArray[np.int8]
    """``[rows_in]``: KEEP, FILTER, FLIP, ZERO or WEIGH."""
    turning: Turning
    """What changes in a row that is flipped."""
    report: ApplyReport
    source: RowSource
    reading: Reading
    starts: tuple[int, ...]
    """The row that each file of a folder begins with; (0,) for anything else."""
    weighing: Weighing | None = None
    """The column of weights that every row gets or loses."""

    def like(self, source: RowSource) -> RowSource:
        """What the rows of ``source`` come out like: their columns and types."""
        return source if self.weighing is None else self.weighing.like(source)

    @property
    def flips(self) -> bool:
        """Whether any row changes."""
        return bool(self.changed.any())

    @property
    def changed(self) -> npt.NDArray[np.bool_]:
        """``[rows_in]``: which rows are turned."""
        return np.isin(self.actions, (FLIP, ZERO))


class _Scan:
    """One pass over the pairs of a dataset: which listed pairs it holds, and in which rows."""

    def __init__(self, manifest: Manifest, undo: bool, filtered: int, weights: Mapping[str, float]) -> None:
        self._undo = undo
        self.hits = 0
        """How often a pair that is acted on was found."""
        self._row_of = {decision.pair_id: decision.row for decision in manifest.decisions}
        codes = {"filter": filtered, "flip": FLIP}
        self._acts = {one.pair_id: codes[one.action] for one in manifest.decisions if one.action != "keep"}
        self._weights = weights
        self.may_flip = FLIP in self._acts.values()
        self._found: set[str] = set()
        self.rows: list[int] = []
        self.codes = bytearray()
        """What happens to each of ``rows``."""
        self.weights: list[float] = []
        """Of each of ``rows``; 1 where nothing is weighed."""
        self.opposed = 0
        self.last_row = -1
        self.fingerprint = FingerprintBuilder()
        """Of the audited dataset, if ``rows`` are the rows that were flipped (undo) or none were."""
        self.listed_rows: list[int] = []
        """Those of ``rows`` that the decisions themselves name."""
        self.fingerprint_by_listed_rows = FingerprintBuilder()

    def add(self, pair: Pair) -> int:
        """Note one pair, and say what happens to its row."""
        # ``original`` is the id that the pair had in the audited dataset, if it is one of those acted on.
        original, other = (pair.flipped_id, pair.pair_id) if self._undo else (pair.pair_id, pair.flipped_id)
        code = self._acts.get(original, KEEP)
        listed = code != KEEP and self._row_of[original] == pair.row
        if code != KEEP:
            self.hits += 1
            self.rows.extend(pair.all_rows)
            self.codes.extend([code] * len(pair.all_rows))
            self.weights.extend([self._weights.get(original, 1.0)] * len(pair.all_rows))
        elif other in self._acts:
            self.opposed += 1
        if listed:
            self.listed_rows.extend(pair.all_rows)
        now = original if code != KEEP else pair.pair_id
        if now in self._row_of and (code != KEEP or now not in self._acts):
            self._found.add(now)
        self.last_row = max(self.last_row, *pair.all_rows)
        self.fingerprint.add(now)
        self.fingerprint_by_listed_rows.add(original if listed else pair.pair_id)
        return code

    @property
    def missing(self) -> list[str]:
        return [pair_id for pair_id in self._row_of if pair_id not in self._found]

    @property
    def pairs(self) -> int:
        return len(self._found & self._acts.keys())


def make_plan(manifest: Manifest, dataset: Any, reading: Reading, options: ApplyOptions | None = None) -> Plan:
    """Find the rows that ``manifest`` falls on, or refuse; nothing is written.

    Args:
        manifest: the decisions.
        dataset: whatever ``open_rows`` opens.
        reading: how its rows become pairs.
        options: whether to undo, to go on without listed pairs, and which columns change with a flipped pair.

    Raises:
        ManifestError: the dataset lacks listed pairs, is not this manifest's dataset flipped (undo), has a column
            that looks as if it belonged to one response and is not declared, or there is nothing to weigh.
        DataError: the dataset cannot be read as pairs.
    """
    options = options or ApplyOptions()
    weights = pair_weights(manifest, options.weight_floor) if options.action == "weight" else None
    turns_back = options.undo and weights is None
    if turns_back and any(decision.action == "filter" for decision in manifest.decisions):
        raise ManifestError(
            f"a {manifest.header.action} manifest cannot be undone, its rows are gone: go back to the original dataset"
        )
    source = open_rows(dataset, reading.split)
    reader = PairReader(source, reading)
    check_kind(manifest, reader, options)
    done = ZERO if options.zero_advantages else FILTER if weights is None else WEIGH
    scan, tally = _Scan(manifest, turns_back, done, weights or {}), SourceTally()
    inspector = ColumnInspector(reading, options.columns)
    columns: dict[str, None] = {}
    for row, pair in reader.rows_and_pairs():
        code = scan.add(pair)
        tally.add(pair.source, len(pair.all_rows), _DONE.get(code))
        if pair.kind != "pair":
            columns.update(dict.fromkeys(row.values))
        elif code == FLIP:
            inspector.see(row, pair, turned=options.undo)
        elif scan.may_flip:
            inspector.compare(row, pair)
    if scan.missing and not options.allow_missing:
        raise ManifestError(_lacks(source.name, scan, len(manifest.decisions), turns_back))
    rows, same = _rows_of_the_audited(scan, manifest.header.dataset_fingerprint, turns_back)
    if turns_back and not same and not options.allow_missing:
        raise ManifestError(
            f"{source.name}: undoing the flips does not give back the dataset that was audited (fingerprint "
            f"{manifest.header.dataset_fingerprint[:16]}...). Rows were added, dropped, moved or changed since, or a "
            "flipped pair stood in it several times and both ways round. Go back to the original dataset, or accept "
            "that with --allow-missing."
        )
    last_row = max([scan.last_row, *(row.row for row in reader.skipped)])
    actions = np.zeros(last_row + 1, dtype=np.int8)
    actions[rows] = FLIP if turns_back else np.frombuffer(bytes(scan.codes), dtype=np.int8)
    is_pairs = reader.kind == "pair"
    turning = inspector.turning(source.name, source.columns) if is_pairs else turning_of(reader, columns, options)
    report = _report(scan, actions, reader, same, turning, options, tally)
    weighing = None if weights is None else _weighing(scan, actions, options)
    starts = tuple(source.starts) if isinstance(source, FolderRows) else (0,)
    return Plan(actions, turning, report, source, reading, starts, weighing)


def _weighing(scan: _Scan, actions: npt.NDArray[np.int8], options: ApplyOptions) -> Weighing:
    """The weights of all rows, every one of which changes with them."""
    weights = np.ones(len(actions))
    weights[scan.rows] = scan.weights
    actions[:] = WEIGH
    return Weighing(options.weight_column, weights, options.undo)


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
    scan: _Scan,
    actions: npt.NDArray[np.int8],
    reader: PairReader,
    same_dataset: bool,
    turning: Turning,
    options: ApplyOptions,
    tally: SourceTally,
) -> ApplyReport:
    filtered, flipped = int((actions == FILTER).sum()), int((actions == FLIP).sum())
    return ApplyReport(
        rows_in=len(actions),
        rows_out=len(actions) - filtered,
        filtered=filtered,
        flipped=flipped,
        pairs=scan.pairs,
        duplicates=scan.hits - scan.pairs,
        zeroed=int((actions == ZERO).sum()),
        weighed=int((actions == WEIGH).sum()),
        weighed_as=round(sum(scan.weights), 4) if options.action == "weight" else 0.0,
        weight_column=options.weight_column if options.action == "weight" else "",
        missing=len(scan.missing),
        opposed=scan.opposed,
        unreadable=len(reader.skipped),
        same_dataset=same_dataset,
        swapped_columns=turning.swaps[1:],
        negated_columns=turning.negations,
        left_columns=options.columns.leave,
        sources=tally.changes(),
    )


def planned_rows(plan: Plan, part: int | None = None) -> Iterator[Row]:
    """The rows of the dataset after the plan, read from its source once more; or those of one file of a folder.

    Raises:
        ManifestError: the dataset has changed since the plan was made.
    """
    source, actions = (plan.source, plan.actions) if part is None else part_of(plan, part)
    start = 0 if part is None else plan.starts[part]
    count = 0
    for count, row in enumerate(source, start=1):
        if count > len(actions):
            break
        action = actions[count - 1]
        if plan.weighing is not None:
            yield plan.weighing.row(row, start + count - 1)
        elif action >= FLIP:
            yield _turned(plan.turning, row)
        elif action == KEEP:
            yield row
    if count != len(actions):
        raise ManifestError(f"{plan.source.name} changed while it was being read: apply the manifest again")


def _turned(turning: Turning, row: Row) -> Row:
    """The row turned as its file has it, from which text is written, and as it is typed, for typed columns."""
    turned = turning.row(replace(row, values=row.stored))
    if row.raw is None:
        return turned
    return replace(turned, values=turning.values(row.values, row.location), written=turned.values)


def part_of(plan: Plan, part: int) -> tuple[RowSource, npt.NDArray[np.int8]]:
    """One file of a folder, and what happens to each of its rows."""
    ends = [*plan.starts[1:], len(plan.actions)]
    source = plan.source.parts[part] if isinstance(plan.source, FolderRows) else plan.source
    return source, plan.actions[plan.starts[part] : ends[part]]


def applied(manifest: Manifest, dataset: _D, reading: Reading, options: ApplyOptions) -> tuple[_D, ApplyReport]:
    """A dataset in memory with the decisions applied, and what was done; see :meth:`Manifest.apply`.

    Raises:
        ManifestError, DataError: as stated there.
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset | list):
        raise ManifestError(
            f"cannot apply a manifest to a {type(dataset).__name__} in memory. Give one split as a "
            "datasets.Dataset or a list of dicts, or use apply_file for files."
        )
    plan = make_plan(manifest, dataset, reading, options)
    check_types(plan)
    made = _applied_to_dataset(plan, dataset) if isinstance(dataset, Dataset) else _applied_to_list(plan, dataset)
    return made, plan.report  # type: ignore[return-value]  # of the type that was given


def _applied_to_list(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A new list of new dicts; the values are those of the rows given."""
    if plan.weighing is not None:
        return [plan.weighing.values(row, number, f"row {number}") for number, row in enumerate(rows)]
    return [
        plan.turning.values(row, f"row {number}") if action >= FLIP else dict(row)
        for number, (row, action) in enumerate(zip(rows, plan.actions, strict=True))
        if action != FILTER
    ]


def _applied_to_dataset(plan: Plan, dataset: Dataset) -> Dataset:
    """A new dataset with the same features and format; columns are exchanged in Arrow, batch by batch."""
    if plan.weighing is not None:
        return plan.weighing.dataset(dataset)
    turned = _flip_dataset(dataset, plan) if plan.flips else dataset
    filtered = plan.actions == FILTER
    return turned.select(np.flatnonzero(~filtered)) if filtered.any() else turned


def _flip_dataset(dataset: Dataset, plan: Plan) -> Dataset:
    import pyarrow as pa

    touched, turning = plan.changed, plan.turning

    def flip(batch: Any, rows: Sequence[int]) -> Any:
        count = len(rows)
        here = touched[np.asarray(rows)]
        moved = np.arange(count) + np.where(here, count, 0)
        for first, second in turning.swaps:
            columns = {name: batch[name].combine_chunks() for name in (first, second)}
            both = pa.concat_arrays([columns[first], columns[second]])
            for name, places in ((first, moved), (second, (moved + count) % (2 * count))):
                batch = batch.set_column(batch.column_names.index(name), name, both.take(pa.array(places)))
        for name in turning.singles:
            new = [
                turning.values({name: value}, f"row {row}")[name] if turn else value
                for value, row, turn in zip(batch[name].to_pylist(), rows, here, strict=True)
            ]
            batch = batch.set_column(batch.column_names.index(name), name, pa.array(new, batch[name].type))
        return batch

    look = dataset.format
    with without_progress_bars():
        flipped = dataset.with_format("arrow").map(
            flip, with_indices=True, batched=True, features=dataset.features, load_from_cache_file=False
        )
    flipped.set_format(look["type"], look["columns"], look["output_all_columns"], **look["format_kwargs"])
    return flipped


def check_types(plan: Plan) -> None:
    """A typed format holds its columns in fixed types: exchanging two needs equal ones, negating a signed one.

    Raises:
        ManifestError: they do not fit.
    """
    features = plan.source.features
    if not plan.flips or features is None:
        return
    for pair in plan.turning.swaps:
        first, second = (features[name] for name in pair)
        if first != second:
            raise ManifestError(
                f"{plan.source.name}: columns '{pair[0]}' and '{pair[1]}' have different types ({first} and {second}), "
                "so their values cannot be exchanged. Give both the same type (Dataset.cast_column), or convert the "
                "dataset to JSONL."
            )
    for name in plan.turning.negations:
        dtype = str(getattr(features[name], "dtype", features[name]))
        if not dtype.startswith(("int", "float", "string", "large_string", "null")):
            raise ManifestError(
                f"{plan.source.name}: column '{name}' is of type {dtype}, whose sign cannot be turned. Give it a "
                "signed type (Dataset.cast_column), or name it in --leave-columns."
            )


def _lacks(name: str, scan: _Scan, listed: int, undo: bool) -> str:
    missing = scan.missing
    hint = "Is it the dataset that was audited?"
    if scan.opposed and undo:
        hint = f"{scan.opposed} rows hold listed pairs that are not flipped: was this manifest undone already?"
    elif scan.opposed:
        hint = f"{scan.opposed} rows hold listed pairs the other way round: was this manifest applied already?"
    return (
        f"{name}: lacks {len(missing)} of the {listed} pairs that the manifest lists: {some(missing)}. {hint} "
        "To go on with the pairs that are there, allow missing ones (--allow-missing)."
    )
