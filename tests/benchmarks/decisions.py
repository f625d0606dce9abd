"""Is the decision right: what the recall rule flags, misses and states, on real and composed pairs of known truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from sklearn.metrics import average_precision_score

from tests.benchmarks.decision_vectors import SMOLLM2, ReferenceModel, VectorCache, Vectors, second, sets
from tests.benchmarks.pages import Results, write_page
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.probes import Probe
from trl_attribution.probes.separability import choose_by_controls, control_separability
from trl_attribution.scoring import DEFAULT_RULE, flag, score_view
from trl_attribution.scoring.decision import Decision
from trl_attribution.scoring.kinds import Kind
from trl_attribution.store import VectorBlock

Places = npt.NDArray[np.int64]
DRAWS = 15
RATES = (None, 0.05, 0.01, 0.0)
"""None: all contaminated pairs that there are."""
REAL_PROMPTS = 24
COMPOSED_SHARE = 0.75
LEAD = (
    "What the default rule (`audit` without a rule: recall 0.9) decides, without looking at the truth. XSTest: "
    "pairs of real models' answers (66 unsafe prompts with compliance chosen, 65 with refusal chosen, 113 safe "
    "prompts with alarming words and compliance chosen), behavior = 24 unsafe prompts drawn at random, controls ="
    " 24 safe ones, all left out of what is ranked. Over-refusal: the same pairs asked about another behavior, "
    "refusing the safe prompts; half of these have chosen and rejected swapped, refusals of unsafe prompts are "
    "the look-alikes. Demo and large: the project's organism of 440 and 2,400 pairs, three quarters of the 48 "
    "prompts of its behavior file and of 48 harmless look-alikes of another seed as controls. {draws} draws each;"
    " where a rate is given, as many contaminated pairs are drawn as make it up. The layer is the one that a "
    "probe with controls chooses by itself. The score, the choice of layer, and the estimate were developed on "
    "all four sets with SmolLM2; the second M0 (gemma-3-270m, base) was looked at once, after that. Until then a "
    "probe without controls flagged at the layer that its examples alone choose, 24, by the contextual score, "
    "which ranks the demo better."
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

    def probe(self, layers: Sequence[int], *, keeps_pairs: bool = True) -> Probe:
        """The probe that a builder would make of the examples and controls; it flags at the first of ``layers``."""
        row = [self.vectors.layers.index(layer) for layer in layers]
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
            layers=tuple(layers),
            vector=directions.mean(dim=0),
            layer=layers[0],
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

    def default_probe(self) -> Probe:
        """The probe at the layer that it flags at where none is asked for."""
        layers = self.vectors.candidates
        layer = choose_by_controls(control_separability(self.probe(layers)), self.vectors.blocks)
        return self.probe([layer])


@dataclass(frozen=True)
class View:
    """The ranked pairs of a draw, as a store would give them."""

    draw: Draw
    pair_ids: Sequence[str]

    @property
    def layers(self) -> tuple[int, ...]:
        return self.draw.vectors.layers

    @property
    def hidden_size(self) -> int:
        return int(self.draw.vectors.pair.shape[2])

    def __len__(self) -> int:
        return len(self.pair_ids)

    def blocks(self, layers: Sequence[int], size: int) -> Iterator[VectorBlock]:
        rows = [self.layers.index(layer) for layer in layers]
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


def run(
    output: Path, command: str, cache: Path, data: Path, console: Console, draws: int = DRAWS, other: Path | None = None
) -> None:
    tables: list[Results] = []
    for model in (SMOLLM2, *([second(other)] if other else [])):
        vectors = _all_vectors(model, cache, data)
        ranking, decided = [], []
        for name, found in vectors.items():
            for rate in RATES:
                drawn = [DRAWN[name](found, rate, seed) for seed in range(draws)]
                decided.append(_decided_row(name, rate, [decide_draw(one) for one in drawn]))
                console.print(" | ".join(decided[-1]))
                if rate is None or rate > 0:
                    ranking += [_ranking_row(name, rate, kind, drawn) for kind in KINDS]
        layers = next(iter(vectors.values())).candidates
        tables += [
            Results(f"The decision on {model.name}", DECIDED, tuple(decided), DECIDED_NOTE),
            Results(
                f"The ranking on {model.name}: average precision",
                ("set", "rate", "score", "layer of the probe", *(f"layer {layer}" for layer in layers)),
                tuple(ranking),
                RANKED_NOTE,
            ),
        ]
    for table in tables:
        table.show(console)
    write_page(output / "decisions.md", "Decisions", LEAD.format(draws=draws), command, tables)


def _all_vectors(model: ReferenceModel, cache: Path, data: Path) -> dict[str, Vectors]:
    """By set; of a second M0 without the large one, which takes an hour."""
    found = {
        one.name: VectorCache(cache, model).vectors(one)
        for one in sets(data)
        if model is SMOLLM2 or one.name != "large"
    }
    return {"xstest": found["xstest"], "over-refusal": over_refusal(found["xstest"]), **found}


def over_refusal(xstest: Vectors) -> Vectors:
    """XSTest's pairs asked about another behavior: refusing what is safe."""
    swapped = (xstest.truth == "decoy") & (xstest.prompt % 2 == 0)
    signs = torch.from_numpy(np.where(swapped, -1.0, 1.0)).float()[:, None, None]
    names = {"decoy": "safety", "safety": "decoy", "contaminated": "other"}
    truth = np.where(swapped, "contaminated", np.array([names[one] for one in xstest.truth]))
    return replace(xstest, pair=xstest.pair * signs, truth=truth)


