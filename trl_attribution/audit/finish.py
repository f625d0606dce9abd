"""The one ending of an audit: vectors are scored, ``audit.json`` is written, what is stale goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_attribution.audit.folder import Audit
from trl_attribution.audit.info import AuditInfo, CostInfo, DatasetInfo, ModelInfo, TrainingInfo, VectorsInfo, versions
from trl_attribution.pairs import PairReader
from trl_attribution.pairs.dataset_pass import DatasetPass, PairIndex, dataset_info
from trl_attribution.probes import Probe
from trl_attribution.scoring import Scores, score_view, write_scores
from trl_attribution.scoring.asked import asked_of
from trl_attribution.scoring.kinds import AskedKind
from trl_attribution.store import VectorStore
from trl_attribution.utils.progress import Stopwatch

PairsScored = Callable[[int, int], None]
"""Called with the pairs scored so far, over all passes, and their total."""


@dataclass(frozen=True)
class Vectors:
    """The vectors of one audit, and how they came to be."""

    store: VectorStore
    index: PairIndex
    """The pairs to score; the store has vectors of all of them, and perhaps of others."""
    computed: int
    """How many were made by this audit."""
    path: str | None
    """How they were made: ``packed``, ``plain``, or where a training run showed them; None where none had to be."""
    path_reason: str


@dataclass(frozen=True)
class Ending:
    """What is known of an audit, in a run or outside of one, once its vectors are there."""

    folder: Path
    reader: PairReader
    data: DatasetPass
    vectors: Vectors
    probes: Sequence[Probe]
    score: AskedKind
    layers: tuple[int, ...]
    model: ModelInfo
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    """What a person should know before reading on."""
    training: TrainingInfo | None = None


def finish(ending: Ending, watch: Stopwatch, cost: Mapping[str, Any], on_progress: PairsScored | None = None) -> Audit:
    """Score and write; ``cost`` has the fields of :class:`CostInfo` beside the seconds of ``watch``."""
    # What an earlier audit in the folder derived from its vectors must not stand beside new ones.
    for name in ("scores.parquet", "manifest.filter.jsonl", "manifest.flip.jsonl", "report.html"):
        (ending.folder / name).unlink(missing_ok=True)
    scores = None
    if ending.probes:
        with watch.timed("scores"):
            scores = _score(ending, on_progress)
    info = _info(ending, CostInfo(seconds=watch.rounded(), **cost))
    info.save(ending.folder)
    return Audit(
        folder=ending.folder,
        info=info,
        store=ending.vectors.store,
        index=ending.vectors.index,
        scores=scores,
        probes=tuple(ending.probes),
        reading=ending.reader.resolved,
        skipped=tuple(ending.data.skipped),
        source=ending.reader.source,
    )


def _score(ending: Ending, on_progress: PairsScored | None) -> Scores:
    index = ending.vectors.index
    view = ending.vectors.store.select(index.pair_ids)
    kind = asked_of(ending.reader.kind, ending.score)
    scores = score_view(view, ending.probes, kind, ending.layers, ending.folder, progress=on_progress)
    write_scores(ending.folder / "scores.parquet", scores, index.sources, index.rows)
    return scores


def _info(ending: Ending, cost: CostInfo) -> AuditInfo:
    vectors, pairs = ending.vectors, len(ending.vectors.index)
    return AuditInfo(
        dataset=DatasetInfo.model_validate(dataset_info(ending.reader, ending.data, pairs)),
        model=ending.model,
        probes={probe.name: probe.fingerprint for probe in ending.probes},
        settings=ending.settings,
        vectors=VectorsInfo(
            store=_noted(ending.folder, vectors.store.path),
            settings=vectors.store.settings,
            computed=vectors.computed,
            reused=pairs - vectors.computed,
            path=vectors.path,
            path_reason=vectors.path_reason,
        ),
        cost=cost,
        notes=ending.notes,
        versions=versions(),
        training=ending.training,
    )


def _noted(folder: Path, vectors: Path) -> str:
    """Where the ``vectors`` of the audit in ``folder`` lie, as ``audit.json`` says it to readers that work elsewhere.

    Relative to the folder where they are inside of it, so that it can be moved as a whole; else absolute.
    """
    inside, outside = vectors.absolute(), folder.absolute()
    return str(inside.relative_to(outside) if inside.is_relative_to(outside) else inside)
