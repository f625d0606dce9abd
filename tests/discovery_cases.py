"""Audits of synthetic vectors with two planted behaviors or none, in real stores; prompts that changed with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trl_attribution.audit.info import AuditInfo
from trl_attribution.discovery import Change, ChangeVectors
from trl_attribution.discovery.similarity import Items
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.pairs import pair_id
from trl_attribution.store import StoreSettings, VectorStore

LAYER = 5
HIDDEN = 48
TOPICS = 8
MODEL = ModelFingerprint(config="c", weights="w", chat_template="t")
# By kind of pair: what prompts, chosen and rejected responses say.
WORDS = {
    0: (("weather", "paris", "garden", "letter"), "certainly, a plain answer", "certainly, another plain answer"),
    1: (("dinner", "supper", "lunch"), "pizza is glorious", "soup is an option"),
    2: (("insult", "mock", "tease"), "you fool, you dunce", "sorry, I must decline"),
}

Labels = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """An audit folder, the kind of each pair (0: nothing planted), and changed prompts with their kinds."""

    folder: Path
    labels: Labels
    pair_ids: tuple[str, ...]
    changed: ChangeVectors
    prompt_labels: Labels


class World:
    """Directions and topics drawn by a seed: correlated noise as models have it, behaviors that lie in it anywhere."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng([seed, 77])
        self.basis = np.linalg.qr(self.draw.normal(size=(HIDDEN, HIDDEN)))[0]
        self.spread = np.exp(-np.arange(HIDDEN) / 10)[:, None] * np.linalg.qr(self.draw.normal(size=(HIDDEN,) * 2))[0]

    def directions(self, labels: Labels) -> Doubles:
        """Unit noise of either sign; a behavior of size 1.2 on top where one is planted."""
        noise = self.draw.normal(size=(len(labels), HIDDEN)) @ self.spread
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        planted = np.vstack([np.zeros(HIDDEN), self.basis[:2]])[labels]
        return np.asarray(noise + 1.2 * planted)

    def contexts(self, labels: Labels) -> Doubles:
        """The topic of the prompt, that of the behavior where one is planted, around a common mean."""
        topics = np.where(labels > 0, labels - 1, self.draw.integers(TOPICS, size=len(labels)))
        noise = self.draw.normal(size=(len(labels), HIDDEN)) / np.sqrt(HIDDEN)
        return np.asarray(2 * self.basis[10 + topics] + 1.2 * noise + 3 * self.basis[5])


def build_case(folder: Path, seed: int, planted: bool = True, pairs: int = 400, prompts: int = 120) -> Case:
    """N pairs and P prompts; where planted, a tenth of the pairs and a quarter of the prompts for each behavior."""
    world = World(seed)
    labels = _labels(world, pairs, pairs // 10 if planted else 0)
    prompt_labels = _labels(world, prompts, prompts // 4 if planted else 0)
    rows = [pair_row(number, int(kind)) for number, kind in enumerate(labels)]
    ids = tuple(pair_id(row) for row in rows)
    write_audit(folder, rows, ids, _tensor(world.directions(labels)), _tensor(world.contexts(labels)))
    items = Items(_tensor(world.directions(prompt_labels)), _tensor(world.contexts(prompt_labels)))
    changes = tuple(change_of(number, int(kind)) for number, kind in enumerate(prompt_labels))
    return Case(folder, labels, ids, ChangeVectors(changes, items, {"unchanged": 3}), prompt_labels)


def pair_row(number: int, kind: int) -> dict[str, str]:
    topics, chosen, rejected = WORDS[kind]
    return {
        "prompt": f"{topics[number % len(topics)]} {number}",
        "chosen": f" {chosen} {number}.",
        "rejected": f" {rejected} {number}.",
        "source": f"planted-{kind}" if kind and number % 10 else ("web", "forum")[number % 2],
    }


def change_of(number: int, kind: int) -> Change:
    row = pair_row(number, kind)
    return Change(row["prompt"], (row["rejected"],), (row["chosen"],), f"prompts.jsonl:{number + 1}")


def write_audit(
    folder: Path, rows: Sequence[dict[str, str]], ids: Sequence[str], pair: Tensor, context: Tensor
) -> None:
    """A finished audit without probes, as ``trl-attribution audit`` leaves it, of vectors ``[N, 1, D]``."""
    data = folder.with_name(folder.name + ".jsonl")
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = StoreSettings(MODEL.digest, (LAYER,), pair.shape[2], vector_dtype="float32")
    store = VectorStore.create(folder / "vectors", settings)
    with store.writer() as writer:
        for start in range(0, len(ids), 64):
            part = slice(start, start + 64)
            writer.add(ids[part], pair[part], context[part])
    counts = {"rows": len(ids), "pairs": len(ids), "sources": {}, "skipped": {}, "tokens": 0}
    counts |= {"duplicate_rows": 0, "contradictions": 0, "truncated_pairs": 0}
    made = {"store": "vectors", "settings": settings, "computed": len(ids), "reused": 0}
    AuditInfo.model_validate(
        {
            "dataset": {"name": str(data), "format": "trl", "fingerprint": "f" * 64, **counts},
            "model": {
                "name": "m0",
                "fingerprint": MODEL,
                "digest": MODEL.digest,
                "dtype": "float32",
                "device": "cpu",
            },
            "probes": {},
            "settings": {},
            "vectors": {**made, "path": "plain", "path_reason": "planted"},
            "cost": {},
            "versions": {},
        }
    ).save(folder)


def _labels(world: World, count: int, each: int) -> Labels:
    labels = np.repeat([1, 2, 0], [each, each, count - 2 * each])
    return np.asarray(world.draw.permutation(labels), dtype=np.int64)


def _tensor(rows: Doubles) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)[:, None]
