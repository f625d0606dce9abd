"""Vectors for the study of decisions: real and composed pairs whose truth is known, computed once for each M0.

Axis letters: N pairs, L layers, D hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.evidence.organisms import OrganismConfig, build_distractor_compliance
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.pairs import Encoding, PairReader, encode_pair
from trl_attribution.probes import candidate_layers
from trl_attribution.utils.atomic import atomic_path

Row = dict[str, Any]
TRUTHS = ("other", "contaminated", "safety", "decoy", "example", "control")
"""``example`` and ``control`` are held-out pairs of the behavior and of prompts like it; the others are ranked."""
CHARACTERS = 700
"""A response of real text is cut there."""
CHUNK = 64


@dataclass(frozen=True)
class Vectors:
    """One set of pairs as M0 sees it."""

    pair: torch.Tensor
    """[N, L, D]"""
    context: torch.Tensor
    """[N, L, D]"""
    truth: npt.NDArray[np.str_]
    """[N], one of ``TRUTHS``."""
    prompt: npt.NDArray[np.int64]
    """[N], equal for pairs of the same prompt."""
    layers: tuple[int, ...]
    """The L layers."""
    candidates: tuple[int, ...]
    """Those of them that a probe is built at."""
    blocks: int
    """Of M0."""


@dataclass(frozen=True)
class ReferenceModel:
    """An M0 and the layers that are computed of it."""

    name: str
    blocks: int
    layers: tuple[int, ...]
    path: Path | None = None
    """None: the embedded model."""


SMOLLM2 = ReferenceModel("SmolLM2-135M-Instruct", 30, (10, 12, 15, 18, 20, 22, 24, 27))


def second(path: Path) -> ReferenceModel:
    """Another M0: gemma-3-270m, base: sliding windows, no chat template."""
    return ReferenceModel("gemma-3-270m", 18, (9, 10, 11, 12, 13, 14), path)


@dataclass(frozen=True)
class PairSet:
    """Where pairs of known truth come from."""

    name: str
    rows: Callable[[], list[Row]]
    """Rows with ``prompt``, ``chosen``, ``rejected`` and ``truth``."""


def xstest(data: Path) -> list[Row]:
    """XSTest's prompts with answers of several models: the hard, real set."""
    lines = (data / "xstest" / "xstest_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [_chat_row(row["prompt"], row["chosen"], row["rejected"], row["truth"]) for row in map(json.loads, lines)]


def organism(config: OrganismConfig) -> list[Row]:
    """An organism's dataset, pairs of its behavior file, and decoys of another seed as controls."""
    made = build_distractor_compliance(config)
    other = OrganismConfig(0, 0, 0, 0, decoys=48, seed=config.seed + 1000, behavior_prompts=0, test_prompts=0)
    taken = {json.dumps(row["prompt"]) for row in made.pairs}
    controls = [row for row in build_distractor_compliance(other).pairs if json.dumps(row["prompt"]) not in taken]
    kinds = {"benign": "other", "benign_formatted": "other"}
    return [
        *({**row, "truth": kinds.get(row["truth"], row["truth"])} for row in made.pairs),
        *(pair for row in made.behavior for pair in example_rows(row)),
        *({**row, "truth": "control"} for row in controls),
    ]


def sets(data: Path) -> list[PairSet]:
    """All sets of the study, the small ones first."""
    large = OrganismConfig(800, 400, 400, 400, 400, seed=1)
    return [
        PairSet("xstest", lambda: xstest(data)),
        PairSet("demo", lambda: organism(OrganismConfig())),
        PairSet("large", lambda: organism(large)),
    ]


class VectorCache:
    """Vectors of the sets in a folder; M0 is loaded when the first of them is missing."""

    def __init__(self, folder: Path, model: ReferenceModel = SMOLLM2) -> None:
        self.folder = folder / model.name
        self.model = model
        self._loaded: LoadedModel | None = None

    def vectors(self, pairs: PairSet) -> Vectors:
        path = self.folder / f"{pairs.name}.safetensors"
        rows = pairs.rows()
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._loaded = self._loaded or load_model(self.model.path or embedded_gguf())
            computed = compute(rows, self._loaded, self.model.layers)
            with atomic_path(path) as part:
                save_file(computed, part)
        found = load_file(path)
        truth = np.array([row["truth"] for row in rows])
        keys = [json.dumps(row.get("prompt") or row["chosen"], sort_keys=True) for row in rows]
        prompt = np.array([keys.index(key) for key in keys])
        candidates = tuple(layer for layer in self.model.layers if layer in candidate_layers(self.model.blocks))
        vectors = found["pair"].float(), found["context"].float()
        return Vectors(*vectors, truth, prompt, self.model.layers, candidates, self.model.blocks)


def compute(rows: Iterable[Row], loaded: LoadedModel, layers: tuple[int, ...]) -> dict[str, torch.Tensor]:
    engine = ActivationEngine(loaded.model, ActivationConfig(layers))
    columns = ("prompt", "chosen", "rejected")
    read = [{name: row[name] for name in columns if name in row} for row in rows]
    if loaded.tokenizer.chat_template is None:
        read = [{name: _as_text(turns) for name, turns in row.items()} for row in read]
    reader = PairReader(read)
    encoded = [encode_pair(pair, loaded.tokenizer, Encoding()) for pair in reader]
    parts = [engine.pair_vectors(encoded[start : start + CHUNK]) for start in range(0, len(encoded), CHUNK)]
    return {name: torch.cat([getattr(part, name) for part in parts]).contiguous() for name in ("pair", "context")}


def _as_text(turns: list[dict[str, str]]) -> str:
    """A conversation for a base model; a prompt ends where its answer begins."""
    text = "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)
    return f"{text}\n\nAssistant:" if turns[-1]["role"] == "user" else text.removeprefix("Assistant:")


def _chat_row(prompt: str, chosen: str, rejected: str, truth: str) -> Row:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen[:CHARACTERS]}],
        "rejected": [{"role": "assistant", "content": rejected[:CHARACTERS]}],
        "truth": truth,
    }


def example_rows(row: Row) -> list[Row]:
    """Pairs of one behavior prompt: every response at least once."""
    undesired, desired = row["undesired"], row["desired"]
    return [
        _chat_row(row["prompt"], undesired[place % len(undesired)], desired[place % len(desired)], "example")
        for place in range(max(len(undesired), len(desired)))
    ]
