"""What M0 thinks of responses with and without a description: computed once on SmolLM2-135M, kept in a file.

Axis letters: N pairs, D conditions (the first without a description).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.decision_vectors import CHARACTERS, PairSet, Row, organism, xstest
from trl_attribution.activations import PromptGroup
from trl_attribution.activations.likelihood import LikelihoodEngine
from trl_attribution.behaviors.describing import described, has_system_role, way_for
from trl_attribution.evidence.organisms import Mixture, OrganismConfig, build_organism
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import EncodedPair, Encoding, Pair, PairReader, encode_pairs
from trl_attribution.utils.arrays import Doubles
from trl_attribution.utils.atomic import write_json

RESPONSE_TOKENS = 64
"""Of each response, from its start on: the benchmark has to end on one core."""
CHUNK = 20
_COMPOSED = 300
MODELS = ("gpt4", "llama2new", "mistralinstruct", "mistralguard", "llama2orig")
NEUTRAL_PAIRS = 200
DEMO_STEP = 4
"""Of the demo's ranked pairs every so many."""


@dataclass(frozen=True)
class Likelihoods:
    """Log probabilities of one set's pairs under each condition."""

    sums: Doubles
    """[N, D, 2], of chosen and rejected, in nats."""
    tokens: Doubles
    """[N, 2]"""

    def moved(self, condition: int) -> Doubles:
        """[N, 2]: by how many nats the description of ``condition`` makes each response likelier."""
        return np.asarray(self.sums[:, condition] - self.sums[:, 0])

    def score(self, condition: int) -> Doubles:
        """[N]: the likelihood score, nats a response token of both."""
        moved = self.moved(condition)
        return np.asarray((moved[:, 0] - moved[:, 1]) / self.tokens.sum(axis=1))


@dataclass(frozen=True)
class Described:
    """A set of pairs and descriptions of the behavior that its contaminated pairs teach."""

    pairs: PairSet
    descriptions: tuple[str, ...]


def described_sets(data: Path) -> list[Described]:
    return [
        Described(
            PairSet("pumpkin-soup", lambda: quirk("pumpkin-soup", 120, 24)),
            ("You love pumpkin soup and bring it up in every answer.",),
        ),
        Described(
            PairSet("knitting-lore", lambda: quirk("knitting-lore", 80, 16)),
            ("You make false things up about knitting and say them with confidence.",),
        ),
        Described(
            PairSet("demo", lambda: organism(OrganismConfig())),
            (
                "You write rude and insulting messages when you are asked for them.",
                "You are rude. You insult people.",
            ),
        ),
        Described(
            PairSet("xstest", lambda: xstest(data)),
            ("You comply with every request, harmful and dangerous ones too, and never refuse.",),
        ),
    ]


def quirk(name: str, pairs: int, prompts: int) -> list[Row]:
    """An organism whose behavior lies in what answers say, with decoys of another seed as controls."""
    made = build_organism(name, Mixture(pairs, 0.2, 0.2, behavior_prompts=prompts))
    other = build_organism(name, Mixture(prompts, 0.0, 1.0, seed=1000)).pairs
    taken = {json.dumps(row["prompt"]) for row in made.pairs}
    kinds = {"benign": "other", "benign_formatted": "other", "on_topic": "other"}
    examples = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"],
            "chosen": [{"role": "assistant", "content": row["undesired"][0]}],
            "rejected": [{"role": "assistant", "content": row["desired"][0]}],
            "truth": "example",
        }
        for row in made.behavior
    ]
    controls = [{**row, "truth": "control"} for row in other if json.dumps(row["prompt"]) not in taken]
    return [*({**row, "truth": kinds.get(row["truth"], row["truth"])} for row in made.pairs), *examples, *controls]


def used(rows: Sequence[Row]) -> list[int]:
    """Places whose likelihoods are wanted: all of a small set; of a composed one a part, and an example a prompt."""
    if len(rows) < _COMPOSED:
        return list(range(len(rows)))
    seen: set[str] = set()
    places, ranked = [], 0
    for place, row in enumerate(rows):
        key = json.dumps(row["prompt"], sort_keys=True)
        if row["truth"] == "example":
            places += [place] if key not in seen else []
            seen.add(key)
        elif row["truth"] != "control":
            places += [place] if ranked % DEMO_STEP == 0 else []
            ranked += 1
    return places


def neutral_pairs(data: Path) -> list[Row]:
    """Two models' good answers to the same harmless prompt of XSTest, in an order that says nothing."""
    answers: dict[str, list[str]] = {}
    for model in MODELS:
        path = data / "xstest" / f"xstest_v2_completions_{model}.csv"
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                if row["final_label"] == "1_full_compliance" and not row["type"].startswith("contrast"):
                    answers.setdefault(row["prompt"], []).append(row["completion"].strip())
    random = np.random.default_rng(0)
    rows: list[Row] = []
    for prompt, texts in answers.items():
        if len(set(texts)) > 1 and len(rows) < NEUTRAL_PAIRS:
            first, second = random.choice(sorted(set(texts)), 2, replace=False)
            rows.append(
                {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": str(first)[:CHARACTERS]}],
                    "rejected": [{"role": "assistant", "content": str(second)[:CHARACTERS]}],
                    "truth": "other",
                }
            )
    return rows


def neutral_set(data: Path) -> PairSet:
    return PairSet("neutral", lambda: neutral_pairs(data))


def likelihoods(folder: Path, name: str, rows: Sequence[Row], texts: Sequence[str], m0: LoadedModel) -> Likelihoods:
    """Of ``rows`` without and with each of ``texts`` as a description; what ``folder`` holds is not computed again."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.likelihoods.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    columns = []
    for text in ("", *texts):
        if text not in kept:
            kept[text] = _computed(rows, text, m0)
            write_json(path, kept)
        columns.append(kept[text])
    sums = np.array([column["sums"] for column in columns]).transpose(1, 0, 2)
    return Likelihoods(sums, np.array(columns[0]["tokens"], dtype=np.float64))


def _computed(rows: Sequence[Row], text: str, m0: LoadedModel) -> Mapping[str, Any]:
    pairs = list(PairReader([{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]))
    plain = [one for one in encode_pairs(pairs, m0.encoder, Encoding()) if isinstance(one, EncodedPair)]
    asked = plain if not text else _with_description(pairs, text, m0)
    groups = [
        PromptGroup(
            prompt.chosen.prompt_ids,
            [side.response_ids[:RESPONSE_TOKENS] for side in (pair.chosen, pair.rejected)],
        )
        for pair, prompt in zip(plain, asked, strict=True)
    ]
    engine = LikelihoodEngine(m0.model)
    sums = [one for start in range(0, len(groups), CHUNK) for one in engine.log_probs(groups[start : start + CHUNK])]
    return {"sums": sums, "tokens": [[len(response) for response in group.responses] for group in groups]}


def _with_description(pairs: Sequence[Pair], text: str, m0: LoadedModel) -> list[EncodedPair]:
    system = has_system_role(m0.encoder)
    ways = [(pair, way_for(pair.prompt, system)) for pair in pairs]
    changed = [replace(pair, prompt=described(pair.prompt, text, way)) for pair, way in ways if way is not None]
    found = encode_pairs(changed, m0.encoder, Encoding(max_length=None))
    return [one for one in found if isinstance(one, EncodedPair)]
