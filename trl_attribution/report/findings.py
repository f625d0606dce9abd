"""What an audit folder has to say, read back from its files: what the page and the terminal tell.

Axis letters: N scored pairs, F listed pairs, P probes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trl_attribution.audit.info import AuditInfo
from trl_attribution.audit.saved import SavedAudit
from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.manifest import Manifest
from trl_attribution.pairs import Reading
from trl_attribution.probes import Probe
from trl_attribution.report.extras import Extras, read_extras
from trl_attribution.report.witness import agreements
from trl_attribution.scoring import DEFAULT_FDR, Column, Flags, Rule, ScoreTable, SourceRow, reference_for, source_table
from trl_attribution.scoring.calibration import Calibration, Null
from trl_attribution.scoring.flags import BestProbe
from trl_attribution.scoring.witness import Agreement
from trl_attribution.utils.text import printable

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

LEVELS = (0.01, 0.05, 0.1)
"""False discovery rates that pairs are counted at, whatever rule flagged them."""
FEWEST_LISTED = 50
"""Where fewer pairs are flagged, those that rank next are listed too, as not flagged."""
_BINS = 60


@dataclass(frozen=True)
class Histogram:
    """Counts of scores in equal bins."""

    edges: Floats
    """``[B + 1]``, rising."""
    counts: Integers
    """``[B]``: all N pairs."""
    null: Floats | None
    """``[B]``: what the null expects of N pairs; None where its scores are not at hand."""


@dataclass(frozen=True)
class LayerScores:
    """The scores of one probe at one layer."""

    layer: int
    median: float
    p90: float
    p99: float
    highest: float
    discoveries: Mapping[float, int]
    """Pairs that score above 0 with a q-value of at most each of :data:`LEVELS`."""


@dataclass(frozen=True)
class ProbeFindings:
    """What one probe found, at the layer that flags were taken at."""

    column: Column
    null: Null
    histogram: Histogram
    layers: tuple[LayerScores, ...]
    """Every layer that was scored, ascending."""
    flagged: int
    """Flagged pairs that this probe ranks best."""
    threshold: float | None
    """The lowest score among them; None where there are none."""
    worst_q: float | None
    """The highest q-value among them."""

    @property
    def at_flag_layer(self) -> LayerScores:
        """The summary of the layer that flags were taken at."""
        return next(one for one in self.layers if one.layer == self.column.layer)


@dataclass(frozen=True)
class Listed:
    """The F pairs that a person looks at: the flagged ones by best rank, then those that follow if these are few."""

    pair_ids: tuple[str, ...]
    flagged: int
    """How many of them, from the first on, are flagged."""
    positions: Integers
    """``[F]``: places in ``scores.parquet``."""
    rows: Integers
    """``[F]``: rows of the dataset."""
    source: Integers
    """``[F]``: places in ``source_names``."""
    source_names: tuple[str, ...]
    probe: Integers
    """``[F]``: which probe ranks the pair best."""
    score: npt.NDArray[np.float32]
    rank: Integers
    q_value: Floats
    columns: Mapping[Column, npt.NDArray[np.float32]]
    """Scores ``[F]`` at every probe and layer."""

    def __len__(self) -> int:
        return len(self.pair_ids)


@dataclass(frozen=True)
class Findings:
    """One audit, for people."""

    folder: Path
    info: AuditInfo
    rule: Rule | None
    """None for an audit without probes."""
    rule_is_default: bool
    """No manifest is there: the pairs were flagged here."""
    left_out: int
    """Pairs that the rule flags but that score 0 or less: no manifest lists them."""
    probes: tuple[ProbeFindings, ...]
    sources: tuple[SourceRow, ...]
    listed: Listed
    extras: Extras
    witness: tuple[Agreement, ...]
    """What the second witness says of each probe that it was asked about."""
    known_probes: tuple[Probe, ...]
    """Those of the audit's probes that were given or lie in its folder, in its order."""
    reading: Reading

    @property
    def pairs(self) -> int:
        """N."""
        return self.info.dataset.pairs


def read_findings(folder: str | Path, probes: Sequence[Probe] = (), discovery: str | Path | None = None) -> Findings:
    """Read a finished audit.

    Args:
        folder: the audit folder.
        probes: the audit's probes, for how they were built and for the null of calibrated ones; those that the audit
            did not use are an error. Probes that lie in the audit folder are found without.
        discovery: where ``discover --output`` wrote to; by default ``discovery/`` in the folder, if it is there.

    Raises:
        StoreError: there is no finished audit, or a file of it is broken or of a newer version.
        ManifestError: its manifest cannot be read.
        SettingsError: a probe was given that the audit did not use.
    """
    saved = SavedAudit.open(folder)
    place, info, manifest = saved.folder, saved.info, saved.manifest
    extras = read_extras(place, info, None if discovery is None else Path(discovery))
    known = _known_probes(info, probes, extras.probes)
    if not info.probes:
        return Findings(place, info, None, False, 0, (), (), _nothing(), extras, (), known, saved.reading)
    table = saved.table()
    columns = _flag_columns(table, manifest, known)
    scored = _Scored.read(table, columns)
    chosen = scored.by_default() if manifest is None else scored.of_manifest(manifest)
    rule = Rule(fdr=DEFAULT_FDR) if manifest is None else _rule(manifest)
    listed = scored.listed(chosen)
    return Findings(
        folder=place,
        info=info,
        rule=rule,
        rule_is_default=manifest is None,
        left_out=0 if manifest is None else manifest.header.counts.get("left_out_not_towards", 0),
        probes=tuple(_probe_findings(scored, listed, index, known) for index in range(len(columns))),
        sources=tuple(source_table(scored.flags(rule, listed), scored.sources)),
        listed=listed,
        extras=extras,
        witness=agreements(place, info, columns, listed, known),
        known_probes=known,
        reading=saved.reading,
    )


