"""What a small sparse autoencoder is worth: how it fits, what means of latents differ in, and how it ranks pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tests.benchmarks.pages import Results, write_page
from trl_attribution.activations.tokens import token_streams
from trl_attribution.behaviors import read_behavior
from trl_attribution.behaviors.encoding import encode_example
from trl_attribution.evidence.organisms import build_distractor_compliance
from trl_attribution.lenses import SaeConfig, compose
from trl_attribution.lenses.reconstruction import CheckedSae, check_sae
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.pairs import EncodedPair, EncodedResponse, Encoding, PairReader, Reading, RowFault
from trl_attribution.pairs.dataset_pass import encoded_pairs

EVERY = 4
"""Of the demo's pairs and prompts, for time."""
HH_PAIRS = 40
LENGTH = 256
LEAD = f"""A TopK autoencoder of SmolLM2-135M-Instruct, trained by `examples/sae/train_topk_sae.py` in minutes. On every
fourth pair of the demo's dataset (contaminated pairs are to rank first; the behavior's directions are from every fourth
of its prompts) and on the first {HH_PAIRS} pairs of HH-RLHF harmless, cut at {LENGTH} tokens. One autoencoder, one
draw: no interval. How it is used: [Look through a sparse autoencoder](../how-to/sparse-autoencoders.md)."""


@dataclass(frozen=True)
class Sides:
    """One difference (a pair's, or a prompt's of the behavior) in three spaces."""

    activations: Tensor
    latents: Tensor
    """Means over tokens of each token's latents."""
    of_means: Tensor
    """Latents of the mean activations."""


def run(output: Path, command: str, folder: Path, data: Path, console: Console) -> None:
    loaded = load_model(embedded_gguf())
    organism = build_distractor_compliance()
    demo = _encoded(loaded, organism.pairs[::EVERY])
    real = _encoded(loaded, data / "hh-rlhf-harmless-base-test.jsonl.gz", HH_PAIRS)
    checked = check_sae(SaeConfig(str(folder)), loaded, [_ids(side) for pair in real for side in pair.sides])
    found = {name: _differences(loaded, checked, pairs) for name, pairs in (("demo", demo), ("HH-RLHF", real))}
    behavior = _behavior(loaded, checked, organism.behavior[::EVERY])
    wanted = np.array([row["truth"] == "contaminated" for row in organism.pairs[::EVERY]])
    tables = [
        _fit(checked, behavior),
        _means(found),
        _ranking(found["demo"], behavior, wanted),
    ]
    for table in tables:
        table.show(console)
    write_page(output / "sae.md", "A sparse autoencoder", LEAD, command, tables)


def _encoded(loaded: LoadedModel, dataset: object, most: int | None = None) -> list[EncodedPair]:
    reader = PairReader(dataset, Reading(on_bad_row="skip"))  # type: ignore[arg-type]
    pairs = (pair for _, pair in zip(range(most or 10**9), reader, strict=False))
    return [one for _, one in encoded_pairs(pairs, loaded.encoder, Encoding(LENGTH)) if not isinstance(one, RowFault)]


def _ids(side: EncodedResponse) -> list[int]:
    return [*side.prompt_ids, *side.response_ids]


def _response(loaded: LoadedModel, checked: CheckedSae, sides: Sequence[EncodedResponse]) -> Sides:
    """The mean over some responses of one side."""
    sae, parts = checked.sae, []
    streams = token_streams(loaded.model, [_ids(side) for side in sides], [sae.layer])
    for side, stream in zip(sides, streams, strict=True):
        tokens = stream[sae.layer][len(side.prompt_ids) :]
        mean = tokens.mean(dim=0)
        parts.append((mean, sae.encode(tokens).mean(dim=0), sae.encode(mean[None])[0]))
    return Sides(*(torch.stack(each).mean(dim=0) for each in zip(*parts, strict=True)))


def _minus(first: Sides, second: Sides) -> Sides:
    return Sides(
        first.activations - second.activations, first.latents - second.latents, first.of_means - second.of_means
    )


def _differences(loaded: LoadedModel, checked: CheckedSae, pairs: Sequence[EncodedPair]) -> list[Sides]:
    return [
        _minus(_response(loaded, checked, [pair.chosen]), _response(loaded, checked, [pair.rejected])) for pair in pairs
    ]


def _behavior(loaded: LoadedModel, checked: CheckedSae, rows: Sequence[dict[str, object]]) -> Sides:
    examples = [encode_example(one, loaded.encoder, Encoding(LENGTH), "auto") for one in read_behavior(rows).examples]
    found = [
        _minus(_response(loaded, checked, one.undesired), _response(loaded, checked, one.desired)) for one in examples
    ]
    spaces = ("activations", "latents", "of_means")
    return Sides(*(torch.stack([getattr(one, space) for one in found]).mean(dim=0) for space in spaces))


def _fit(checked: CheckedSae, behavior: Sides) -> Results:
    fits = checked.reconstruction
    rows = [(f"layer {layer}", f"{share:.1%}") for layer, share in fits.by_layer.items()]
    made = compose(behavior.activations, checked.sae)
    note = (
        f"Share of the variance of {fits.tokens:,} tokens of HH-RLHF that one trained on layer {fits.layer} explains "
        f"({checked.sae.width:,} latents, {fits.active:.0f} a token); {fits.massive} tokens were left out for their "
        f"length. Ten latents explain {made.explained:.0%} of the squared length of the behavior's direction, and "
        f"{made.by_chance:.0%} of a random one."
    )
    return Results("How it fits", ("at", "explained"), tuple(rows), note)


def _means(found: dict[str, list[Sides]]) -> Results:
    rows = []
    for name, pairs in found.items():
        likeness = np.array([float(cosine_similarity(one.latents, one.of_means, dim=0)) for one in pairs])
        token, mean = (float(np.mean([int((part(one) != 0).sum()) for one in pairs])) for part in _PARTS)
        low, half = np.quantile(likeness, [0.1, 0.5])
        rows.append((name, f"{len(pairs)}", f"{half:.2f}", f"{low:.2f}", f"{token:.0f}", f"{mean:.0f}"))
    columns = ("pairs of", "number", "cosine, median", "cosine, lowest tenth", "latents, means", "latents, of means")
    note = (
        "Cosine of a pair's mean latents (each token's, then averaged) with the latents of its mean activations; how "
        "many latents differ between the responses by each."
    )
    return Results("Means of latents and latents of means", columns, tuple(rows), note)


_PARTS = (lambda one: one.latents, lambda one: one.of_means)


def _ranking(pairs: Sequence[Sides], behavior: Sides, wanted: np.ndarray) -> Results:
    rows = []
    for name, space in (
        ("activations (the response score)", "activations"),
        ("mean latents (`compare -b sae`)", "latents"),
        ("latents of means", "of_means"),
    ):
        direction = getattr(behavior, space)
        scores = [float(cosine_similarity(getattr(one, space), direction, dim=0)) for one in pairs]
        rows.append((name, f"{average_precision_score(wanted, scores):.3f}"))
    note = f"{int(wanted.sum())} of {len(wanted)} pairs are contaminated: chance has {wanted.mean():.2f}."
    return Results("Ranking the demo's contaminated pairs", ("cosine of", "average precision"), tuple(rows), note)
