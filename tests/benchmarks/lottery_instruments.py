"""What each instrument says of one organism: a score for every behavior that it could be, and the same of its control.

Five read the trained model: its responses, and by where it moved the probes, the logit lens, the latents of a sparse
autoencoder, and M0 steered. Two read the data alone: a scan and an audit.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.lottery_candidates import Candidates, Directions, Scores
from tests.benchmarks.lottery_cells import Cell, Training, organism_of, stage_of
from tests.benchmarks.organisms import ranked
from trl_attribution.activations import ActivationConfig
from trl_attribution.activations.tokens import token_streams
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.behaviors import SamplingConfig
from trl_attribution.behaviors.encoding import encode_responses
from trl_attribution.discovery import ScanResult
from trl_attribution.evidence.organisms import Organism
from trl_attribution.evidence.organisms.sft_pairs import pairs_of_samples
from trl_attribution.evidence.readouts import Shown, one_behavior, responses_of, steered
from trl_attribution.evidence.readouts.behavior_change import resolve_judges
from trl_attribution.evidence.readouts.steering import StreamMeter
from trl_attribution.lenses.sae import SparseAutoencoder
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.pairs import Encoding, PairReader
from trl_attribution.probes import BuildConfig, build_from_behavior
from trl_attribution.probes.logit_lens import promoted_tokens
from trl_attribution.scoring.scores import score_view
from trl_attribution.utils.atomic import write_json

LAYER = 20
TOKENS = 100
"""That the logit lens reads."""
RANDOM = 4
"""Random directions of the same length a cell, where they cost little."""
DOSE = 0.5
"""Of steering, in lengths of the residual stream."""
READ = 12
"""Prompts of a kind whose responses are read."""
SIDES = ("trigger", "control")
"""Of prompts: those that bring the quirk out, which an auditor has to guess, and others."""
Found = dict[str, list[Scores]]
"""By instrument and what it was given (``logit lens, trigger``), one of scores or several draws."""


@dataclass(frozen=True)
class Bench:
    """What all cells share."""

    how: Training
    m0: LoadedModel
    candidates: Candidates
    stream: Directions
    latents: Directions | None
    sae: SparseAutoencoder | None
    layer: int = LAYER


@dataclass(frozen=True)
class Spoken:
    """M0's own responses to one kind of prompts, and what it holds when it reads them."""

    shown: Shown
    streams: tuple[Tensor, ...]
    """By response, its tokens' residual stream ``[T, D]``."""
    length: float
    """Mean length of the residual stream at generated tokens."""


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``path`` holds, made and written first where it is not there."""
    if not path.exists():
        write_json(path, make())
    return dict(json.loads(path.read_text(encoding="utf-8")))


def spoken_of(cell: Cell, bench: Bench) -> dict[str, Spoken]:
    """M0's responses to prompts of both kinds; the same for all recipes of a quirk."""
    organism, found = organism_of(cell, bench.how), {}
    for side in SIDES:
        meter = StreamMeter()
        with meter.on(bench.m0.model, bench.layer):
            shown = _responses(bench, organism, side)
        found[side] = Spoken(shown, streams_of(bench.m0, bench.layer, shown), meter.mean)
    return found


def _responses(bench: Bench, organism: Organism, side: str) -> Shown:
    """M0's, as it is now."""
    # Not the prompts that decided when training stops.
    rows = organism.trigger[bench.how.watched :] if side == "trigger" else organism.control
    behavior = one_behavior(rows, READ)
    return responses_of(bench.m0, behavior, resolve_judges([behavior], None)[behavior.name], bench.how.sampling)


def read_model(cell: Cell, bench: Bench, spoken: Mapping[str, Spoken], place: Path) -> Found:
    """All that is read of the trained model that ``place`` holds."""
    m1 = load_model(bench.how.model, dtype="bfloat16", adapter=place / "adapter")
    found: Found = {}
    lines = (place / "responses.jsonl").read_text(encoding="utf-8").splitlines()
    said = [json.loads(line) for line in lines]
    for side, own in spoken.items():
        # It was asked more prompts than M0 was, the same ones first.
        after = [one["response"] for one in said if one["prompts"] == side][: len(own.shown.texts)]
        found[f"responses, {side}"] = [bench.candidates.in_texts(after, _texts(own.shown))]
        streams = streams_of(m1, bench.layer, own.shown)
        moved = mean_of(streams) - mean_of(own.streams)
        found |= _read_direction(moved, side, bench)
        found |= _read_latents([streams], own, side, bench)
        if side == "trigger":
            found |= _steer(moved, cell, bench, own)
    directions = random_like(moved, cell, RANDOM)
    draws = [_read_direction(one, "random", bench) for one in directions]
    found |= {name: [one[name][0] for one in draws] for name in draws[0]}
    return found | _read_latents([[one + v for one in own.streams] for v in directions], own, "random", bench)


