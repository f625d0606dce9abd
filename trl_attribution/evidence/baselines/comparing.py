"""Rankings of the same pairs side by side: an audit's own and those of baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trl_attribution.audit.info import AuditInfo
from trl_attribution.audit.saved import SavedAudit
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.baselines.baseline import (
    BaselineScores,
    Cost,
    PairSet,
    RankingBaseline,
)
from trl_attribution.evidence.baselines.endpoint import EndpointRanking
from trl_attribution.evidence.baselines.gradients import GradientCosine
from trl_attribution.evidence.baselines.quality import Agreement, Quality, agreement, quality
from trl_attribution.evidence.baselines.saved import SavedScores, pairs_digest
from trl_attribution.evidence.baselines.truth import Truth, TruthConfig, read_truth
from trl_attribution.manifest import Manifest
from trl_attribution.pairs import PairReader, Reading
from trl_attribution.pairs.unsupported import require_pairs
from trl_attribution.scoring import Column
from trl_attribution.utils.atomic import write_json
from trl_attribution.utils.progress import OnProgress, silent
from trl_attribution.utils.text import printable

COMPARISON_FORMAT = "trl-attribution comparison"
COMPARISON_VERSION = 1


@dataclass(frozen=True)
class Audited:
    """The ranking of an audit that baselines are compared with: N pairs in dataset order."""

    folder: Path
    info: AuditInfo
    column: Column
    pair_ids: tuple[str, ...]
    scores: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int64]
    reading: Reading
    flagged: int | None
    """How many pairs its manifest lists, where there is one."""

    @classmethod
    def open(cls, folder: str | Path, probe: str | None = None, layer: int | None = None) -> Audited:
        """The finished audit in ``folder``.

        Raises:
            StoreError: there is none, or it has no scores.
            SettingsError: no scores of that probe and layer, or several and none named; the choices are listed.
        """
        saved = SavedAudit.open(folder)
        table, manifest = saved.table(), saved.manifest
        column = _chosen(table.columns, manifest, probe, layer)
        rows = table.read(column, ["pair_id", "score", "row"])
        return cls(
            saved.folder,
            saved.info,
            column,
            tuple(rows["pair_id"].to_pylist()),
            rows["score"].to_numpy().astype(np.float64),
            rows["row"].to_numpy(),
            saved.reading,
            len(manifest.decisions) if manifest is not None else None,
        )

    @property
    def cost(self) -> Cost:
        """Of the audit's vectors, those that it did not take from elsewhere."""
        seconds = self.info.cost.seconds
        return Cost(seconds.get("vectors", 0.0) + seconds.get("scores", 0.0), self.info.cost.flops)


@dataclass(frozen=True)
class ComparedRow:
    """One ranking of a comparison."""

    name: str
    ours: bool
    cost: Cost
    quality: Quality | None
    """Where the truth is known."""
    agreement: Agreement | None
    """With the audit's ranking; None for that itself."""
    notes: tuple[str, ...]
    stored: bool
    """Whether the scores were there from an earlier run; the cost is that run's."""


