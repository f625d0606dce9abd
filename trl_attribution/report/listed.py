"""The pairs of an audit that a person looks at: the flagged ones, those to read first, and those that rank next.

Axis letters: N scored pairs, F listed pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trl_attribution.errors import StoreError
from trl_attribution.manifest import Manifest
from trl_attribution.report.distributions import column_scores, column_worth
from trl_attribution.scoring import Column, Flags, Outcome, Rule, ScoreTable
from trl_attribution.scoring.calibration import Calibration
from trl_attribution.scoring.flags import BestProbe
from trl_attribution.scoring.outcomes import outcome_of
from trl_attribution.utils import arrow
from trl_attribution.utils.arrays import Doubles, Integers
from trl_attribution.utils.kinds import ExampleKind

FEWEST_LISTED = 50
"""Where fewer pairs are flagged, those that rank next are listed too, as not flagged."""


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
    q_value: Doubles
    columns: Mapping[Column, npt.NDArray[np.float32]]
    """Scores ``[F]`` at every probe and layer."""
    read_first: Integers
    """Places among the F of the pairs to read first, in the order in which to read them."""

    def __len__(self) -> int:
        return len(self.pair_ids)


@dataclass(frozen=True)
class Chosen:
    """Flagged pairs ``[K]``, best first: their places in the table, and the probe that flags each."""

    positions: Integers
    probe: Integers


@dataclass(frozen=True)
class Scored:
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
    def read(cls, table: ScoreTable, columns: tuple[Column, ...]) -> Scored:
        """The pairs of ``table``, with what the given ``columns`` say of them."""
        first = table.read(columns[0], ["pair_id", "row", "source"])
        best, worth = BestProbe(table.pairs), []
        for index, column in enumerate(columns):
            worth.append(column_worth(table, column))
            best.offer(index, column_scores(table, column), worth[-1], np.ones(table.pairs, dtype=bool))
        sources = first.column("source").combine_chunks()
        rows = arrow.numbers(first.column("row")).astype(np.int64)
        return cls(table, columns, first.column("pair_id"), rows, sources, best, tuple(worth))

    def of_manifest(self, manifest: Manifest) -> Chosen:
        """The pairs that the manifest lists."""
        wanted = arrow.words([decision.pair_id for decision in manifest.decisions])
        found = pc.index_in(wanted, value_set=self.pair_ids.cast(wanted.type))
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
        return Chosen(arrow.numbers(found).astype(np.int64), probe)

    def outcomes(self, rule: Rule, chosen: Chosen | None, kind: ExampleKind) -> tuple[Outcome, ...]:
        """What ``rule`` makes of each column; ``chosen`` are the pairs that a manifest lists, where there is one."""
        found = []
        for index, (column, worth) in enumerate(zip(self.columns, self.worth, strict=True)):
            listed = None
            if chosen is not None and rule.top_k is not None:  # any other rule goes by this probe alone
                listed = np.zeros(len(self.rows), dtype=bool)
                listed[chosen.positions[chosen.probe == index]] = True
            scores, known = column_scores(self.table, column), self.table.known.get(column)
            found.append(outcome_of(column.probe, rule, scores, worth, known, self.pair_ids, listed, kind))
        return tuple(found)

    def passing(self, outcomes: Sequence[Outcome]) -> Chosen:
        """The pairs that the outcomes flag, as far as they push towards a behavior, each under its best probe."""
        passing = BestProbe(len(self.rows))
        for index, (column, worth) in enumerate(zip(self.columns, self.worth, strict=True)):
            scores = column_scores(self.table, column)
            passing.offer(index, scores, worth, outcomes[index].passing & (scores > 0))
        order = passing.order()
        return Chosen(order, passing.column[order])

    def listed(self, chosen: Chosen, outcomes: Sequence[Outcome]) -> Listed:
        """The chosen pairs, those to read first, and those that rank next where these are few."""
        order = self.best.order()
        first = read_in_turn([one.read_first.positions for one in outcomes])
        others = order[~np.isin(order, chosen.positions)]
        fill = np.arange(len(others)) < FEWEST_LISTED - len(chosen.positions)
        others = others[fill | np.isin(others, first)]
        positions = np.concatenate([chosen.positions, others])
        probe = np.concatenate([chosen.probe, self.best.column[others]])
        score, rank, q_value = np.empty(len(probe), np.float32), np.empty(len(probe), np.int64), np.empty(len(probe))
        for index, (column, worth) in enumerate(zip(self.columns, self.worth, strict=True)):
            mine = probe == index
            score[mine] = column_scores(self.table, column)[positions[mine]]
            rank[mine], q_value[mine] = worth.rank[positions[mine]], worth.q_value[positions[mine]]
        return Listed(
            pair_ids=tuple(self.pair_ids.take(arrow.places(positions)).to_pylist()),
            flagged=len(chosen.positions),
            positions=positions,
            rows=self.rows[positions],
            source=arrow.numbers(self.sources.indices)[positions].astype(np.int64),
            source_names=tuple(str(name) for name in self.sources.dictionary.to_pylist()),
            probe=probe,
            score=score,
            rank=rank,
            q_value=q_value,
            columns={column: column_scores(self.table, column)[positions] for column in self.table.columns},
            read_first=_places(positions, first),
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


def nothing() -> Listed:
    """The list of an audit without scores."""
    none = np.empty(0, dtype=np.int64)
    single = np.empty(0, dtype=np.float32)
    return Listed((), 0, none, none, none, (), none, single, none, np.empty(0), {}, none)


def read_in_turn(parts: Sequence[Integers]) -> Integers:
    """Positions of several lists, the first of each before the second of any, none twice."""
    turn = np.concatenate([np.arange(len(part)) for part in parts])
    every = np.concatenate(parts)[np.argsort(turn, kind="stable")]
    _, place = np.unique(every, return_index=True)
    return every[np.sort(place)]


def _places(positions: Integers, wanted: Integers) -> Integers:
    """Where each of ``wanted`` stands in ``positions``."""
    order = np.argsort(positions, kind="stable")
    return np.asarray(order[np.searchsorted(positions[order], wanted)], dtype=np.int64)