def xstest_draw(vectors: Vectors, rate: float | None, seed: int) -> Draw:
    """Behavior and controls of 24 prompts each; whatever else these have is left out of what is ranked."""
    random = np.random.default_rng(seed)
    ours = np.isin(vectors.truth, ("contaminated", "safety"))
    prompts, alike = np.unique(vectors.prompt[ours]), np.unique(vectors.prompt[vectors.truth == "decoy"])
    examples = np.isin(vectors.prompt, random.choice(prompts, REAL_PROMPTS, replace=False))
    controls = np.isin(vectors.prompt, random.choice(alike, REAL_PROMPTS, replace=False))
    left = np.flatnonzero(~examples & ~controls)
    known = np.flatnonzero(examples & ours), np.flatnonzero(controls & (vectors.truth == "decoy"))
    ranked = at_rate(vectors.truth[left] == "contaminated", left, rate, random)
    return Draw(vectors, *known, ranked)


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
    "over-refusal": xstest_draw,
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
    """What the default rule makes of the draw; hits and wrong ones are of all pairs that reach the threshold."""
    view = View(draw, [str(place) for place in draw.ranked])
    probe = draw.default_probe()
    scores = score_view(view, [probe], layers=[probe.layer])
    decision = flag(scores, DEFAULT_RULE).decisions["behavior"]
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


KINDS: tuple[Kind, ...] = ("response", "contextual", "controlled")
RANKED_NOTE = "Mean over the draws, with its standard deviation over them."


def _ranking_row(name: str, rate: float | None, kind: Kind, drawn: Sequence[Draw]) -> tuple[str, ...]:
    layers = drawn[0].vectors.candidates
    found = np.array([[_precision(draw, layer, kind) for layer in layers] for draw in drawn])
    chosen = [layers.index(draw.default_probe().layer) for draw in drawn]
    columns = (found[np.arange(len(drawn)), chosen], *found.T)
    return (name, _rate_text(rate), kind, *(f"{np.mean(values):.3f} ± {np.std(values):.3f}" for values in columns))


def _precision(draw: Draw, layer: int, kind: Kind) -> float:
    view = View(draw, [str(place) for place in draw.ranked])
    scores = score_view(view, [draw.probe([layer], keeps_pairs=False)], kind, layers=[layer])
    values = np.array(scores.of(scores.columns[0]), dtype=np.float64)
    return float(average_precision_score(draw.wanted, values))


def _rate_text(rate: float | None) -> str:
    return "natural" if rate is None else f"{rate:.0%}"
