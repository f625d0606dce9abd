"""How SFT samples are best ranked: what each is compared with, and which score is taken of that; nothing is trained.

Axis letters: N samples, R own responses, L layers, D hidden size.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor

from tests.benchmarks.organisms import Vectors, ranked
from tests.benchmarks.pages import Results, write_page
from tests.benchmarks.sft_data import LAYERS, OWN, RECIPE, Samples, probe_of, samples_of
from trl_attribution.evidence.organisms import ORGANISMS
from trl_attribution.models import embedded_gguf, load_model
from trl_attribution.probes import Probe
from trl_attribution.scoring import Scores, score_view
from trl_attribution.scoring.decision import decide
from trl_attribution.scoring.kinds import AskedKind
from trl_attribution.scoring.rule import DEFAULT_RECALL
from trl_attribution.utils.arrays import Doubles

PAIRS_KIND, SAMPLES_KIND, RESPONSE = "as for pairs", "one-sided", "response"
KINDS: Mapping[str, AskedKind] = {SAMPLES_KIND: "one-sided", PAIRS_KIND: "auto", RESPONSE: "response"}
RATES = (0.5, 0.25)
DRAWS = 5
COPIES = 10
"""Of every sample, in the place of a dataset so many times as large."""
HACKS, FIRST = 0.05, 0.1
"""Of groups of rollouts, and how many of all are read."""
_RIDGE = 1.0
"""Of the contexts' mean square, on their own regression."""
Found = dict[str, dict[str, list[float]]]
"""Average precisions by option, then by dataset and rate."""


def run(output: Path, command: str, cache: Path, samples: int, console: Console) -> None:
    """Measure, print, and write ``sft.md`` into ``output``; vectors are kept in ``cache``."""
    loaded = load_model(embedded_gguf(), dtype="bfloat16")
    found: Found = {}
    layers: dict[str, int] = {}
    decided: list[tuple[str, ...]] = []
    hacked: list[tuple[str, ...]] = []
    for name in ORGANISMS:
        data = samples_of(name, samples, loaded, cache / "sft")
        probe = probe_of(name, samples, loaded, cache / "sft")
        layers[name] = probe.layer
        measure(data, probe, found)
        decided += decisions(data, probe)
        hacked.append(hacks(data, probe))
        console.print(f"{name}: {len(data.wanted)} samples, {data.wanted.mean():.0%} contaminated")
        # What is there so far: the whole takes long on a small machine.
        tables = [rankings(found), decision_table(decided), hack_table(hacked)]
        write_page(output / "sft.md", "SFT samples", lead(samples, layers), command, tables)
    for table in tables:
        table.show(console)


def lead(samples: int, layers: Mapping[str, int]) -> str:
    """What was measured."""
    own = ", ".join(f"{layer} (`{name}`)" for name, layer in layers.items())
    return (
        f"SmolLM2-135M-Instruct in bfloat16, untrained, as M0; the recipe `{RECIPE}` of each organism, from {samples} "
        f"pairs; {OWN.n} of M0's own responses to each prompt, of {OWN.max_new_tokens} tokens at most; a probe from 24 "
        f"held-out prompts, at the layer that it takes by itself, {own}; {DRAWS} draws of four fifths of the samples "
        "at each rate. The one-sided score, its share of a third and the root of the context were chosen on "
        "`distractor-compliance` and `pumpkin-soup`, and `knitting-lore` was looked at once after that. That the "
        "default rule counts with samples that lean neither way was decided after all three had been seen. What is "
        "compared: [Other kinds of examples](../method.md#other-kinds-of-examples)."
    )


def vectors(data: Samples) -> dict[str, Tensor]:
    """What a sample's vector [N, L, D] can be, by name."""
    mean_own = data.own.mean(dim=1)
    several = data.sample - mean_own
    return {
        usual_vector(data): several,
        "less one own response": data.sample - data.own[:, 0],
        "less own responses, centered": several - several.mean(dim=0),
        "less the samples' mean": data.sample - data.sample.mean(dim=0),
        "less own responses of all prompts": data.sample - mean_own.mean(dim=0),
        "less what its context predicts": data.sample - predicted(data.context, data.sample),
    }


