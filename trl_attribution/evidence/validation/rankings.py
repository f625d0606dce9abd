"""Rankings of a dataset's pairs: from a finished audit, from one made here, or from scores made elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.audit.config import AuditConfig
from trl_attribution.audit.saved import SavedAudit
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.baselines.foreign import scores_by_pair
from trl_attribution.evidence.validation.plan import RankingPlan, ValidationPlan
from trl_attribution.pairs import Encoding
from trl_attribution.pairs.rows import open_rows
from trl_attribution.probes import BuildConfig, Probe, ProbeRegistry, build_from_behavior
from trl_attribution.scoring import DEFAULT_RULE, Column, ScoreTable
from trl_attribution.scoring.calibration import Calibration
from trl_attribution.scoring.outcomes import outcome_of
from trl_attribution.utils.atomic import write_json
from trl_attribution.utils.progress import OnProgress
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel


@dataclass(frozen=True)
class Ranking:
    """All N different pairs of the dataset, the one that pushes most towards the behavior first."""

    name: str
    pair_ids: tuple[str, ...]
    scores: tuple[float, ...]
    """``[N]``, descending."""
    origin: str
    """Where it comes from, for people."""
    seconds: float = 0.0
    """Device time that making the audit took; 0 where that is not known."""
    flops: int = 0
    flagged: int | None = None
    """How many pairs the default rule flags: that many from the top. None for scores that are not of an audit."""

    @property
    def towards(self) -> int:
        """How many pairs score above 0."""
        return sum(score > 0 for score in self.scores)


def find_ranking(
    name: str,
    plan: ValidationPlan,
    loaded: LoadedModel,
    encoding: Encoding,
    fingerprint: str,
    folder: Path,
    on_progress: OnProgress | None = None,
) -> Ranking:
    """The ranking ``name`` of the plan; an audit that has to be made goes into ``folder``.

    Args:
        name: which one.
        plan: the plan.
        loaded: M0.
        encoding: truncation, as the training's.
        fingerprint: of the dataset.
        folder: where audits made here are kept; one that was begun is gone on with.
        on_progress: of the audit.

    Raises:
        SettingsError: an audit of another dataset or model, or several probes or layers and none named.
        DataError: the scores cannot be read or miss pairs of the dataset.
        ProbeError, StoreError: the probe or the audit cannot be used.
    """
    wanted = plan.rankings[name]
    if wanted.scores is not None:
        return _foreign(name, wanted.scores)
    if wanted.audit is not None:
        return _audited(name, Path(wanted.audit), wanted, loaded, fingerprint)
    target = folder / name
    probe = _probe(name, wanted, loaded, encoding)
    config = AuditConfig(
        layers=(probe.layer,) if not isinstance(wanted.layer, int) else (wanted.layer,),
        encoding=encoding,
        reading=plan.reading,
        score=wanted.score,
        vector_dtype="float32",
        trust_remote_code=plan.trust_remote_code,
    )
    auditor = DataAuditor(loaded, probes=[probe], config=config)
    # Rankings at the same layer share their vectors.
    vectors = folder / f"vectors-layer-{auditor.layers[0]}"
    audit = auditor.audit(plan.dataset, target, vectors=vectors, results=False, on_progress=on_progress)
    found = _audited(name, target, wanted.model_copy(update={"probe": probe.name, "layer": None}), loaded, fingerprint)
    return _with_earlier_cost(found, folder / f"{name}.cost.json", bool(audit.info.vectors.computed))


def behavior_prompts(plan: ValidationPlan) -> dict[str, list[Any]]:
    """By ranking, the prompts that its probe is built from, controls too, where the plan says."""
    return {
        name: [row.values.get("prompt") for file in (one.behavior, one.controls) if file for row in open_rows(file)]
        for name, one in plan.rankings.items()
        if one.behavior is not None
    }


def _probe(name: str, wanted: RankingPlan, loaded: LoadedModel, encoding: Encoding) -> Probe:
    if wanted.probes is not None:
        found = ProbeRegistry(wanted.probes).load_all([wanted.probe] if wanted.probe else None)
        if len(found) != 1:
            names = ", ".join(printable(probe.name, 60) for probe in found) or "none"
            raise SettingsError(f"rankings.{name}.probe: name one of the probes of {wanted.probes}: {names}")
        return found[0]
    assert wanted.behavior is not None  # the plan has checked
    layer: int | Literal["auto"] = wanted.layer if isinstance(wanted.layer, int) else "auto"
    config = BuildConfig(layer=layer, encoding=encoding)
    return build_from_behavior(wanted.probe or name, wanted.behavior, loaded, config, wanted.controls)


def _audited(name: str, folder: Path, wanted: RankingPlan, loaded: LoadedModel, fingerprint: str) -> Ranking:
    saved = SavedAudit.open(folder)
    info, table = saved.info, saved.table()
    where = f"rankings.{name}: the audit {printable(folder)}"
    if info.dataset.fingerprint != fingerprint:
        raise SettingsError(f"{where} is of another dataset ({printable(info.dataset.name)}). Audit this one.")
    if info.model.fingerprint.weights != loaded.fingerprint.weights:
        raise SettingsError(f"{where} was made with another model ({printable(info.model.name)}). Audit with M0.")
    columns = [
        column
        for column in table.columns
        if wanted.probe in (None, column.probe) and wanted.layer in (None, "auto", column.layer)
    ]
    if len(columns) != 1:
        there = "; ".join(f"{printable(each.probe, 60)} at layer {each.layer}" for each in table.columns)
        raise SettingsError(f"{where} needs `probe` and `layer` to say which scores count; it has {there}")
    rows = table.read(columns[0], ["pair_id", "score", "row"]).to_pydict()
    order = sorted(range(table.pairs), key=lambda place: (-rows["score"][place], rows["row"][place]))
    cost = info.cost
    column = columns[0]
    return Ranking(
        name,
        tuple(rows["pair_id"][place] for place in order),
        tuple(float(rows["score"][place]) for place in order),
        f"{column.kind} score of {column.probe}, layer {column.layer}",
        cost.seconds.get("vectors", 0.0),
        cost.flops or 0,
        flagged=count_flagged(table, column),
    )


def count_flagged(table: ScoreTable, column: Column) -> int:
    """How many pairs with a positive score the default rule flags."""
    rows = table.read(column, ["pair_id", "score", "rank", "percentile", "p_value", "q_value"])
    scores = rows.column("score").to_numpy().astype(np.float32)
    worth = [rows.column(name).to_numpy() for name in ("rank", "percentile", "p_value", "q_value")]
    found = outcome_of(
        column.probe,
        DEFAULT_RULE,
        scores,
        Calibration(table.nulls[table.columns.index(column)], *worth),
        table.known.get(column),
        rows.column("pair_id"),
    )
    return int((found.passing & (scores > 0)).sum())


def _with_earlier_cost(ranking: Ranking, file: Path, computed: bool) -> Ranking:
    """The ranking with what its vectors cost in all runs: a run that found them there says that they cost nothing."""
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"seconds": 0.0, "flops": 0}
    seconds, flops = float(earlier["seconds"]), int(earlier["flops"])
    if computed:
        seconds, flops = seconds + ranking.seconds, flops + ranking.flops
        write_json(file, {"seconds": seconds, "flops": flops})
    return replace(ranking, seconds=seconds, flops=flops)


def _foreign(name: str, path: str) -> Ranking:
    scores = scores_by_pair(path)
    order = sorted(scores, key=lambda pair_id: -scores[pair_id])
    return Ranking(name, tuple(order), tuple(scores[pair_id] for pair_id in order), f"scores in {Path(path).name}")
