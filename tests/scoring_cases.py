"""Real stores and probes of random vectors, and the scores of the definition, one pair and one prompt at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.probes.probe import Probe
from trl_attribution.scoring.asked import Column
from trl_attribution.scoring.scores import Scores, score_view
from trl_attribution.store import StoreSettings, VectorStore

MODEL = ModelFingerprint(config="c", weights="w", chat_template="t")
HIDDEN = 16


def ids(count: int, prefix: str = "pair") -> list[str]:
    return [hashlib.sha256(f"{prefix} {number}".encode()).hexdigest()[:32] for number in range(count)]


def store_of(folder: Path, pair: Tensor, context: Tensor, layers: Sequence[int]) -> VectorStore:
    """A float32 store of vectors ``[N, L, D]``, in shards of uneven sizes."""
    settings = StoreSettings(MODEL.digest, tuple(layers), pair.shape[2], vector_dtype="float32")
    store = VectorStore.create(folder, settings)
    names = ids(len(pair))
    with store.writer() as writer:
        for start in range(0, len(pair), 7):
            part = slice(start, start + 7)
            writer.add(names[part], pair[part], context[part])
    return store


def random_store(folder: Path, pairs: int = 40, layers: Sequence[int] = (5, 9), seed: int = 1) -> VectorStore:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(pairs, len(layers), HIDDEN, generator=generator)
    context = torch.randn(pairs, len(layers), HIDDEN, generator=generator) + 3
    return store_of(folder, pair, context, layers)


def random_probe(
    name: str = "insults", layers: Sequence[int] = (5, 9), prompts: int = 4, layer: int = 9, seed: int = 2
) -> Probe:
    """A probe with ``prompts`` prompts; 0 prompts make one that does not know its prompts."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(max(1, prompts), len(layers), HIDDEN, generator=generator)
    contexts = torch.randn(max(1, prompts), len(layers), HIDDEN, generator=generator) + 3
    known = (vectors, contexts) if prompts else (None, None)
    return Probe(name, tuple(layers), vectors.mean(dim=0), layer, MODEL, *known)


def scores_of(columns: dict[str, npt.ArrayLike], folder: Path | None = None) -> Scores:
    """Exactly these response scores: pair vectors are built so that their cosine with the probe's axis is the score."""
    values = torch.tensor(np.array(list(columns.values())), dtype=torch.float64)
    size = len(columns) + 1
    pair = torch.zeros(values.shape[1], 1, size)
    # Orthogonal axes, one per probe: scores s with sum of squares up to 1 leave the rest to the last coordinate.
    pair[:, 0, :-1] = values.T.float()
    pair[:, 0, -1] = (1 - values.square().sum(dim=0)).clamp(min=0).sqrt().float()
    probes = [Probe(name, (5,), torch.eye(size)[index][None], 5, MODEL) for index, name in enumerate(columns)]
    assert folder is not None
    store = store_of(folder / "vectors", pair, torch.zeros_like(pair), (5,))
    return score_view(store.view(), probes, scratch=folder)


def naive_scores(store: VectorStore, probe: Probe, column: Column) -> list[float]:
    """The definition in float64: for every pair, for every prompt."""
    view = store.view()
    pair, context = view.layer(column.layer).double(), view.context(column.layer).double()
    index = probe.layers.index(column.layer)
    if column.kind == "response":
        return [_cosine(probe.vector[index].double(), row) for row in pair]
    assert probe.prompt_vectors is not None
    assert probe.contexts is not None
    mean = context[context.any(dim=1)].mean(dim=0)
    scores = []
    for row, where in zip(pair, context, strict=True):
        total = 0.0
        for vector, prompt in zip(
            probe.prompt_vectors[:, index].double(), probe.contexts[:, index].double(), strict=True
        ):
            similar = _cosine(prompt - mean, where - mean) if where.any() else 0.0
            total += _cosine(vector, row) * max(0.0, similar)
        scores.append(total / len(probe.prompt_vectors))
    return scores


def _cosine(left: Tensor, right: Tensor) -> float:
    norm = float(left.norm() * right.norm())
    return float(left @ right) / norm if norm else 0.0