@dataclass(frozen=True)
class Comparison:
    """Rankings of the same N pairs, the best first where the truth is known."""

    dataset: str
    pairs: int
    k: int
    truth: Truth | None
    rows: tuple[ComparedRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with format and version."""
        truth = None if self.truth is None else {"column": self.truth.column, "values": list(self.truth.values)}
        return {
            "format": COMPARISON_FORMAT,
            "format_version": COMPARISON_VERSION,
            "dataset": self.dataset,
            "pairs": self.pairs,
            "k": self.k,
            "truth": truth,
            "marked": None if self.truth is None else int(self.truth.wanted.sum()),
            "rankings": [{**asdict(row), "cost": row.cost.to_json()} for row in self.rows],
        }

    def save(self, path: Path) -> None:
        """Write the comparison as JSON, atomically."""
        write_json(path, self.to_json())


def compare(
    audited: Audited,
    dataset: str | Path | Sequence[Mapping[str, Any]],
    baselines: Sequence[RankingBaseline],
    *,
    k: int | None = None,
    truth: TruthConfig | None = None,
    keep: str | Path | None = None,
    on_progress: OnProgress = silent,
) -> Comparison:
    """Rank the pairs of an audit by every baseline and put the rankings side by side.

    Args:
        audited: the audit's own ranking.
        dataset: the audited dataset.
        baselines: what to compare it with.
        k: how many top pairs count; by default as many as are marked in the truth column, else as many as the audit's
            manifest lists.
        truth: which column of the dataset marks the wanted pairs.
        keep: folder for the baselines' scores, which are taken again where nothing has changed, and for what a
            killed run has done; None keeps nothing.
        on_progress: see :data:`OnProgress`.

    Raises:
        DataError: the dataset cannot be read, or is not the audited one.
        SettingsError: two baselines of one name, no k, or no truth.
        AttributionError: a baseline cannot do its work.
    """
    names = [baseline.name for baseline in baselines]
    if len(set(names)) < len(names):
        raise SettingsError(f"baselines must differ, but these were given: {printable(', '.join(names))}")
    reader = require_pairs(PairReader(dataset, replace(audited.reading, on_bad_row="skip")), "compare")
    known = read_truth(reader, truth, audited.rows.tolist()) if truth is not None else None
    chosen_k = _k(k, known, audited)
    pairs = PairSet(reader, set(audited.pair_ids))
    _check_pairs(pairs, audited, reader.source.name)
    folder = Path(keep) if keep is not None else None
    digest = pairs_digest(list(audited.pair_ids))
    found = [_scores(baseline, pairs, folder, digest, on_progress) for baseline in baselines]
    rows = [_row(audited, _ours(audited), known, chosen_k, is_ours=True)]
    rows += [_row(audited, scores, known, chosen_k, stored=stored) for scores, stored in found]
    if known is not None:
        rows.sort(key=lambda row: -(row.quality.average_precision if row.quality else 0.0))
    return Comparison(reader.source.name, len(audited.pair_ids), chosen_k, known, tuple(rows))


def _chosen(columns: Sequence[Column], manifest: Manifest | None, probe: str | None, layer: int | None) -> Column:
    fitting = [one for one in columns if probe in (None, one.probe) and layer in (None, one.layer)]
    if len(fitting) > 1 and manifest is not None:
        stated = [(one.get("probe"), one.get("layer")) for one in manifest.header.rule.get("columns", ())]
        fitting = [one for one in fitting if (one.probe, one.layer) in stated] or fitting
    if len(fitting) != 1:
        there = "; ".join(f"--probe {printable(one.probe, 60)} --layer {one.layer}" for one in columns)
        raise SettingsError(f"say which of the audit's scores to compare with: {there}")
    return fitting[0]


def _k(asked: int | None, truth: Truth | None, audited: Audited) -> int:
    k = asked
    if k is None:
        k = int(truth.wanted.sum()) if truth is not None else audited.flagged
        if not k:
            raise SettingsError(
                "-k: say how many top pairs count; the audit has no manifest that would, or an empty one"
            )
    if not 1 <= k <= len(audited.pair_ids):
        raise SettingsError(f"-k: {k} is not from 1 to the number of pairs, {len(audited.pair_ids)}")
    return k


def _check_pairs(pairs: PairSet, audited: Audited, name: str) -> None:
    there = {pair.pair_id for pair in pairs}
    missing = [pair_id for pair_id in audited.pair_ids if pair_id not in there]
    if missing:
        raise SettingsError(
            f"{printable(name)} lacks {len(missing):,} of the {len(audited.pair_ids):,} audited pairs, {missing[0]} "
            f"first: it is not the dataset of {printable(audited.folder)}. Give the audited one with --dataset."
        )


def _scores(
    baseline: RankingBaseline, pairs: PairSet, folder: Path | None, digest: str, on_progress: OnProgress
) -> tuple[BaselineScores, bool]:
    """The baseline's scores, and whether they were there already."""
    if folder is None:
        return baseline(pairs, on_progress), False
    saved = SavedScores(folder, baseline.name, baseline.settings, digest)
    stored = saved.load()
    if stored is not None:
        return stored, True
    found = _resuming(baseline, folder, saved.stem)(pairs, on_progress)
    saved.save(found)
    return found, False


def _resuming(baseline: RankingBaseline, folder: Path, stem: str) -> RankingBaseline:
    """``baseline``, keeping in ``folder`` what a killed run has done."""
    if isinstance(baseline, GradientCosine):
        return replace(baseline, work=folder / f"{stem}.work")
    if isinstance(baseline, EndpointRanking):
        return replace(baseline, verdicts=folder / f"{stem}.verdicts.jsonl")
    return baseline


def _ours(audited: Audited) -> BaselineScores:
    column = audited.column
    name = f"{column.kind} score of {column.probe}, layer {column.layer}"
    reused = audited.info.vectors.reused
    notes = (f"{reused:,} vectors were there before the audit and are not in its cost",) if reused else ()
    scores = dict(zip(audited.pair_ids, audited.scores.tolist(), strict=True))
    return BaselineScores(name, scores, audited.cost, notes)


def _row(
    audited: Audited,
    scores: BaselineScores,
    truth: Truth | None,
    k: int,
    *,
    is_ours: bool = False,
    stored: bool = False,
) -> ComparedRow:
    values = np.array([scores.scores[pair_id] for pair_id in audited.pair_ids])
    return ComparedRow(
        scores.name,
        is_ours,
        scores.cost,
        quality(values, truth.wanted, k) if truth is not None else None,
        None if is_ours else agreement(values, audited.scores, k),
        scores.notes,
        stored,
    )
