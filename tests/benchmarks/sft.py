"""How SFT samples are best ranked: what each is compared with, and which score is taken of that; nothing is trained.

Axis letters: N samples, R own responses, L layers, D hidden size.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

from tests.benchmarks.organisms import Vectors, ranked
from tests.benchmarks.pages import Results, write_page
from tests.benchmarks.sft_data import LAYERS, OWN, RECIPE, Samples, probe_of, rows_of, samples_of
from trl_attribution.evidence.organisms import ORGANISMS
from trl_attribution.models import embedded_gguf, load_model
from trl_attribution.probes import Probe
from trl_attribution.scoring.scores import score_view

Doubles = npt.NDArray[np.float64]
KINDS = ("response", "contextual", "controlled")
RATES = (0.5, 0.25)
DRAWS = 5
_RIDGE = 1.0
"""Of the contexts' mean square, on their own regression."""


def run(output: Path, command: str, cache: Path, samples: int, console: Console) -> None:
    """Measure, print, and write ``sft.md`` into ``output``; vectors are kept in ``cache``."""
    loaded = load_model(embedded_gguf(), dtype="bfloat16")
    found: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for name in ORGANISMS:
        data = samples_of(name, rows_of(name, samples), loaded, cache / "sft")
        measure(data, probe_of(name, samples, loaded, cache / "sft"), found)
        console.print(f"{name}: {len(data.wanted)} samples, {data.wanted.mean():.0%} contaminated")
        # What is there so far: the whole takes long on a small machine.
        table = results(found)
        write_page(output / "sft.md", "SFT samples", lead(samples), command, [table])
    table.show(console)


def lead(samples: int) -> str:
    """What was measured."""
    return (
        f"SmolLM2-135M-Instruct in bfloat16, untrained, as M0; the recipe `{RECIPE}` of each organism, from {samples} "
        f"pairs; {OWN.n} of M0's own responses to each prompt, of {OWN.max_new_tokens} tokens at most; a probe from 24 "
        f"held-out prompts; {DRAWS} draws of four fifths of the samples at each rate. Each line stands at that of the "
        f"layers {', '.join(map(str, LAYERS))} where it is best, for all lines alike. What is compared: [Other kinds "
        "of examples](../method.md#other-kinds-of-examples)."
    )


def vectors(data: Samples) -> dict[str, Tensor]:
    """What a sample's vector [N, L, D] can be, by name."""
    mean_own = data.own.mean(dim=1)
    usual = data.sample.mean(dim=0)
    return {
        "less one own response": data.sample - data.own[:, 0],
        f"less {data.own.shape[1]} own responses": data.sample - mean_own,
        "less the samples' mean": data.sample - usual,
        "less own responses of all prompts": data.sample - mean_own.mean(dim=0),
        "less what its context predicts": data.sample - predicted(data.context, data.sample),
        "own responses and mean, half each": data.sample - (mean_own + usual) / 2,
    }


def predicted(context: Tensor, sample: Tensor) -> Tensor:
    """Each sample's activations [N, L, D] as ridge regression on the contexts of the other samples has them."""
    made = torch.empty_like(sample)
    for layer in range(sample.shape[1]):
        x, y = context[:, layer].double(), sample[:, layer].double()
        x, mean = x - x.mean(dim=0), y.mean(dim=0)
        kernel = x @ x.T
        hat = kernel @ torch.linalg.inv(kernel + _RIDGE * kernel.diagonal().mean() * torch.eye(len(x)).double())
        inside = hat @ (y - mean)
        own = hat.diagonal()[:, None]
        made[:, layer] = ((inside - own * (y - mean)) / (1 - own) + mean).float()  # leave one out
    return made


def measure(data: Samples, probe: Probe, found: dict[tuple[str, ...], dict[str, list[float]]]) -> None:
    """Average precision of each option on each draw, into ``found`` by option and layer, and dataset and rate."""
    for rate in RATES:
        for seed in range(DRAWS):
            drawn = data.take(draw(data.wanted, rate, seed))
            for option, layer, score in scores(drawn, probe):
                cell = found.setdefault((option, layer), {}).setdefault(f"{data.name} {rate:.0%}", [])
                cell.append(ranked(score, drawn.wanted).precision)


