"""``scores.parquet``: every score with its rank, percentile, p- and q-value; one row group per probe and layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trl_attribution.errors import WRONG_VALUES, SettingsError, StoreError
from trl_attribution.scoring.asked import Column
from trl_attribution.scoring.calibration import Null
from trl_attribution.scoring.decision import KnownPairs
from trl_attribution.scoring.recall import KnownScores
from trl_attribution.utils.arrays import Integers
from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.format_version import check_format_version
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.scoring.scores import Scores

TABLE_FORMAT = "trl-attribution scores"
TABLE_VERSION = 1
_KEY = b"trl_attribution"
_UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""What pyarrow raises for a file that is broken; text that is no UTF-8 is a ValueError."""
_WORD = pa.dictionary(pa.int32(), pa.string())
_FIELDS = [
    pa.field("pair_id", pa.string(), nullable=False),
    pa.field("row", pa.int64(), nullable=False),
    pa.field("source", _WORD, nullable=False),
    pa.field("probe", _WORD, nullable=False),
    pa.field("layer", pa.int32(), nullable=False),
    pa.field("kind", _WORD, nullable=False),
    pa.field("score", pa.float32(), nullable=False),
    pa.field("rank", pa.int64(), nullable=False),
    pa.field("percentile", pa.float64(), nullable=False),
    pa.field("p_value", pa.float64(), nullable=False),
    pa.field("q_value", pa.float64(), nullable=False),
]


def write_scores(
    path: str | Path,
    scores: Scores,
    sources: Sequence[str] | pa.Array,
    rows: Sequence[int] | Integers | None = None,
) -> Path:
    """Write all N pairs of every column to ``path``, atomically and a column at a time.

    Args:
        path: the file to make, usually ``scores.parquet`` in an audit folder.
        scores: what to write.
        sources: each pair's source [N]; a pyarrow array is taken as it is.
        rows: each pair's row in the dataset [N]; by default its position among the scored pairs.

    Raises:
        SettingsError: ``sources`` or ``rows`` do not have one entry per scored pair.
        AttributionError: the file cannot be written; nothing is left half-written.
    """
    target = Path(path)
    row_array = pa.array(np.arange(len(scores)) if rows is None else np.asarray(rows, dtype=np.int64), pa.int64())
    source_array = _words(sources)
    for name, array in (("sources", source_array), ("rows", row_array)):
        if len(array) != len(scores):
            raise SettingsError(f"{len(array)} {name} were given for {len(scores)} scored pairs")
    nulls: list[Null] = ["reference" if column in scores.references else "mirror" for column in scores.columns]
    schema = pa.schema(_FIELDS, metadata={_KEY: json.dumps(_header(scores, nulls)).encode()})
    shared = [scores.pair_ids, row_array, source_array]
    with atomic_path(target) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for column in scores.columns:
            table = pa.Table.from_arrays([*shared, *_arrays(scores, column)], schema=schema)
            # One row group each, however many pairs there are: the reader finds a column by its number.
            writer.write_table(table, row_group_size=max(1, len(scores)))
    return target


@dataclass(frozen=True)
class ScoreTable:
    """A ``scores.parquet`` on disk; only its header is in memory."""

    path: Path
    columns: tuple[Column, ...]
    nulls: tuple[Null, ...]
    """The null behind the p-values of each of ``columns``."""
    pairs: int
    known: Mapping[Column, KnownPairs] = field(default_factory=dict, repr=False)
    """Scores of the pairs that the column's probe keeps, where it keeps some; older tables have none."""

    @classmethod
    def open(cls, path: str | Path) -> ScoreTable:
        """Read the header of ``path``.

        Raises:
            StoreError: the file is absent, broken, not a score table, or of a newer version.
        """
        file = Path(path)
        with _opened(file) as parquet:
            header = _checked_header(file, _metadata_of(parquet, file))
            groups = [parquet.metadata.row_group(index).num_rows for index in range(parquet.metadata.num_row_groups)]
        try:
            columns = tuple(Column(entry["probe"], entry["layer"], entry["kind"]) for entry in header["columns"])
            nulls = tuple(entry["null"] for entry in header["columns"])
            pairs = int(header["pairs"])
            known = {
                column: found
                for column, entry in zip(columns, header["columns"], strict=True)
                if (found := _known_of(entry.get("known")))
            }
        except (*WRONG_VALUES, SettingsError) as error:
            raise StoreError(f"{file} is broken: its header lacks {printable(error)}. Run the audit again.") from error
        if groups != [pairs] * len(columns):
            raise StoreError(f"{file} is broken: its row groups do not fit its header. Run the audit again.")
        return cls(file, columns, nulls, pairs, known)

    def read(self, column: Column, fields: Sequence[str] | None = None) -> pa.Table:
        """The N rows of ``column`` in dataset order, all fields or some; nothing else is read.

        Raises:
            SettingsError: the table has no such column or field; the choices are listed.
            StoreError: the file is gone or broken.
        """
        if column not in self.columns:
            choices = "; ".join(f"{each.probe} at layer {each.layer} ({each.kind})" for each in self.columns)
            raise SettingsError(
                f"{self.path} has no {column.kind} scores of {column.probe!r} at layer {column.layer}; it has {choices}"
            )
        names = [field.name for field in _FIELDS]
        unknown = [name for name in fields or () if name not in names]
        if unknown:
            raise SettingsError(f"scores have no field {', '.join(unknown)}: choose from {', '.join(names)}")
        with _opened(self.path) as parquet:
            try:
                return parquet.read_row_group(
                    self.columns.index(column), columns=None if fields is None else list(fields)
                )
            except _UNREADABLE as error:
                raise StoreError(f"{self.path} is broken: {printable(error)}. Run the audit again.") from error

    def __iter__(self) -> Iterator[tuple[Column, pa.Table]]:
        """Every column with its rows, one at a time."""
        for column in self.columns:
            yield column, self.read(column)


