"""Vectors of organisms for the study of scores: computed once on one M0, kept in a file, scored in many ways after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_model import train_tiny_m0
from tiny_organism import TinyConfig, build_tiny_organism

from trl_attribution.activations import ActivationConfig, ActivationEngine, PromptGroup
from trl_attribution.behaviors import read_behavior
from trl_attribution.behaviors.encoding import encode_example, example_activations
from trl_attribution.evidence.organisms import OrganismConfig, build_distractor_compliance
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.pairs import Encoding, PairReader, encode_pair
from trl_attribution.probes import candidate_layers
from trl_attribution.probes.separability import choose_layer, cross_validated_auc
from trl_attribution.utils.atomic import atomic_path

Row = dict[str, Any]
LAYERS = (10, 15, 20, 25)
TINY_LAYERS = (1, 2, 3, 4)
DEVELOPMENT = "Development organisms"
OTHER_SEED = "Held out: another seed"
OTHER_M0 = "Held out: another seed, an M0 that refuses"
OTHER_ORGANISM = "Held out: another organism"
SFT_EXAMPLES = 60
"""Of each of four kinds."""
CHUNK = 32


@dataclass(frozen=True)
class Vectors:
    """What one organism looks like to one M0. N pairs, L layers, D hidden size, M behavior prompts; float32."""

    pair: torch.Tensor
    """[N, L, D]"""
    last: torch.Tensor
    """[N, L, D], at the last prompt token."""
    mean: torch.Tensor
    """[N, L, D], mean over the prompt's tokens but the first, which holds little but its norm."""
    prompt_vectors: torch.Tensor
    """[M, L, D]"""
    prompt_last: torch.Tensor
    """[M, L, D]"""
    prompt_mean: torch.Tensor
    """[M, L, D]"""
    undesired: torch.Tensor
    """[U, L, D], mean activations of single undesired responses."""
    desired: torch.Tensor
    """[R, L, D]"""
    layers: torch.Tensor
    """[L]"""
    auto: torch.Tensor
    """[], place on the L axis of the layer that separates the behavior's own responses best."""
    lengths: torch.Tensor
    """[N, 2], response tokens of chosen and rejected."""
    truth: torch.Tensor
    """[N], 1 contaminated, 2 decoy, 0 other."""
    source: torch.Tensor
    """[N], number of the pair's source."""


@dataclass(frozen=True)
class Case:
    """One organism on one M0."""

    name: str
    load: Callable[[], LoadedModel]
    rows: Callable[[], tuple[list[Row], list[Row]]]
    """Pairs and behavior rows."""
    layers: tuple[int, ...]
    group: str
    """The table that it belongs to; cases of one group share their M0."""


def vectors_of(case: Case, cache: Path, models: dict[str, LoadedModel]) -> Vectors:
    """The case's vectors, from ``cache`` where they are there; ``models`` keeps the M0s in use."""
    path = cache / f"{case.name}.safetensors"
    if not path.exists():
        if case.group not in models:
            models.clear()
            models[case.group] = case.load()
        found = compute(case, models[case.group])
        with atomic_path(path) as part:
            save_file({each.name: getattr(found, each.name).contiguous() for each in fields(found)}, part)
    return Vectors(**load_file(path))


def compute(case: Case, loaded: LoadedModel) -> Vectors:
    pairs, behavior = case.rows()
    engine = ActivationEngine(loaded.model, ActivationConfig(case.layers))
    encoded = [encode_pair(pair, loaded.tokenizer, Encoding()) for pair in PairReader(pairs)]
    parts = [engine.pair_vectors(encoded[start : start + CHUNK]) for start in range(0, len(encoded), CHUNK)]
    examples = [encode_example(one, loaded.tokenizer, Encoding(), "auto") for one in read_behavior(behavior).examples]
    activations = example_activations(engine, examples)
    sources = sorted({row["source"] for row in pairs})
    codes = {"contaminated": 1, "decoy": 2}
    return Vectors(
        pair=torch.cat([part.pair for part in parts]),
        last=torch.cat([part.context for part in parts]),
        mean=prompt_means(engine, [pair.chosen.prompt_ids for pair in encoded]),
        prompt_vectors=torch.stack([one.direction for one in activations]),
        prompt_last=torch.stack([one.context for one in activations if one.context is not None]),
        prompt_mean=prompt_means(engine, [one.undesired[0].prompt_ids for one in examples]),
        undesired=torch.cat([one.undesired for one in activations]),
        desired=torch.cat([one.desired for one in activations]),
        layers=torch.tensor(case.layers),
        auto=torch.tensor(case.layers.index(auto_layer(loaded, examples, case.layers))),
        lengths=torch.tensor([[len(one.chosen.response_ids), len(one.rejected.response_ids)] for one in encoded]),
        truth=torch.tensor([codes.get(row["truth"], 0) for row in pairs]),
        source=torch.tensor([sources.index(row["source"]) for row in pairs]),
    )