@dataclass(frozen=True)
class _Chosen:
    """Flagged pairs ``[K]``, best first: their places in the table, and the probe that flags each."""

    positions: Integers
    probe: Integers


@dataclass(frozen=True)
class _Scored:
    """The N pairs with the probe that ranks each best, at the layers that flags are taken at."""

    table: ScoreTable
    columns: tuple[Column, ...]
    pair_ids: pa.ChunkedArray
    rows: Integers
    sources: pa.Array
    best: BestProbe
    worth: tuple[Calibration, ...]
    """Of each of ``columns``."""

    @classmethod
    def read(cls, table: ScoreTable, columns: tuple[Column, ...]) -> _Scored:
        first = table.read(columns[0], ["pair_id", "row", "source"])
        best, worth = BestProbe(table.pairs), []
        for index, column in enumerate(columns):
            worth.append(_worth(table, column))
            best.offer(index, _scores(table, column), worth[-1], np.ones(table.pairs, dtype=bool))
        sources = first.column("source").combine_chunks()
        rows = first.column("row").to_numpy().astype(np.int64)
        return cls(table, columns, first.column("pair_id"), rows, sources, best, tuple(worth))

    def of_manifest(self, manifest: Manifest) -> _Chosen:
        """The pairs that the manifest lists."""
        wanted = pa.array([decision.pair_id for decision in manifest.decisions], pa.string())
        found = pc.index_in(wanted, value_set=self.pair_ids)
        if found.null_count:
            raise StoreError(
                f"scores.parquet lacks {found.null_count:,} pairs of manifest.filter.jsonl: they belong to different "
                "audits. Run the audit again."
            )
        names = {column.probe: index for index, column in enumerate(self.columns)}
        unknown = sorted({decision.probe for decision in manifest.decisions} - names.keys())
        if unknown:
            raise StoreError(f"manifest.filter.jsonl names probes that were not scored: {', '.join(unknown)}")
        probe = np.array([names[decision.probe] for decision in manifest.decisions], dtype=np.int64)
        return _Chosen(np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int64), probe)

    def by_default(self) -> _Chosen:
        """The pairs that push towards a behavior at a false discovery rate of 5%."""
        passing = BestProbe(len(self.rows))
        for index, (column, worth) in enumerate(zip(self.columns, self.worth, strict=True)):
            scores = _scores(self.table, column)
            passing.offer(index, scores, worth, (worth.q_value <= DEFAULT_FDR) & (scores > 0))
        order = passing.order()
        return _Chosen(order, passing.column[order])

    def listed(self, chosen: _Chosen) -> Listed:
        """The chosen pairs, and those that rank next where they are few."""
        order = self.best.order()
        others = order[~np.isin(order, chosen.positions)][: max(0, FEWEST_LISTED - len(chosen.positions))]
        positions = np.concatenate([chosen.positions, others])
        probe = np.concatenate([chosen.probe, self.best.column[others]])
        score, rank, q_value = np.empty(len(probe), np.float32), np.empty(len(probe), np.int64), np.empty(len(probe))
        for index, (column, worth) in enumerate(zip(self.columns, self.worth, strict=True)):
            mine = probe == index
            score[mine] = _scores(self.table, column)[positions[mine]]
            rank[mine], q_value[mine] = worth.rank[positions[mine]], worth.q_value[positions[mine]]
        return Listed(
            pair_ids=tuple(self.pair_ids.take(pa.array(positions)).to_pylist()),
            flagged=len(chosen.positions),
            positions=positions,
            rows=self.rows[positions],
            source=self.sources.indices.to_numpy(zero_copy_only=False)[positions].astype(np.int64),
            source_names=tuple(str(name) for name in self.sources.dictionary.to_pylist()),
            probe=probe,
            score=score,
            rank=rank,
            q_value=q_value,
            columns={column: _scores(self.table, column)[positions] for column in self.table.columns},
        )

    def flags(self, rule: Rule, listed: Listed) -> Flags:
        """The flagged pairs as flagging itself would give them."""
        count = listed.flagged
        return Flags(
            rule=rule,
            columns=self.columns,
            nulls={column.probe: worth.null for column, worth in zip(self.columns, self.worth, strict=True)},
            pair_ids=listed.pair_ids[:count],
            positions=listed.positions[:count],
            column_index=listed.probe[:count],
            score=listed.score[:count],
            rank=listed.rank[:count],
            q_value=listed.q_value[:count],
            pair_scores=self.best.score,
        )


