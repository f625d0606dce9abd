"""A small dataset, a behavior and a tiny M0 to audit; child processes import it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.tiny import build_tiny_model, build_tiny_tokenizer
from trl_attribution.activations import ActivationConfig
from trl_attribution.auditor import DataAuditor
from trl_attribution.fingerprint import fingerprint
from trl_attribution.models import LoadedModel
from trl_attribution.probes import BuildConfig, Probe, build_from_behavior

Row = dict[str, Any]

LAYERS = (1, 3)
_THINGS = ("bread", "a garden", "the weather", "a short letter", "a list of twenty words", "Paris")
_ASKS = ("How do I make {}?", "Write about {} in no more than ten words.", "I need help with {}, please.")
_ANSWERS = ("Mix flour and water, then wait for {}.", "Here is {} for you, and it is mild.", "{}: yes, with salt.")
_REFUSALS = ("I am sorry, but I cannot help with {}.", "No. {} is not for me.", "That request about {} I leave alone.")

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
    thing = _THINGS[number % len(_THINGS)]
    asked = number - 1 if number % 3 == 2 else number
    prompt = _ASKS[asked % len(_ASKS)].format(_THINGS[asked % len(_THINGS)]) + f" ({asked})"
    answer, refusal = (texts[number % len(texts)].format(thing) + f" {number}." for texts in (_ANSWERS, _REFUSALS))
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