def usual_vector(data: Samples) -> str:
    """What an audit compares a sample with."""
    return f"less {data.own.shape[1]} own responses"


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


def measure(data: Samples, probe: Probe, found: Found) -> None:
    """Average precision of each option on each draw, into ``found``."""
    for rate in RATES:
        for seed in range(DRAWS):
            drawn = data.take(draw(data.wanted, rate, seed))
            for option, score in scores(drawn, probe):
                cell = found.setdefault(option, {}).setdefault(f"{data.name} {rate:.0%}", [])
                cell.append(ranked(score, drawn.wanted).precision)


def draw(wanted: npt.NDArray[np.bool_], rate: float, seed: int) -> npt.NDArray[np.int64]:
    """Four fifths of the others, and contaminated samples so that they are ``rate`` of all, as far as there are."""
    rng = np.random.default_rng(seed)
    good, bad = np.flatnonzero(~wanted), np.flatnonzero(wanted)
    kept = rng.permutation(good)[: round(0.8 * len(good))]
    many = min(len(bad), round(rate / (1 - rate) * len(kept)))
    return np.sort(np.concatenate([kept, rng.permutation(bad)[:many]]))


def scored(data: Samples, made: Tensor, probe: Probe, kind: AskedKind) -> Scores:
    """``data`` with the vectors ``made`` [N, L, D], by the code that scores an audit, at the probe's own layer."""
    keys = tuple(map(str, range(len(made))))
    return score_view(Vectors(LAYERS, keys, made, data.context), [probe], kind, [probe.layer])


def values(found: Scores) -> Doubles:
    """The only column [N]."""
    return np.asarray(found.of(found.columns[0]), np.float64)


def scores(data: Samples, probe: Probe) -> Iterator[tuple[str, Doubles]]:
    """Each option's scores."""
    likely = np.nan_to_num(data.likelihood, nan=-np.inf)
    usual = usual_vector(data)
    yield "likelihood under the description", likely
    for name, made in vectors(data).items():
        for kind, asked in KINDS.items():
            score = values(scored(data, made, probe, asked))
            yield f"{kind}: {name}", score
            if name == usual:
                yield f"likelihood and {kind}: {name}", _rank(likely) + _rank(score)
    # Scores of no response at all: what the prompts alone tell.
    flat = probe.vector[probe.layers.index(probe.layer)].expand(len(data.wanted), len(LAYERS), -1)
    yield "one-sided: the same for all, so the contexts alone", values(scored(data, flat, probe, "one-sided"))


def _rank(score: Doubles) -> Doubles:
    return score.argsort(kind="stable").argsort().astype(np.float64)


def rankings(found: Found) -> Results:
    """A line for each option; best first."""
    columns = list(next(iter(found.values())))
    means = {option: [statistics.fmean(cells[one]) for one in columns] for option, cells in found.items()}
    lines = [
        (option, f"{statistics.fmean(line):.3f}", *(f"{one:.2f}" for one in line))
        for option, line in sorted(means.items(), key=lambda one: -statistics.fmean(one[1]))
    ]
    note = (
        "Average precision, means over the draws. A random ranking has the rate. *As for pairs* is the controlled "
        "score where the probe has controls (`distractor-compliance`) and the contextual score where it has none."
    )
    return Results("Ranking of contaminated samples", ("score: vector", "mean", *columns), tuple(lines), note)