def _scores(table: ScoreTable, column: Column) -> npt.NDArray[np.float32]:
    """The scores of ``column`` ``[N]``."""
    return np.asarray(table.read(column, ["score"]).column("score").to_numpy(), dtype=np.float32)


def _worth(table: ScoreTable, column: Column) -> Calibration:
    """What the scores of ``column`` were worth when they were taken."""
    part = table.read(column, ["rank", "percentile", "p_value", "q_value"])
    rank, *rest = (part.column(name).to_numpy() for name in part.column_names)
    return Calibration(table.nulls[table.columns.index(column)], rank.astype(np.int64), *rest)


def _probe_findings(scored: _Scored, listed: Listed, index: int, known: Sequence[Probe]) -> ProbeFindings:
    table, column, null = scored.table, scored.columns[index], scored.worth[index].null
    reference = _reference(column, known) if null == "reference" else None
    mine = listed.probe[: listed.flagged] == index
    return ProbeFindings(
        column=column,
        null=null,
        histogram=_histogram(_scores(table, column), null, reference),
        layers=tuple(
            _layer_scores(table, each)
            for each in sorted(table.columns, key=lambda each: each.layer)
            if each.probe == column.probe
        ),
        flagged=int(mine.sum()),
        threshold=float(listed.score[: listed.flagged][mine].min()) if mine.any() else None,
        worst_q=float(listed.q_value[: listed.flagged][mine].max()) if mine.any() else None,
    )


def _layer_scores(table: ScoreTable, column: Column) -> LayerScores:
    scores, q_value = _scores(table, column), _worth(table, column).q_value
    median, p90, p99, highest = (float(value) for value in np.quantile(scores, [0.5, 0.9, 0.99, 1.0]))
    counts = {level: int(((q_value <= level) & (scores > 0)).sum()) for level in LEVELS}
    return LayerScores(column.layer, median, p90, p99, highest, counts)


def _histogram(scores: npt.NDArray[np.float32], null: Null, reference: Floats | None) -> Histogram:
    """Bins that hold the scores and, under the mirror null, their negatives."""
    expected = -scores if null == "mirror" else reference
    low, high = float(scores.min()), float(scores.max())
    if expected is not None and len(expected):
        low, high = min(low, float(expected.min())), max(high, float(expected.max()))
    if low == high:
        low, high = low - 0.01, high + 0.01
    edges = np.linspace(low, high, _BINS + 1)
    counts = np.histogram(scores, edges)[0].astype(np.int64)
    if expected is None or not len(expected):
        return Histogram(edges, counts, None)
    return Histogram(edges, counts, np.histogram(expected, edges)[0] * (len(scores) / len(expected)))


def _reference(column: Column, known: Sequence[Probe]) -> Floats | None:
    probe = next((each for each in known if each.name == column.probe), None)
    if probe is None or column.layer not in probe.layers:
        return None
    found = reference_for(probe, column)
    return None if found is None else found.scores


def _flag_columns(table: ScoreTable, manifest: Manifest | None, known: Sequence[Probe]) -> tuple[Column, ...]:
    """The score column that flags were taken at, of each probe."""
    if manifest is not None and "columns" in manifest.header.rule:
        try:
            stated = [Column(one["probe"], one["layer"], one["kind"]) for one in manifest.header.rule["columns"]]
        except (KeyError, TypeError) as error:
            raise StoreError(f"the manifest's rule has columns that cannot be read: {printable(error, 300)}") from error
        if stated and all(column in table.columns for column in stated):
            return tuple(stated)
        raise StoreError("the manifest names score columns that scores.parquet lacks. Run the audit again.")
    own = {probe.name: probe.layer for probe in known}
    names = dict.fromkeys(column.probe for column in table.columns)
    return tuple(_own_column([each for each in table.columns if each.probe == name], own.get(name)) for name in names)


def _own_column(choices: Sequence[Column], layer: int | None) -> Column:
    """The column at the probe's own ``layer``, else the middle one."""
    return next((each for each in choices if each.layer == layer), choices[(len(choices) - 1) // 2])


def _rule(manifest: Manifest) -> Rule:
    known = {name: value for name, value in manifest.header.rule.items() if name in Rule.__dataclass_fields__}
    return Rule(**known)


def _known_probes(info: AuditInfo, given: Sequence[Probe], found: Sequence[Probe]) -> tuple[Probe, ...]:
    for probe in given:
        if info.probes.get(probe.name) != probe.fingerprint:
            raise SettingsError(
                f"probe {probe.name!r} is not one of this audit's: it used {', '.join(info.probes) or 'none'}, and "
                "fingerprints have to agree. Give the registry that the audit was made with."
            )
    of_name = {probe.name: probe for probe in (*found, *given) if info.probes.get(probe.name) == probe.fingerprint}
    return tuple(of_name[name] for name in info.probes if name in of_name)


def _nothing() -> Listed:
    none = np.empty(0, dtype=np.int64)
    single = np.empty(0, dtype=np.float32)
    return Listed((), 0, none, none, none, (), none, single, none, np.empty(0), {})
