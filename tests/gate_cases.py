"""Datasets whose pairs have exactly the scores asked for, without a model: a store made elsewhere, and one probe."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trl_attribution.gate.check import GateOptions, GateRun, run_gate
from trl_attribution.gate.policy.file import load_policy
from trl_attribution.gate.verdict import RuleResult, Verdict
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.pairs import pair_id
from trl_attribution.probes import Probe, ProbeRegistry
from trl_attribution.store import StoreSettings, VectorStore

Row = dict[str, Any]

MODEL = ModelFingerprint(config="c", weights="w", chat_template="t")
LAYER = 5
HIDDEN = 4
TODAY = datetime.date(2026, 6, 1)


def row(number: int, source: str = "web", **changes: Any) -> Row:
    return {
        "prompt": f"Question {number}?",
        "chosen": f"Yes, answer {number}.",
        "rejected": f"No, not number {number}.",
        "source": source,
        **changes,
    }


def rows(count: int, start: int = 0, source: str = "web") -> list[Row]:
    return [row(number, source) for number in range(start, start + count)]


def write_rows(path: Path, data: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in data), encoding="utf-8")
    return path


def store_scores(folder: Path, scores: Mapping[str, float], name: str = "main", **settings: Any) -> VectorStore:
    """A store in which the pair vector of each id has exactly that cosine with the probe's axis."""
    values = torch.tensor(list(scores.values()), dtype=torch.float64)
    vectors = torch.zeros(len(values), 1, HIDDEN)
    vectors[:, 0, 0] = values.float()
    vectors[:, 0, 1] = (1 - values.square()).clamp(min=0).sqrt().float()
    kept = StoreSettings(MODEL.digest, (LAYER,), HIDDEN, **{"vector_dtype": "float32", **settings})
    store = VectorStore.create(folder, kept)
    with store.writer(name) as writer:
        writer.add(list(scores), vectors, torch.zeros_like(vectors))
    return VectorStore.open(folder, repeats=True)


def axis_probe(name: str = "insults", reference: Sequence[float] | None = None, axis: int = 0) -> Probe:
    """A probe whose response score is the cosine with one axis; with clean reference scores where they are given."""
    calibrated: dict[str, Any] = {}
    if reference is not None:
        calibrated = {
            "reference_scores": torch.tensor([list(reference)]),
            "built": {"calibration": {"kind": "response", "pairs": len(reference)}},
        }
    return Probe(name, (LAYER,), torch.eye(HIDDEN)[axis][None], LAYER, MODEL, **calibrated)


def knowing_probe(examples: Sequence[float], name: str = "insults") -> Probe:
    """As :func:`axis_probe`; it keeps a pair for each of 8 prompts or more, whose held-out scores are ``examples``."""
    cosines = torch.tensor(list(examples))
    pairs = torch.zeros(len(cosines), 1, HIDDEN)
    pairs[:, 0, 0], pairs[:, 0, 1] = cosines, (1 - cosines.square()).sqrt()
    axis = torch.eye(HIDDEN)[0]
    return Probe(
        name,
        (LAYER,),
        axis[None],
        LAYER,
        MODEL,
        prompt_vectors=axis.expand(len(cosines), 1, HIDDEN),
        example_vectors=pairs,
        example_prompts=torch.arange(len(cosines)),
    )


class Place:
    """A folder with ``data.jsonl``, ``vectors/``, ``probes/`` and ``gate.yaml``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data.jsonl"
        self.policy = folder / "gate.yaml"

    def dataset(self, data: Sequence[Mapping[str, Any]], scores: Sequence[float] | None = None) -> None:
        """Write the rows, and the vectors of those that have a score; rows without one score -0.1."""
        write_rows(self.data, data)
        given = [*(scores or ()), *([-0.1] * (len(data) - len(scores or ())))]
        by_id: dict[str, float] = {}
        for each, score in zip(data, given, strict=True):
            by_id.setdefault(pair_id(each), score)
        store_scores(self.folder / "vectors", by_id)

    def probe(self, *probes: Probe) -> None:
        for probe in probes or (axis_probe(),):
            ProbeRegistry(self.folder / "probes").save(probe)

    def write_policy(self, rules: str, more: str = "", vectors: str | None = "vectors: vectors") -> None:
        """``rules`` in flow style, such as ``{probes: {insults: {max_flagged_count: 0}}}``."""
        lines = ["version: 1", "probes: probes", vectors or "", more, f"rules: {rules}", ""]
        self.policy.write_text("\n".join(line for line in lines if line) + "\n", encoding="utf-8")

    def run(self, **options: Any) -> GateRun:
        return run_gate(load_policy(self.policy), self.data, GateOptions(**{"today": TODAY, **options}))

    def judge(self, rules: str, more: str = "", **options: Any) -> Verdict:
        self.write_policy(rules, more)
        return self.run(**options).verdict


def only_rule(verdict: Verdict) -> RuleResult:
    (rule,) = verdict.rules
    return rule
