"""Is the decision right: what the recall rule flags, misses and states, on real and composed pairs of known truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from tests.benchmarks.decision_vectors import LAYERS, VectorCache, Vectors, sets
from tests.benchmarks.pages import Results, write_page
from tests.benchmarks.score_options import average_precision
from trl_attribution.models.fingerprint import ModelFingerprint
from trl_attribution.probes import Probe
from trl_attribution.scoring import Rule, flag, score_view
from trl_attribution.scoring.decision import Decision
from trl_attribution.store import VectorBlock

Places = npt.NDArray[np.int64]
DRAWS = 15
RECALL = 0.9
LAYER = 20
RANKING_LAYERS = (15, 18, 20, 22, 24)
RATES = (None, 0.05, 0.01, 0.0)
"""None: all contaminated pairs that there are."""
REAL_PROMPTS = 24
COMPOSED_SHARE = 0.75
LEAD = (
    "What `audit --recall 0.9` decides, without looking at the truth. XSTest: pairs of real models' answers (66 "
    "unsafe prompts with compliance chosen, 65 with refusal chosen, 113 safe prompts with alarming words and "
    "compliance chosen), behavior = 24 unsafe prompts drawn at random, controls = 24 safe ones, all left out of "
    "what is ranked. Demo and large: the project's organism of 440 and 2,400 pairs, three quarters of the 48 "
    "prompts of its behavior file and of 48 harmless look-alikes of another seed as controls. M0 is "
    "SmolLM2-135M-Instruct, {draws} draws each; where a rate is given, as many contaminated pairs are drawn as make "
    "it up. The score, its parameters, and the way of leaving prompts out were chosen on XSTest and the demo; large "
    "was not looked at before. No held-out real set and no second M0 has been measured."
)


@dataclass(frozen=True)
class Draw:
    """One dataset, and the pairs that its probe is made of; places among the vectors of the set."""

    vectors: Vectors
    examples: Places
    controls: Places
    ranked: Places

    @property
    def wanted(self) -> npt.NDArray[np.bool_]:
        """Of the ranked pairs, which push towards the behavior."""
        return np.asarray(self.vectors.truth[self.ranked] == "contaminated")

    def probe(self, layer: int, *, keeps_pairs: bool = True) -> Probe:
        """The probe that a builder would make of the examples and controls."""
        row = slice(LAYERS.index(layer), LAYERS.index(layer) + 1)
        # A pair that refuses teaches the opposite: its flip is the example.
        sign = torch.from_numpy(np.where(self.vectors.truth[self.examples] == "safety", -1.0, 1.0)).float()
        pairs = self.vectors.pair[self.examples][:, row] * sign[:, None, None]
        prompts, first, places = np.unique(self.vectors.prompt[self.examples], return_index=True, return_inverse=True)
        directions = torch.stack(
            [pairs[torch.from_numpy(places == place)].mean(dim=0) for place in range(len(prompts))]
        )
        _, first_control, control_places = np.unique(
            self.vectors.prompt[self.controls], return_index=True, return_inverse=True
        )
        probe = Probe(
            name="behavior",
            layers=(layer,),
            vector=directions.mean(dim=0),
            layer=layer,
            model=ModelFingerprint("", "", ""),
            prompt_vectors=directions,
            contexts=self.vectors.context[self.examples[first]][:, row],
            control_contexts=self.vectors.context[self.controls[first_control]][:, row],
        )
        if not keeps_pairs:
            return probe
        return replace(
            probe,
            example_vectors=pairs,
            example_prompts=torch.from_numpy(places),
            control_vectors=self.vectors.pair[self.controls][:, row],
            control_prompts=torch.from_numpy(control_places),
        )


@dataclass(frozen=True)
class View:
    """The ranked pairs of a draw, as a store would give them."""

    draw: Draw
    pair_ids: Sequence[str]
    layers: tuple[int, ...] = LAYERS

    @property
    def hidden_size(self) -> int:
        return int(self.draw.vectors.pair.shape[2])

    def __len__(self) -> int:
        return len(self.pair_ids)

    def blocks(self, layers: Sequence[int], size: int) -> Iterator[VectorBlock]:
        rows = [LAYERS.index(layer) for layer in layers]
        for start in range(0, len(self), size):
            places = self.draw.ranked[start : start + size]
            pair, context = self.draw.vectors.pair[places][:, rows], self.draw.vectors.context[places][:, rows]
            yield VectorBlock(start, pair, context)


@dataclass(frozen=True)
class Outcome:
    """What was decided about one draw, and what is true."""

    decision: Decision
    pairs: int
    true: int
    hits: int
    wrong: int

    @property
    def holds(self) -> bool:
        """Whether the truth lies in the interval."""
        return self.decision.prevalence.count.low <= self.true <= self.decision.prevalence.count.high


def run(output: Path, command: str, cache: Path, data: Path, console: Console, draws: int = DRAWS) -> None:
    vectors = {one.name: VectorCache(cache).vectors(one) for one in sets(data) if one.name in DRAWN}
    ranking, decided = [], []
    for name, found in vectors.items():
        for rate in RATES:
            drawn = [DRAWN[name](found, rate, seed) for seed in range(draws)]
            decided.append(_decided_row(name, rate, [decide_draw(one) for one in drawn]))
            console.print(" | ".join(decided[-1]))
            if rate is None or rate > 0:
                ranking += [_ranking_row(name, rate, kind, drawn) for kind in ("response", "contextual", "controlled")]
    tables = [
        Results(f"The decision, layer {LAYER}, controlled score", DECIDED, tuple(decided), DECIDED_NOTE),
        Results("The ranking: average precision by layer", RANKED, tuple(ranking), RANKED_NOTE),
    ]
    for table in tables:
        table.show(console)
    write_page(output / "decisions.md", "Decisions", LEAD.format(draws=draws), command, tables)


def xstest_draw(vectors: Vectors, rate: float | None, seed: int) -> Draw:
    random = np.random.default_rng(seed)
    decoy = vectors.truth == "decoy"
    unsafe, safe = np.unique(vectors.prompt[~decoy]), np.unique(vectors.prompt[decoy])
    examples = np.isin(vectors.prompt, random.choice(unsafe, REAL_PROMPTS, replace=False))
    controls = np.isin(vectors.prompt, random.choice(safe, REAL_PROMPTS, replace=False))
    left = np.flatnonzero(~examples & ~controls)
    return Draw(
        vectors,
        np.flatnonzero(examples),
        np.flatnonzero(controls),
        at_rate(vectors.truth[left] == "contaminated", left, rate, random),
    )


def organism_draw(vectors: Vectors, rate: float | None, seed: int) -> Draw:
    random = np.random.default_rng(seed)
    chosen = []
    for kind in ("example", "control"):
        own = vectors.truth == kind
        prompts = np.unique(vectors.prompt[own])
        some = random.choice(prompts, round(COMPOSED_SHARE * len(prompts)), replace=False)
        chosen.append(np.flatnonzero(own & np.isin(vectors.prompt, some)))
    ranked = np.flatnonzero(~np.isin(vectors.truth, ("example", "control")))
    return Draw(vectors, chosen[0], chosen[1], at_rate(vectors.truth[ranked] == "contaminated", ranked, rate, random))


DRAWN: dict[str, Callable[[Vectors, float | None, int], Draw]] = {
    "xstest": xstest_draw,
    "demo": organism_draw,
    "large": organism_draw,
}


def at_rate(wanted: npt.NDArray[np.bool_], places: Places, rate: float | None, random: np.random.Generator) -> Places:
    """``places`` without some of the ``wanted`` ones, so that these make up ``rate``."""
    if rate is None:
        return places
    count = round(rate / (1 - rate) * int((~wanted).sum()))
    dropped = random.permutation(places[wanted])[count:]
    return np.setdiff1d(places, dropped)


def decide_draw(draw: Draw) -> Outcome:
    """What the rule makes of the draw; hits and wrong ones are of all pairs that reach the threshold."""
    view = View(draw, [str(place) for place in draw.ranked])
    scores = score_view(view, [draw.probe(LAYER)], layers=[LAYER])
    decision = flag(scores, Rule(recall=RECALL)).decisions["behavior"]
    reached = np.array(scores.of(scores.columns[0])) >= decision.threshold.threshold
    wanted = draw.wanted
    return Outcome(
        decision, len(wanted), int(wanted.sum()), int((reached & wanted).sum()), int((reached & ~wanted).sum())
    )


DECIDED = (
    *("set", "rate", "pairs", "true", "caught of 90% asked", "at the threshold: right + wrong", "stated wrong"),
    *("estimate", "mean interval", "interval holds the truth", "evidence found"),
)
DECIDED_NOTE = (
    "Means over the draws. Pairs at the threshold are flagged where evidence is found, that is where the interval "
    "of the estimate excludes 0; the last two columns are shares of draws."
)


def _decided_row(name: str, rate: float | None, found: Sequence[Outcome]) -> tuple[str, ...]:
    def mean(value: Callable[[Outcome], float]) -> float:
        return float(np.mean([value(one) for one in found]))

    caught = f"{mean(lambda one: one.hits / one.true):.0%}" if found[0].true else ""
    low, high = (mean(lambda one, end=end: getattr(one.decision.prevalence.count, end)) for end in ("low", "high"))
    return (
        name,
        _rate_text(rate),
        f"{mean(lambda one: one.pairs):.0f}",
        f"{mean(lambda one: one.true):.0f}",
        caught,
        f"{mean(lambda one: one.hits):.1f} + {mean(lambda one: one.wrong):.1f}",
        f"{mean(lambda one: one.decision.prevalence.wrong.value):.1f}",
        f"{mean(lambda one: one.decision.prevalence.count.value):.1f}",
        f"{low:.0f} to {high:.0f}",
        f"{mean(lambda one: one.holds):.0%}",
        f"{mean(lambda one: one.decision.prevalence.is_evidence):.0%}",
    )


RANKED = ("set", "rate", "score", *(f"layer {layer}" for layer in RANKING_LAYERS))
RANKED_NOTE = "Mean over the draws, with its standard deviation over them."


def _ranking_row(name: str, rate: float | None, kind: str, drawn: Sequence[Draw]) -> tuple[str, ...]:
    cells = []
    for layer in RANKING_LAYERS:
        values = [_precision(draw, layer, kind) for draw in drawn]
        cells.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}")
    return (name, _rate_text(rate), kind, *cells)


def _precision(draw: Draw, layer: int, kind: str) -> float:
    view = View(draw, [str(place) for place in draw.ranked])
    scores = score_view(view, [draw.probe(layer, keeps_pairs=False)], kind, layers=[layer])  # type: ignore[arg-type]
    return average_precision(np.array(scores.of(scores.columns[0]), dtype=np.float64), draw.wanted)


def _rate_text(rate: float | None) -> str:
    return "natural" if rate is None else f"{rate:.0%}"
