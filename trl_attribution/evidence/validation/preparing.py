"""From a plan to a validation that can run: everything read and checked, the rankings made, nothing trained yet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from trl_attribution.audit.claim import check_folder
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.validation.cells import Cell, cells, conditions, left_out
from trl_attribution.evidence.validation.interventions import Intervener
from trl_attribution.evidence.validation.measuring import Gauge, judge_config, read_gauge
from trl_attribution.evidence.validation.plan import ValidationPlan
from trl_attribution.evidence.validation.rankings import Ranking, behavior_prompts, find_ranking
from trl_attribution.evidence.validation.records import RANKING, SOURCES, CellFolder
from trl_attribution.evidence.validation.running import Say, Validator
from trl_attribution.evidence.validation.selections import Selector
from trl_attribution.evidence.validation.training import dpo_config, step_count
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.pairs import Encoding, Pair, PairReader
from trl_attribution.pairs.dataset_pass import pass_over
from trl_attribution.pairs.unsupported import require_pairs
from trl_attribution.utils.distributed import current_ranks
from trl_attribution.utils.progress import OnProgress, silent
from trl_attribution.utils.text import tally


def prepare_validation(
    plan: ValidationPlan,
    folder: Path,
    on_progress: OnProgress = silent,
    say: Say = lambda _text: None,
) -> Validator:
    """Load M0, read what the plan names, make its rankings, and tie ``folder`` to all that decides its numbers.

    Raises:
        AttributionError: something in the plan cannot be used; nothing is trained then.
    """
    if current_ranks().world > 1:
        raise SettingsError(
            "a validation runs on one process: start it without a launcher. To train on several devices, give "
            "training.command a launcher's command line; to share the cells, use --cells."
        )
    check_folder(folder)
    every_cell = cells(plan)
    steps = step_count(plan, folder / "work")
    encoding = _encoding(plan, folder)
    loaded = load_model(plan.model, plan.dtype, plan.device, plan.trust_remote_code)
    data = _trainable(plan, loaded, encoding)
    gauge = read_gauge(plan, loaded)
    intervener = Intervener(data.pairs, plan.mixed, judge_config(plan.measures))
    records = CellFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # One process makes the audit; those started beside it wait, and find it finished.
    with filelock.FileLock(folder / "prepare.lock"):
        rankings = {}
        for name in plan.rankings:
            say(f"Ranking {name}")
            rankings[name] = find_ranking(
                name, plan, loaded, encoding, data.fingerprint, folder / "audits", on_progress
            )
        selector = Selector(data.pairs, rankings, plan)
        for condition in conditions(plan):
            if (condition.intervention, condition.selection) == ("weight", "top"):
                selector.choose(Cell(condition, plan.seeds[0]))  # so that one that cannot be is refused now
        settings = _settings(plan, loaded, data, gauge, rankings)
        records.bind(settings)
    return Validator(
        plan=plan,
        folder=folder,
        cells=every_cell,
        loaded=loaded,
        gauge=gauge,
        intervener=intervener,
        selector=selector,
        steps=steps,
        rankings=rankings,
        records=records,
        settings=settings,
        notes=tuple(_notes(plan, data, gauge, rankings)),
        on_progress=on_progress,
        say=say,
    )


@dataclass(frozen=True)
class _Trainable:
    """The pairs that TRL can train on."""

    pairs: Sequence[Pair]
    fingerprint: str
    """Of the whole dataset, as an audit takes it."""
    faults: Mapping[str, int]
    """Reason -> rows that TRL would drop without a word, after which the steps would not fit."""


def _trainable(plan: ValidationPlan, loaded: LoadedModel, encoding: Encoding) -> _Trainable:
    reader = require_pairs(PairReader(plan.dataset, plan.reading), "validate")
    kept: list[Pair] = []
    data = pass_over(reader, loaded.tokenizer, encoding, on_pair=kept.append)
    return _Trainable(kept, data.survey.fingerprint, data.skip_reasons)


def _encoding(plan: ValidationPlan, folder: Path) -> Encoding:
    """Truncation as the training's."""
    if plan.training.dpo is None:
        return Encoding(max_length=plan.measures.max_length)
    config = dpo_config(plan, folder / "work", seed=0, steps=1)
    return Encoding(config.max_length, config.truncation_mode)


