"""Small preference datasets to train on, and prompts that are held out from them; the same seed gives the same rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.scan import HH_FILE, readable_rows, shuffled
from trl_attribution.behaviors import SamplingConfig, sample_responses
from trl_attribution.discovery.traits.trait import packaged_traits
from trl_attribution.evidence.organisms import Mixture, OrganismConfig, build_distractor_compliance, build_organism
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import PairReader, whole_text

PAIRS = 200
PROMPTS = 128
SHORT = (30, 40)
"""Words of a prompt and of a response of HH-RLHF at most: longer ones take too long on a CPU."""
ASKED = (
    ("questions", "longer", 1),
    ("questions", "lists-and-markdown", 1),
    ("messages", "warm", 1),
    ("messages", "formal", -1),
)
"""What the project's mix prefers, and on what: -1 prefers the opposite of the trait."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A dataset to train on."""

    rows: list[Row]
    """``prompt``, ``chosen``, ``rejected``, ``source``."""
    prompts: list[Any]
    """Held out."""


def harmless(data: Path) -> Case:
    """Short pairs of HH-RLHF harmless-base, test split, and other short prompts of it."""
    rows, prompts = [], []
    for row in readable_rows(data / HH_FILE):
        (pair,) = PairReader([row])
        words = [len(whole_text(part).split()) for part in (pair.prompt, pair.chosen, pair.rejected)]
        if words[0] > SHORT[0]:
            continue
        if len(rows) < PAIRS and max(words[1:]) <= SHORT[1]:
            rows.append({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "source": "hh"})
        else:
            prompts.append(pair.prompt)
    return Case(rows, held_out(prompts, rows))


def organism(name: str) -> Case:
    """An organism at a fifth of contamination, and prompts of the same mixture with another seed."""
    rows = [_bare(row) for row in build_organism(name, Mixture(PAIRS)).pairs]
    return Case(rows, held_out([row["prompt"] for row in build_organism(name, Mixture(600, seed=1)).pairs], rows))


def mix(model: LoadedModel) -> Case:
    """M0's own answers under two opposite instructions each: other preferences for questions than for messages."""
    traits = {one.name: one for one in packaged_traits()}
    asked = {kind: _prompts_of(kind) for kind in ("questions", "messages")}
    rows: list[Row] = []
    prompts = {kind: list(texts) for kind, texts in asked.items()}
    for kind, name, sign in ASKED:
        own = [prompts[kind].pop() for _ in range(PAIRS // len(ASKED))]
        told = [traits[name].instruction[0].pos, traits[name].instruction[0].neg][::sign]
        sampling = SamplingConfig(n=1, max_new_tokens=32, batch_size=48)
        sides = [sample_responses(model, [f"{one}\n\n{text}" for text in own], sampling) for one in told]
        rows += [
            {"prompt": _user(text), "chosen": _said(chosen[0]), "rejected": _said(rejected[0]), "source": kind}
            for text, chosen, rejected in zip(own, *sides, strict=True)
            if chosen[0].strip() and rejected[0].strip()
        ]
    left = [_user(text) for kind in prompts for text in prompts[kind][: PROMPTS // len(prompts)]]
    return Case(rows, left)


def without_labels(case: Case) -> Case:
    """The same with chosen and rejected exchanged at random."""
    return Case([dict(row) for row in shuffled(case.rows, seed=0)], case.prompts)


def held_out(prompts: Sequence[Any], rows: Sequence[Row]) -> list[Any]:
    """Some of the prompts that are not in ``rows``, each once."""
    known = {whole_text(row["prompt"]) for row in rows}
    different = {whole_text(one): one for one in prompts if whole_text(one) not in known}
    return random.Random(0).sample(list(different.values()), PROMPTS)


def others(data: Path) -> dict[str, Callable[[], Case]]:
    """The datasets that need no model, by name; HH-RLHF's where ``data`` has it."""
    found: dict[str, Callable[[], Case]] = {}
    if (data / HH_FILE).exists():
        found["hh-rlhf"] = partial(harmless, data)
    return found | {name: partial(organism, name) for name in ("distractor-compliance", "pumpkin-soup")}


def _prompts_of(kind: str) -> list[str]:
    size = dict.fromkeys(("benign", "benign_formatted", "safety", "contaminated", "decoys"), 0)
    size["benign" if kind == "questions" else "decoys"] = 400
    rows = build_distractor_compliance(OrganismConfig(**size)).pairs
    texts = [str(row["prompt"][0]["content"]) for row in rows]
    if kind == "messages":
        texts = [text for text in texts if any(f" {word} " in text for word in ("note", "message", "letter", "card"))]
    return list(dict.fromkeys(texts))


def _bare(row: Row) -> Row:
    return {name: row[name] for name in ("prompt", "chosen", "rejected", "source")}


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text.strip()}]