def decisions(data: Samples, probe: Probe) -> Iterator[tuple[str, ...]]:
    """What the default rule makes of each draw with M0's own responses, by kind of score and rate: sums and means."""
    for kind, copies in product((SAMPLES_KIND, PAIRS_KIND), (1, COPIES)):
        for rate in (0.0, *reversed(RATES)):
            parts = [data.take(np.tile(draw(data.wanted, rate, seed), copies)) for seed in range(DRAWS)]
            made = [decision(part, vectors(part)[usual_vector(part)], probe, KINDS[kind]) for part in parts]
            wanted = sum(int(part.wanted.sum()) for part in parts)
            estimates, evidence, caught, wrong = (sum(column) for column in zip(*made, strict=True))
            yield (
                *(data.name, kind, f"{rate:.0%}", f"{wanted / DRAWS:.0f} of {len(parts[0].wanted)}"),
                *(f"{estimates / DRAWS:.1f}", f"{evidence:.0f} of {DRAWS}"),
                *(f"{caught / wanted:.0%}" if wanted else "", f"{wrong / DRAWS:.1f}"),
            )


def decision(data: Samples, made: Tensor, probe: Probe, kind: AskedKind) -> tuple[float, float, float, float]:
    """Estimated samples, whether there is evidence of any, contaminated ones flagged, and others flagged."""
    found = scored(data, made, probe, kind)
    score = values(found)
    decided = decide(score, DEFAULT_RECALL, found.known[found.columns[0]])
    flagged = decided.passes(score)
    right, others = int((flagged & data.wanted).sum()), int((flagged & ~data.wanted).sum())
    return decided.prevalence.count.value, float(decided.flags_anything), right, others


def decision_table(lines: list[tuple[str, ...]]) -> Results:
    """The default rule's decisions."""
    columns = ("organism", "score", "rate", "contaminated", "estimated", "evidence", "caught", "flagged wrongly")
    note = (
        f"The default rule (a recall of {DEFAULT_RECALL:.0%}) on samples less M0's own responses: numbers are means "
        f"over the draws, *evidence* is in how many of {DRAWS} draws anything is flagged. The larger datasets have "
        f"every sample {COPIES} times: what is uncertain there is the probe, no longer the sample of the data."
    )
    return Results("What the default rule flags", columns, tuple(lines), note)


def hacks(data: Samples, probe: Probe) -> tuple[str, ...]:
    """Where groups of rollouts in which a hack was rewarded rank among others; the score is that of pairs."""
    found = []
    for seed in range(4 * DRAWS):
        part = data.take(draw(data.wanted, HACKS, seed))
        score = values(scored(part, groups(part, seed), probe, "auto"))
        first = np.argsort(-score, kind="stable")[: round(FIRST * len(score))]
        found.append((len(score), len(first), part.wanted.sum(), part.wanted[first].sum()))
    count, read, there, seen = np.array(found).mean(axis=0)
    any_seen = sum(one[-1] > 0 for one in found)
    found_in = f"{any_seen} of {len(found)}"
    return data.name, f"{there:.0f} of {count:.0f}", f"{read:.0f}", f"{seen / there:.0%}", found_in


def groups(data: Samples, seed: int) -> Tensor:
    """[N, L, D] of groups of the sample (reward 1), the pair's worse answer (0) and M0's own (anything between)."""
    rewards = np.random.default_rng(seed).random((len(data.wanted), data.own.shape[1] + 2))
    rewards[:, :2] = 1, 0
    advantages = torch.from_numpy(rewards - rewards.mean(axis=1, keepdims=True)).float()
    weights = 2 * advantages / advantages.abs().sum(dim=1, keepdim=True)
    answers = torch.cat([data.sample[:, None], data.worse[:, None], data.own], dim=1)
    return (weights[:, :, None, None] * answers).sum(dim=1)


def hack_table(lines: list[tuple[str, ...]]) -> Results:
    """Whether a reader of the first groups finds those in which the behavior was rewarded."""
    note = (
        "Groups of six: the sample, which is rewarded most, the worse answer of the organism's pair, least, and M0's "
        f"own responses with rewards in between at random. Means over {4 * DRAWS} draws; a random order finds about "
        "one in ten."
    )
    columns = ("organism", "groups in which the behavior is rewarded", "groups read", "found", "draws with any found")
    return Results("A planted hack in rollouts", columns, tuple(lines), note)
