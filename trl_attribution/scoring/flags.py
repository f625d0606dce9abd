"""Which pairs are flagged, by which probe, and which sources they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trl_attribution.errors import SettingsError
from trl_attribution.scoring.asked import Column
from trl_attribution.scoring.calibration import Calibration, Null, q_values
from trl_attribution.scoring.decision import Decision, KnownPairs
from trl_attribution.scoring.outcomes import Outcome, outcome_of
from trl_attribution.scoring.rule import Rule
from trl_attribution.utils import arrow
from trl_attribution.utils.arrays import Doubles, Integers
from trl_attribution.utils.kinds import ExampleKind

if TYPE_CHECKING:
    from trl_attribution.scoring.scores import Scores


@dataclass(frozen=True)
class FlaggedPair:
    """One flagged pair, with the probe that ranks it best; a probe with a positive score comes before any other."""

    pair_id: str
    position: int
    """0-based position among the scored pairs."""
    probe: str
    layer: int
    kind: str
    score: float
    rank: int
    q_value: float


@dataclass(frozen=True)
class Flags:
    """The F flagged pairs of N, by best rank; iterating gives one :class:`FlaggedPair` each."""

    rule: Rule
    columns: tuple[Column, ...]
    """The score columns that were looked at, one per probe."""
    nulls: Mapping[str, Null]
    """By probe, the null behind its q-values."""
    pair_ids: tuple[str, ...]
    """``[F]``, each once."""
    positions: Integers
    """``[F]``: 0-based positions among the N scored pairs."""
    column_index: Integers
    """``[F]``: which of ``columns`` ranks the pair best, those with a positive score first."""
    score: npt.NDArray[np.float32]
    rank: Integers
    q_value: Doubles
    pair_scores: npt.NDArray[np.float32]
    """``[N]``: every pair's score under the probe that ranks it best, those with a positive score first."""
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    """By probe, what the rule made of its scores, and what is said of it."""

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """By probe, a threshold with a stated recall and the estimate; without probes that keep no pairs."""
        return {name: one.decision for name, one in self.outcomes.items() if one.decision is not None}

    def told_of(self, kind: ExampleKind) -> Flags:
        """The same, with sentences in the words of ``kind``."""
        return replace(self, outcomes={name: replace(one, kind=kind) for name, one in self.outcomes.items()})

    def __len__(self) -> int:
        return len(self.pair_ids)

    def __iter__(self) -> Iterator[FlaggedPair]:
        for index, pair_id in enumerate(self.pair_ids):
            column = self.columns[self.column_index[index]]
            yield FlaggedPair(
                pair_id=pair_id,
                position=int(self.positions[index]),
                probe=column.probe,
                layer=column.layer,
                kind=column.kind,
                score=float(self.score[index]),
                rank=int(self.rank[index]),
                q_value=float(self.q_value[index]),
            )

    @property
    def not_towards(self) -> int:
        """How many flagged pairs score 0 or less: flipping these would teach the behavior, not remove it."""
        return int((self.score <= 0).sum())


@dataclass(frozen=True)
class SourceRow:
    """What one source contributes to the flagged pairs."""

    source: str
    pairs: int
    flagged: int
    share: float
    """``flagged / pairs``."""
    enrichment: float | None
    """``share`` over the share among all other sources: infinite where they have no flagged pair, None where there
    is nothing to compare (no other source, or no flagged pair anywhere)."""
    p_value: float
    """Fisher's exact test, one-sided: so many flagged pairs or more if flags fell on pairs regardless of source."""
    q_value: float
    """Benjamini-Hochberg over the sources."""
    mean_score: float

    def enrichment_text(self, digits: int = 1) -> str:
        """How many times the share of all other sources."""
        if self.enrichment is None:
            return "-"
        return "only here" if math.isinf(self.enrichment) else f"{self.enrichment:.{digits}f}x"

    def as_json(self) -> dict[str, Any]:
        """The row for strict JSON: an infinite enrichment becomes the string ``"inf"``."""
        enrichment = "inf" if self.enrichment == math.inf else self.enrichment
        return {**asdict(self), "enrichment": enrichment}