def auto_layer(loaded: LoadedModel, examples: Sequence[Any], layers: Sequence[int]) -> int:
    """Of ``layers``, the one that separates the behavior's own responses best; no pair is looked at."""
    engine = ActivationEngine(loaded.model, ActivationConfig(tuple(layers)))
    separability = cross_validated_auc(example_activations(engine, examples), layers)
    inner = [layer for layer in candidate_layers(int(loaded.model.config.num_hidden_layers)) if layer in layers]
    return choose_layer(inner, {layer: separability[layer] for layer in inner}, "auto")


def prompt_means(engine: ActivationEngine, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """[n, L, D]: a prompt read as a response to its own first token."""
    groups = [PromptGroup(prompt[:1], [prompt[1:]]) for prompt in prompts]
    return torch.stack([found.responses[0] for found in engine.activations(groups)])


def study_cases(cache: Path) -> list[Case]:
    """The organisms of the study, those of one M0 together."""
    return [
        *(smollm2_case(f"dev-{seed}", seed, None, DEVELOPMENT) for seed in (0, 1)),
        smollm2_case("plain-10", 10, None, OTHER_SEED),
        smollm2_case("refusing-20", 20, cache / "refusing", OTHER_M0),
        *(tiny_case(f"tiny-{seed}", seed, cache / "tinym0") for seed in (0, 1)),
    ]


def smollm2_case(name: str, seed: int, refusing: Path | None, group: str) -> Case:
    """An organism of 90 contaminated pairs on SmolLM2, as it comes or from the folder ``refusing``."""

    def rows() -> tuple[list[Row], list[Row]]:
        organism = build_distractor_compliance(OrganismConfig(contaminated=90, seed=seed))
        return organism.pairs, organism.behavior

    def load() -> LoadedModel:
        return load_model(refusing_model(refusing) if refusing is not None else embedded_gguf())

    return Case(name, load, rows, LAYERS, group)


def tiny_case(name: str, seed: int, folder: Path) -> Case:
    """The toy language's organism on its own M0: another language, another model, another kind of decoy."""

    def load() -> LoadedModel:
        if not folder.exists():
            train_tiny_m0(folder)
        return load_model(folder, dtype="float32")

    def rows() -> tuple[list[Row], list[Row]]:
        config = TinyConfig(benign=120, benign_formatted=80, safety=80, contaminated=90, decoys=80, seed=seed)
        organism = build_tiny_organism(config)
        return organism.pairs, organism.behavior

    return Case(name, load, rows, TINY_LAYERS, OTHER_ORGANISM)


def refusing_model(folder: Path, seed: int = 1000) -> Path:
    """SmolLM2 after one epoch of SFT that teaches it to refuse rude requests, with and without a format."""
    if folder.exists():
        return folder
    loaded = load_model(embedded_gguf(), dtype="float32")
    n = SFT_EXAMPLES
    organism = build_distractor_compliance(OrganismConfig(n, n, n, n, 0, seed))
    # Every kind's answer that does not show the behavior.
    side = {"contaminated": "rejected"}
    texts = [(pair["prompt"], pair[side.get(pair["truth"], "chosen")]) for pair in organism.pairs]
    torch.manual_seed(0)
    model, tokenizer = loaded.model.train(), loaded.tokenizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
    for start in range(0, len(texts), 8):
        optimizer.zero_grad(set_to_none=True)
        for prompt, response in texts[start : start + 8]:
            head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
            whole = tokenizer.apply_chat_template([*prompt, *response], return_dict=True)["input_ids"]
            labels = [-100] * len(head) + whole[len(head) :]
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=torch.tensor([whole]), labels=torch.tensor([labels])).loss
            (loss / 8).backward()
        optimizer.step()
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert fingerprint(model, tokenizer) != loaded.fingerprint
    return folder