def _settings(
    plan: ValidationPlan, loaded: LoadedModel, data: _Trainable, gauge: Gauge, rankings: Mapping[str, Ranking]
) -> dict[str, Any]:
    """All that decides a cell's numbers, and is not in its name."""
    with_sources = "drop_sources" in plan.interventions
    weighed = rankings.items() if "weight" in plan.interventions else ()
    return {
        "model": loaded.fingerprint.digest,
        "dtype": loaded.dtype,
        "dataset": data.fingerprint,
        "training": plan.training.model_dump(mode="json"),
        "measures": plan.measures.model_dump(
            mode="json", exclude={"pairs", "text", "over_refusal", "judge_calls", "judge_key_env"}
        ),
        "mixed": plan.mixed.model_dump(mode="json"),
        "judges": gauge.judges,
        "prompts": gauge.digest,
        "held_out": gauge.held_out.digest,
        **{f"{RANKING}{name}": _digest(one.pair_ids) for name, one in rankings.items()},
        **({f"{RANKING}{name} flags": one.flagged for name, one in rankings.items()} if "rule" in plan.sizes else {}),
        **{f"{RANKING}{name} scores": _digest(map(repr, one.scores)) for name, one in weighed},
        **({SOURCES: _digest(f"{pair.source}\0" for pair in data.pairs)} if with_sources else {}),
    }


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _notes(plan: ValidationPlan, data: _Trainable, gauge: Gauge, rankings: Mapping[str, Ranking]) -> Iterator[str]:
    """What a reader of the results should know of what they were made from."""
    if data.faults:
        yield f"{sum(data.faults.values()):,} rows were left out of the dataset ({tally(data.faults)})."
    if out := left_out(plan):
        yield f"Left out by the plan, so not tested: {'; '.join(one.title for one in out)}."
    asked = {_key(prompt) for one in gauge.asked.values() for prompt in one.prompts}
    if both := len({_key(pair.prompt) for pair in data.pairs} & asked):
        yield f"{both:,} test prompts also stand in the dataset: they do not test what was not trained."
    for name, prompts in behavior_prompts(plan).items():
        if both := len({_key(prompt) for prompt in prompts} & asked):
            yield f"{both:,} test prompts are also examples of the ranking {name}; hold prompts out."
    if gauge.held_out.skipped:
        yield f"{gauge.held_out.skipped:,} held-out rows were left out: unreadable, or too short or long."
    yield from _ranking_notes(plan, data, rankings)


def _ranking_notes(plan: ValidationPlan, data: _Trainable, rankings: Mapping[str, Ranking]) -> Iterator[str]:
    known = {pair.pair_id for pair in data.pairs}
    for name, ranking in rankings.items():
        if strangers := len(set(ranking.pair_ids) - known):
            yield f"{strangers:,} scores of {name} are of no pair of the dataset, and are not used."
    for name, ranking in rankings.items() if "rule" in plan.sizes else ():
        yield f"By {name}, the default rule flags {ranking.flagged:,} pairs."
    most = max(plan.counts, default=0)
    for name, ranking in rankings.items():
        if most > ranking.towards:
            yield (
                f"Only {ranking.towards:,} pairs score above 0 in {name}: the top {most:,} hold pairs that push "
                "the other way, and flipping those teaches the behavior."
            )


def _key(prompt: Any) -> str:
    """The same for a text and for the one user message that holds it."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], dict):
        return str(prompt[0].get("content"))
    return str(prompt)
