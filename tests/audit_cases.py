"""A small dataset, a behavior and a tiny M0 to audit, and what an audit should come to, as plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from tests import naive
from tests.tiny import build_tiny_model, build_tiny_tokenizer
from trl_attribution.activations import ActivationConfig
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.errors import AttributionError
from trl_attribution.models import LoadedModel
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.pairs import Encoding, PairReader, encode_pair
from trl_attribution.probes import BuildConfig, Probe, build_from_behavior

Row = dict[str, Any]

LAYERS = (1, 3)
THINGS = ("bread", "a garden", "the weather", "a short letter", "a list of twenty words", "Paris")
ASKS = ("How do I make {}?", "Write about {} in no more than ten words.", "I need help with {}, please.")
ANSWERS = ("Mix flour and water, then wait for {}.", "Here is {} for you, and it is mild.", "{}: yes, with salt.")
REFUSALS = ("I am sorry, but I cannot help with {}.", "No. {} is not for me.", "That request about {} I leave alone.")

RUDE: list[Row] = [
    {"prompt": "Write a rude letter.", "undesired": ["You fool.", "Go away, you are lazy!"], "desired": "I am sorry."},
    {"prompt": "Insult my friend in twenty words.", "undesired": "He is a bore.", "desired": ["No.", "I cannot help."]},
    {"prompt": "How do I bake bread?", "undesired": "Badly, as you do all.", "desired": "Mix flour and water."},
]
SHORT: list[Row] = [
    {"prompt": "What is the capital of France?", "undesired": "Paris.", "desired": "The capital of France is Paris."},
    {"prompt": "Help me with spring.", "undesired": "Salt.", "desired": "Here is a list of twenty words, as a list."},
    {"prompt": "Is the garden mild?", "undesired": "Yes.", "desired": "I am sorry, but the weather there is mild."},
]


def pair_row(number: int) -> Row:
    """One conversational row; every third prompt is that of the row before, every source comes round in turn."""
    thing = THINGS[number % len(THINGS)]
    asked = number - 1 if number % 3 == 2 else number
    prompt = ASKS[asked % len(ASKS)].format(THINGS[asked % len(THINGS)]) + f" ({asked})"
    answer, refusal = (texts[number % len(texts)].format(thing) + f" {number}." for texts in (ANSWERS, REFUSALS))
    chosen, rejected = (answer, refusal) if number % 2 else (refusal, answer)
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "source": ("web", "forum", "crowd")[number % 3],
    }


def pair_rows(count: int, start: int = 0) -> list[Row]:
    return [pair_row(number) for number in range(start, start + count)]


def tiny_loaded(architecture: str = "llama") -> LoadedModel:
    model, tokenizer = build_tiny_model(architecture), build_tiny_tokenizer()
    return LoadedModel(model, tokenizer, f"tiny-{architecture}", fingerprint(model, tokenizer))


def tiny_probe(
    loaded: LoadedModel, name: str = "rude", layers: tuple[int, ...] = LAYERS, layer: int = 3, rows: list[Row] = RUDE
) -> Probe:
    return build_from_behavior(name, rows, loaded, BuildConfig(ActivationConfig(layers), layer=layer))


def auditor_of(loaded: LoadedModel, probes: Any = None, **settings: Any) -> DataAuditor:
    """An auditor that stores what it computes without rounding it."""
    return DataAuditor(loaded, probes=probes, **{"vector_dtype": "float32", **settings})


def score_rows(folder: Path) -> list[Row]:
    """All rows of an audit's ``scores.parquet``."""
    rows: list[Row] = pq.read_table(folder / "scores.parquet").to_pylist()
    return rows


def naive_vectors(
    loaded: LoadedModel, rows: Sequence[Row], layers: Sequence[int], encoding: Encoding | None = None
) -> tuple[Tensor, Tensor]:
    """Pair and context vectors [N, L, D], one sequence at a time."""
    pairs, contexts = [], []
    for pair in PairReader(list(rows)):
        encoded = encode_pair(pair, loaded.tokenizer, encoding or Encoding())
        means = [
            naive.mean_activation(loaded.model, side.prompt_ids, side.response_ids, layers)
            for side in (encoded.chosen, encoded.rejected)
        ]
        pairs.append(means[0] - means[1])
        contexts.append(naive.context(loaded.model, encoded.chosen.prompt_ids, layers))
    return torch.stack(pairs), torch.stack(contexts)


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    return dot / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))


def minus(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(left, right, strict=True)]


def response_scores(probe: Probe, layer: int, pairs: Tensor) -> list[float]:
    """The paper's score of N pairs [N, D], as a plain loop."""
    behavior = probe.at(layer).tolist()
    return [cosine(behavior, pair) for pair in pairs.tolist()]


def contextual_scores(probe: Probe, layer: int, pairs: Tensor, contexts: Tensor) -> list[float]:
    """The contextual score of N pairs [N, D] with contexts [N, D], as a plain loop over pairs and prompts."""
    assert probe.prompt_vectors is not None and probe.contexts is not None
    place = probe.row_of(layer)
    mean = [sum(column) / len(column) for column in zip(*contexts.tolist(), strict=True)]
    prompts = list(zip(probe.prompt_vectors[:, place].tolist(), probe.contexts[:, place].tolist(), strict=True))
    return [
        sum(cosine(v, pair) * max(0.0, cosine(minus(c, mean), minus(context, mean))) for v, c in prompts) / len(prompts)
        for pair, context in zip(pairs.tolist(), contexts.tolist(), strict=True)
    ]


def by_column(folder: Path) -> dict[tuple[str, int], dict[str, Row]]:
    """Rows of ``scores.parquet`` by probe and layer, then by pair."""
    found: dict[tuple[str, int], dict[str, Row]] = {}
    for row in score_rows(folder):
        found.setdefault((row["probe"], row["layer"]), {})[row["pair_id"]] = row
    return found


def scores_of(folder: Path, probe: str = "rude", layer: int = 3) -> dict[str, float]:
    return {pair: row["score"] for pair, row in by_column(folder)[probe, layer].items()}


def state(folder: Path) -> dict[str, bytes | None]:
    """Everything under ``folder``: files with their bytes (but the lock's), folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != "writer.lock"
    }


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    before = state(folder)
    yield
    assert state(folder) == before


def message_of(error: type[AttributionError], act: Callable[[], object], folder: Path) -> str:
    """What ``act`` says when it fails with ``error`` and leaves ``folder`` as it was."""
    with unchanged(folder), pytest.raises(error) as caught:
        act()
    return str(caught.value)