def draw(wanted: npt.NDArray[np.bool_], rate: float, seed: int) -> npt.NDArray[np.int64]:
    """Four fifths of the others, and contaminated samples so that they are ``rate`` of all, as far as there are."""
    rng = np.random.default_rng(seed)
    good, bad = np.flatnonzero(~wanted), np.flatnonzero(wanted)
    kept = rng.permutation(good)[: round(0.8 * len(good))]
    many = min(len(bad), round(rate / (1 - rate) * len(kept)))
    return np.sort(np.concatenate([kept, rng.permutation(bad)[:many]]))


def scores(data: Samples, probe: Probe) -> Iterator[tuple[str, str, Doubles]]:
    """Each option's scores at each layer."""
    keys = tuple(map(str, range(len(data.wanted))))
    kinds = [kind for kind in KINDS if kind != "controlled" or probe.control_contexts is not None]
    ranks: dict[str, Doubles] = {}
    for name, made in vectors(data).items():
        for kind in kinds:
            table = score_view(Vectors(LAYERS, keys, made, data.context), [probe], kind)  # type: ignore[arg-type]
            for layer in LAYERS:
                score = np.asarray(table.of(table.column(probe.name, layer)), np.float64)
                ranks[f"{kind}: {name} {layer}"] = score
                yield f"{kind}: {name}", str(layer), score
        for layer in LAYERS:
            yield f"soft contextual: {name}", str(layer), soft(made, data.context, probe, layer)
    likely = np.nan_to_num(data.likelihood, nan=-np.inf)
    yield "likelihood under the description", "", likely
    for kind in kinds:
        for name in ("less the samples' mean", f"less {data.own.shape[1]} own responses"):
            for layer in LAYERS:
                yield (
                    f"likelihood and {kind}: {name}",
                    str(layer),
                    _rank(likely) + _rank(ranks[f"{kind}: {name} {layer}"]),
                )


def soft(made: Tensor, context: Tensor, probe: Probe, layer: int) -> Doubles:
    """The contextual score with a likeness of the response in 0..2 in the place of one in -1..1; no flip negates it."""
    assert probe.contexts is not None  # each was built from prompts
    place, own = LAYERS.index(layer), probe.layers.index(layer)
    mean = context[:, place].mean(dim=0)
    here, theirs = (normalize(one - mean, dim=-1) for one in (context[:, place], probe.contexts[:, own].float()))
    alike = (here @ theirs.T).clamp(min=0).mean(dim=1)
    towards = normalize(made[:, place], dim=-1) @ normalize(probe.vector[own].float(), dim=-1)
    return ((1 + towards) * alike).double().numpy()


def _rank(score: Doubles) -> Doubles:
    return score.argsort(kind="stable").argsort().astype(np.float64)


def results(found: Mapping[tuple[str, ...], Mapping[str, list[float]]]) -> Results:
    """A line for each option, at the layer where its mean over all columns is highest; best first."""
    columns = list(next(iter(found.values())))
    mean: Callable[[tuple[str, ...]], float] = lambda key: statistics.fmean(  # noqa: E731
        statistics.fmean(found[key][column]) for column in columns if column in found[key]
    )
    best: dict[str, tuple[str, ...]] = {}
    for key in found:
        if key[0] not in best or mean(key) > mean(best[key[0]]):
            best[key[0]] = key
    lines = [
        (
            option,
            key[1],
            f"{mean(key):.3f}",
            *(f"{statistics.fmean(found[key][one]):.2f}" if one in found[key] else "" for one in columns),
        )
        for option, key in sorted(best.items(), key=lambda one: -mean(one[1]))
    ]
    note = "Average precision, means over the draws. A random ranking has the rate."
    return Results("Ranking of contaminated samples", ("score: vector", "layer", "mean", *columns), tuple(lines), note)