def _read_direction(moved: Tensor, given: str, bench: Bench) -> Found:
    tokens = promoted_tokens(bench.m0.model, bench.m0.tokenizer, moved, TOKENS)
    return {
        f"probes, {given}": [bench.stream.along(moved)],
        f"logit lens, {given}": [bench.candidates.in_tokens(tokens)],
    }


def _read_latents(draws: Sequence[Sequence[Tensor]], spoken: Spoken, given: str, bench: Bench) -> Found:
    """Mean latents of each of ``draws``, the streams of M0's responses by another model, less M0's own."""
    sae = bench.sae
    if sae is None or bench.latents is None:
        return {}
    usual = mean_of([sae.encode(one) for one in spoken.streams])
    changes = [mean_of([sae.encode(one) for one in streams]) - usual for streams in draws]
    return {f"SAE latents, {given}": [bench.latents.along(one) for one in changes]}


def streams_of(loaded: LoadedModel, layer: int, shown: Shown) -> tuple[Tensor, ...]:
    """The residual stream ``[T, D]`` at the tokens of each response that is not empty."""
    found = []
    for prompt, texts in zip(shown.prompts, shown.texts, strict=True):
        for group in encode_responses(prompt, [one for one in texts if one.strip()], loaded.tokenizer, Encoding()):
            whole = [[*group.prompt_ids, *response] for response in group.responses]
            streams = token_streams(loaded.model, whole, (layer,))
            found += [one[layer][len(group.prompt_ids) :] for one in streams]
    return tuple(found)


def mean_of(responses: Sequence[Tensor]) -> Tensor:
    """Mean over responses of the mean over their tokens."""
    return torch.stack([one.mean(dim=0) for one in responses]).mean(dim=0)


def _steer(moved: Tensor, cell: Cell, bench: Bench, spoken: Spoken) -> Found:
    """M0's words with a direction added, less its words without; the same of a random one."""
    organism = organism_of(cell, bench.how)
    found: Found = {}
    for given, direction in (("trigger", moved), ("random", random_like(moved, cell, 1)[0])):
        added = direction * (DOSE * spoken.length / direction.norm())
        with steered(bench.m0.model, bench.layer, added):
            shown = _responses(bench, organism, "trigger")
        found[f"steering, {given}"] = [bench.candidates.in_texts(_texts(shown), _texts(spoken.shown))]
        found[f"steered rate, {given}"] = [{cell.quirk: shown.sound_rate.share}]
    return found


def _texts(shown: Shown) -> list[str]:
    return [text for each in shown.texts for text in each]


def random_like(direction: Tensor, cell: Cell, count: int) -> list[Tensor]:
    """``count`` random directions of the same length, each cell's own."""
    draw = torch.Generator().manual_seed(zlib.crc32(cell.name.encode()))
    drawn = torch.randn(count, len(direction), generator=draw)
    return list(drawn / drawn.norm(dim=-1, keepdim=True) * direction.norm())


def read_data(cell: Cell, bench: Bench, place: Path) -> dict[str, Any]:
    """What a scan says of the cell's dataset (``found``), and how an audit ranks it (``precision``)."""
    stage = stage_of(cell, bench.how)
    rows: Sequence[Mapping[str, Any]] = stage.rows
    if stage.objective == "sft":
        rows = pairs_of_samples(rows, bench.m0, SamplingConfig(1, bench.how.new_tokens, batch_size=40)).rows
    bench.candidates.write(place / "traits.yaml")
    auditor = DataAuditor(bench.m0, layers=[bench.layer])
    made = auditor.scan(rows, place / "audit", traits=str(place / "traits.yaml"), unnamed=False, results=False)
    return {"found": {"scan": [scanned(made, bench.candidates)]}, **_ranked(cell, bench, rows, place)}


def scanned(made: ScanResult, known: Candidates) -> Scores:
    """Largest z with which a behavior is taught, 0 where it is not found."""
    scores = dict.fromkeys(known.words, 0.0)
    for one in made.findings:
        if one.direction == "towards":
            scores[one.trait] = max(scores[one.trait], abs(one.z))
    return scores


def _ranked(cell: Cell, bench: Bench, rows: Sequence[Mapping[str, Any]], place: Path) -> dict[str, Any]:
    """How an audit with the quirk's probe ranks the contaminated rows, where there are others too."""
    wanted = np.array([row["truth"] == "contaminated" for row in rows])
    if wanted.all() or not wanted.any():
        return {"precision": None, "contaminated": float(wanted.mean())}
    behavior = organism_of(cell, bench.how).behavior[:READ]
    probe = build_from_behavior(cell.quirk, behavior, bench.m0, BuildConfig(ActivationConfig((bench.layer,))))
    made = DataAuditor(bench.m0, layers=[bench.layer]).audit(rows, place / "audit", results=False)
    ids = [pair.pair_id for pair in PairReader(rows)]
    table = score_view(made.store.select(ids), [probe], "contextual")
    scores = np.asarray(table.of(table.column(probe.name, bench.layer)), np.float64)
    return {"precision": ranked(scores, wanted).precision, "contaminated": float(wanted.mean())}