def _arrays(scores: Scores, column: Column) -> list[pa.Array]:
    values = np.array(scores.of(column))
    worth = scores.worth(column)
    return [
        _repeated(column.probe, len(scores)),
        pa.array(np.full(len(scores), column.layer, dtype=np.int32)),
        _repeated(column.kind, len(scores)),
        pa.array(values),
        pa.array(worth.rank),
        pa.array(worth.percentile),
        pa.array(worth.p_value),
        pa.array(worth.q_value),
    ]


def _header(scores: Scores, nulls: Sequence[Null]) -> dict[str, Any]:
    columns = [
        {**asdict(column), "null": null, "known": _known_values(scores.known.get(column))}
        for column, null in zip(scores.columns, nulls, strict=True)
    ]
    return {"format": TABLE_FORMAT, "format_version": TABLE_VERSION, "pairs": len(scores), "columns": columns}


def _known_values(known: KnownPairs | None) -> dict[str, Any] | None:
    """What is kept so that whoever opens the scores comes to the same decision; JSON keeps every digit."""
    if known is None:
        return None
    parts = {"examples": known.examples, "controls": known.controls}
    return {"are_controls_own": known.are_controls_own} | {
        name: {"scores": one.scores.tolist(), "prompts": one.prompts.tolist()}
        | ({} if one.flips is None else {"flips": one.flips.tolist()})
        for name, one in parts.items()
        if one is not None
    }


def _known_of(values: Any) -> KnownPairs | None:
    if values is None:
        return None
    parts = {
        name: KnownScores(
            np.array(one["scores"], dtype=np.float64),
            np.array(one["prompts"], dtype=np.int64),
            None if (flips := one.get("flips")) is None else np.array(flips, dtype=np.float64),
        )
        for name in ("examples", "controls")
        if (one := values.get(name)) is not None
    }
    own = bool(values.get("are_controls_own", False))
    return KnownPairs(parts["examples"], parts.get("controls"), are_controls_own=own)


def _words(values: Sequence[str] | pa.Array) -> pa.DictionaryArray:
    """``values`` dictionary-encoded with 32-bit indices."""
    array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, pa.string())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    return encoded.cast(_WORD)


def _repeated(word: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, dtype=np.int32)), pa.array([word], pa.string()))


def _opened(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise StoreError(f"there is no score table at {path}: run an audit first")
    try:
        return pq.ParquetFile(path)
    except _UNREADABLE as error:
        raise StoreError(f"{path} cannot be read as a score table: {printable(error)}. Run the audit again.") from error


def _metadata_of(parquet: pq.ParquetFile, path: Path) -> dict[bytes, bytes]:
    try:
        return parquet.schema_arrow.metadata or {}
    except _UNREADABLE as error:
        raise StoreError(f"{path} cannot be read as a score table: {printable(error)}. Run the audit again.") from error


def _checked_header(path: Path, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    try:
        header = json.loads(metadata[_KEY])
    except (KeyError, ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != TABLE_FORMAT:
        raise StoreError(f"{path} is a Parquet file, but not a score table: it was not made by an audit")
    check_format_version(header.get("format_version"), TABLE_VERSION, path)
    return header