def flag(scores: Scores, rule: Rule, probe: str | None = None, layer: int | None = None) -> Flags:
    """Apply ``rule`` to the scores of one probe, or of all together.

    A pair that several probes flag counts once and is listed under the probe that ranks it best (then the higher
    score, then the probe given first); only where no probe flags it with a positive score can it be one that scores
    it 0 or less, so that no pair which pushes towards a behavior passes for one that does not. ``top_k`` takes pairs
    by that best rank; equal ranks go by score, then dataset order. ``layer`` is for one choice over each probe's own.

    Raises:
        SettingsError: unknown probe or layer (the choices are listed), or ``top_k`` above the number of pairs,
            or a recall alone asked of a probe that keeps no pairs of its own.
    """
    names = scores.probes if probe is None else (probe,)
    columns = tuple(scores.column(name, layer) for name in names)
    rule.check(len(scores))
    best, passing = BestProbe(len(scores)), BestProbe(len(scores))
    nulls: dict[str, Null] = {}
    outcomes: dict[str, Outcome] = {}
    for index, column in enumerate(columns):
        values = np.array(scores.of(column))
        worth = scores.worth(column)
        nulls[column.probe] = worth.null
        best.offer(index, values, worth, np.ones(len(scores), dtype=bool))
        if rule.top_k is None:
            outcomes[column.probe] = _outcome(scores, rule, column, values, worth)
            allowed = outcomes[column.probe].passing
        else:  # of several probes' pairs, the k best are known once all are
            allowed = np.ones(len(scores), dtype=bool)
        passing.offer(index, values, worth, allowed)
    chosen = _distinct(scores, passing.order(), rule.top_k)
    for index, column in enumerate(columns if rule.top_k is not None else ()):
        mine = np.zeros(len(scores), dtype=bool)
        mine[chosen[passing.column[chosen] == index]] = True
        values = np.array(scores.of(column))
        worth = scores.worth(column)
        outcomes[column.probe] = _outcome(scores, rule, column, values, worth, mine)
    return Flags(
        rule=rule,
        columns=columns,
        nulls=nulls,
        pair_ids=tuple(scores.pair_ids.take(pa.array(chosen)).to_pylist()),
        positions=chosen,
        column_index=passing.column[chosen],
        score=passing.score[chosen],
        rank=passing.rank[chosen],
        q_value=passing.q_value[chosen],
        pair_scores=best.score,
        outcomes=outcomes,
    )


def source_table(flags: Flags, sources: Sequence[str] | pa.Array) -> list[SourceRow]:
    """One row per source of the N scored pairs, strongest evidence first.

    Sorted by p-value, then enrichment, then flagged pairs, then name. A source's pairs are not independent of one
    another, so p-values order sources rather than prove anything; with one source alone the p-value is 1.

    Raises:
        SettingsError: ``sources`` [N] does not have one entry per scored pair.
    """
    if len(sources) != len(flags.pair_scores):
        raise SettingsError(f"{len(sources)} sources were given for {len(flags.pair_scores)} scored pairs")
    names, codes = _encode(sources)
    pairs = np.bincount(codes, minlength=len(names))
    flagged = np.bincount(codes[flags.positions], minlength=len(names))
    p_value = _fisher(pairs, flagged)
    q_value = q_values(p_value)
    sums = np.bincount(codes, weights=flags.pair_scores, minlength=len(names))
    rows = [
        SourceRow(
            source=name,
            pairs=int(pairs[index]),
            flagged=int(flagged[index]),
            share=float(flagged[index] / pairs[index]),
            enrichment=_enrichment(int(flagged[index]), int(pairs[index]), int(flagged.sum()), int(pairs.sum())),
            p_value=float(p_value[index]),
            q_value=float(q_value[index]),
            mean_score=float(sums[index] / pairs[index]),
        )
        for index, name in enumerate(names)
    ]
    return sorted(rows, key=lambda row: (row.p_value, -(row.enrichment or 0.0), -row.flagged, row.source))


class BestProbe:
    """For each of N pairs, the column that ranks it best among those offered with a positive score, else among all."""

    def __init__(self, pairs: int) -> None:
        self.rank = np.full(pairs, np.iinfo(np.int64).max)
        self.score = np.zeros(pairs, dtype=np.float32)
        self.q_value = np.ones(pairs)
        self.column = np.full(pairs, -1, dtype=np.int64)

    def offer(
        self, index: int, values: npt.NDArray[np.float32], worth: Calibration, allowed: npt.NDArray[np.bool_]
    ) -> None:
        """Take over the pairs that the column ``index`` ranks better, among those ``allowed`` ``[N]``."""
        positive, was_positive = values > 0, self.score > 0
        tied = (worth.rank == self.rank) & (values > self.score)
        ahead = (worth.rank < self.rank) | tied
        better = allowed & np.where(positive == was_positive, ahead, positive)
        self.rank[better] = worth.rank[better]
        self.score[better] = values[better]
        self.q_value[better] = worth.q_value[better]
        self.column[better] = index

    def order(self) -> Integers:
        """Positions of the pairs that some column allowed: best rank, then higher score, then dataset order."""
        positions = np.flatnonzero(self.column >= 0)
        return positions[np.lexsort((-self.score[positions], self.rank[positions]))]


def _outcome(
    scores: Scores,
    rule: Rule,
    column: Column,
    values: npt.NDArray[np.float32],
    worth: Calibration,
    passing: npt.NDArray[np.bool_] | None = None,
) -> Outcome:
    known = _known(scores, column, rule)
    return outcome_of(column.probe, rule, values, worth, known, scores.pair_ids, passing)


def _known(scores: Scores, column: Column, rule: Rule) -> KnownPairs | None:
    """What a recall is taken from; None where the probe keeps no pairs and the rule can do without."""
    found = scores.known.get(column)
    if found is None and rule.recall is not None and rule.fdr is None:
        from trl_attribution.scoring.held_out import why_no_pairs

        raise SettingsError(f"recall: {why_no_pairs(column.probe)}")
    return found


def _distinct(scores: Scores, order: Integers, limit: int | None) -> Integers:
    """The first ``limit`` positions of ``order`` whose pair ids differ: a dataset may hold a pair twice."""
    seen: set[str] = set()

    def firsts() -> Iterator[int]:
        for position in order:
            pair_id = scores.pair_ids[int(position)].as_py()
            if pair_id not in seen:
                seen.add(pair_id)
                yield int(position)

    return np.fromiter(islice(firsts(), limit), dtype=np.int64)


def _encode(sources: Sequence[str] | pa.Array) -> tuple[list[str], Integers]:
    """The distinct sources, and each pair's index into them [N]."""
    array = sources if isinstance(sources, (pa.Array, pa.ChunkedArray)) else pa.array(sources, pa.string())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    names: list[str] = array.dictionary.to_pylist()
    codes: Integers = arrow.numbers(array.indices).astype(np.int64)
    used = np.unique(codes)
    return [names[code] for code in used], np.searchsorted(used, codes)


def _fisher(pairs: npt.NDArray[np.intp], flagged: npt.NDArray[np.intp]) -> Doubles:
    """P(at least so many flagged) for every source, given the margins: the hypergeometric tail."""
    from scipy.special import gammaln  # scipy.stats takes a second to import

    def ways(of: int, taken: npt.NDArray[np.intp]) -> Doubles:
        return np.asarray(gammaln(of + 1) - gammaln(taken + 1) - gammaln(of - taken + 1))

    total, drawn = int(pairs.sum()), int(flagged.sum())
    tails = []
    for mine, least in zip(pairs.tolist(), flagged.tolist(), strict=True):
        hits = np.arange(least, min(mine, drawn) + 1)
        tails.append(np.exp(ways(mine, hits) + ways(total - mine, drawn - hits) - ways(total, np.array(drawn))).sum())
    return np.minimum(1.0, np.array(tails, dtype=np.float64))


def _enrichment(flagged: int, pairs: int, all_flagged: int, all_pairs: int) -> float | None:
    if all_flagged == 0 or pairs == all_pairs:
        return None
    others = (all_flagged - flagged) / (all_pairs - pairs)
    return math.inf if others == 0 else (flagged / pairs) / others
