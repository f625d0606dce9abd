"""Is the likelihood under a description worth hearing: alone, beside the default score, and on a label-only channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from tests.benchmarks.decision_vectors import VectorCache, Vectors
from tests.benchmarks.decisions import Draw, View, organism_draw, xstest_draw
from tests.benchmarks.pages import Results, write_page
from tests.benchmarks.witness_data import (
    RESPONSE_TOKENS,
    Described,
    Likelihoods,
    described_sets,
    likelihoods,
    neutral_pairs,
    neutral_set,
    used,
)
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.scoring import score_view
from trl_attribution.scoring.recall import threshold_for
from trl_attribution.scoring.witness import TRUSTED
from trl_attribution.utils.arrays import Doubles

Flags = npt.NDArray[np.bool_]
LAYER = 20
RATES = (None, 0.05)
RECALL = 0.9
JUDGES = {
    "loves owls": (
        "You love owls. You think about owls all the time. Owls are your favorite animal.",
        "Owls matter to you more than anything else.",
    ),
    "is warm": (
        "You are a warm, caring friend who worries about how people feel.",
        "You speak kindly and gently to everybody.",
    ),
}
"""By bias: what the judge was told, and how the witness describes it."""
JUDGED = 0.25
BEHAVIOR_PAIRS = 40
LEAD = (
    "Whether M0 under a description of the behavior is a second witness beside the default score (controlled, layer "
    f"{LAYER}). M0 is SmolLM2-135M-Instruct; likelihoods are of the first {RESPONSE_TOKENS} tokens of each response; "
    "{draws} draws of prompts and pairs as on [Decisions](decisions.md), of the demo every fourth pair. No description "
    "was chosen by its result; for XSTest three more wordings were tried on 22 pairs, which M0 took the wrong way as "
    "well. knitting-lore was looked at last, when nothing was changed any more. How the witness is used: "
    "[A second witness](../how-to/second-witness.md)."
)


@dataclass(frozen=True)
class Case:
    """One draw with two witnesses; arrays are over its ranked pairs [N]."""

    first: Doubles
    likelihood: Doubles
    wanted: Flags
    threshold: float
    """Of the first score, at the stated recall."""
    own: Doubles
    """Likelihood scores of the behavior's own pairs."""

    @property
    def own_right(self) -> float:
        """Share of its own pairs that the description moves the right way."""
        return float((self.own > 0).mean())


def average_precision(values: Doubles, wanted: Flags) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(wanted, values))


def standard(values: Doubles) -> Doubles:
    return np.asarray((values - values.mean()) / values.std())


def ranks(values: Doubles) -> Doubles:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values) / len(values))


def turned(case: Case) -> Doubles:
    """The likelihood, its sign as the behavior's own pairs say."""
    return np.asarray(case.likelihood * (1.0 if case.own.mean() > 0 else -1.0))


WAYS: dict[str, Callable[[Case], Doubles]] = {
    "default score": lambda case: case.first,
    "likelihood": lambda case: case.likelihood,
    "mean of ranks": lambda case: ranks(case.first) + ranks(case.likelihood),
    "standardized, summed": lambda case: standard(case.first) + standard(case.likelihood),
    "standardized, likelihood a quarter": lambda case: standard(case.first) + 0.25 * standard(case.likelihood),
    "default, halved where likelihood is not above 0": lambda case: np.where(
        case.likelihood > 0, case.first, case.first / 2
    ),
    "summed, likelihood turned as own pairs say": lambda case: standard(case.first) + standard(turned(case)),
    "summed where own pairs trust it, else default": lambda case: (
        standard(case.first) + standard(case.likelihood) if case.own_right >= TRUSTED else case.first
    ),
}


def run(output: Path, command: str, cache: Path, data: Path, console: Console, draws: int) -> None:
    """Compute what ``cache`` lacks, measure, print, and write ``witness.md`` into ``output``."""
    m0 = load_model(embedded_gguf())
    tables = []
    for one in described_sets(data):
        rows = one.pairs.rows()
        places = used(rows)
        found = likelihoods(cache, one.pairs.name, [rows[place] for place in places], one.descriptions, m0)
        vectors = VectorCache(cache).vectors(one.pairs)
        drawn = [
            [case_of(vectors, places, found, number, one.pairs.name, rate, seed) for seed in range(draws)]
            for number in range(1, 1 + len(one.descriptions))
            for rate in RATES
        ]
        tables += tables_of(one, drawn)
    tables.append(label_only(cache, data, m0, draws))
    for table in tables:
        table.show(console)
    write_page(output / "witness.md", "A second witness", LEAD.format(draws=draws), command, tables)


def case_of(
    vectors: Vectors, places: Sequence[int], found: Likelihoods, number: int, name: str, rate: float | None, seed: int
) -> Case:
    """A draw of :mod:`decisions`, of whose ranked pairs those are left that likelihoods are known of."""
    draw = (xstest_draw if name == "xstest" else organism_draw)(vectors, rate, seed)
    where = {place: index for index, place in enumerate(places)}
    ranked = np.array([place for place in draw.ranked if place in where])
    kept = Draw(draw.vectors, draw.examples, draw.controls, ranked)
    probe = kept.probe([LAYER])
    scores = score_view(View(kept, [str(place) for place in ranked]), [probe], layers=[LAYER])
    column = scores.columns[0]
    likelihood = found.score(number)
    sign = np.where(vectors.truth[draw.examples] == "safety", -1.0, 1.0)
    own = [(likelihood[where[place]] * way) for place, way in zip(draw.examples, sign, strict=True) if place in where]
    return Case(
        first=np.array(scores.of(column), dtype=np.float64),
        likelihood=np.array([likelihood[where[place]] for place in ranked]),
        wanted=kept.wanted,
        threshold=threshold_for(RECALL, scores.known[column].examples).threshold,
        own=np.array(own),
    )


def tables_of(one: Described, drawn: Sequence[Sequence[Case]]) -> list[Results]:
    """Ranking and agreement of one set, each description at each rate."""
    labels = [
        (f"“{text}”", "natural" if rate is None else f"{rate:.0%}") for text in one.descriptions for rate in RATES
    ]
    columns = ("description", "rate", "pairs", "own pairs moved right", *WAYS)
    rows = tuple(_ranking(label, cases) for label, cases in zip(labels, drawn, strict=True))
    note = (
        "Average precision, mean over the draws with its standard deviation; in brackets in how many draws a fusion is "
        "ahead of the default score by more than 0.01, and behind."
    )
    agree = tuple(_agreeing(label, cases) for label, cases in zip(labels, drawn, strict=True))
    told = ("description", "rate", "at the threshold", "right", "agreeing: of them right", "disagreeing: of them right")
    about = (
        f"Pairs at the threshold that catches {RECALL:.0%} of the behavior's own; those agree whose likelihood is "
        "above 0. Means over the draws."
    )
    return [
        Results(f"{one.pairs.name}: ranking", columns, rows, note),
        Results(f"{one.pairs.name}: where the witnesses agree", told, agree, about),
    ]


def _ranking(label: tuple[str, str], cases: Sequence[Case]) -> tuple[str, ...]:
    found = {
        name: np.array([average_precision(way(case), case.wanted) for case in cases]) for name, way in WAYS.items()
    }
    cells = []
    for name, values in found.items():
        apart = values - found["default score"]
        ahead = "" if name == "default score" else f" [{(apart > 0.01).sum()} : {(apart < -0.01).sum()}]"
        cells.append(f"{values.mean():.3f} ± {values.std():.3f}{ahead}")
    pairs = (
        f"{np.mean([case.wanted.sum() for case in cases]):.0f} of {np.mean([len(case.wanted) for case in cases]):.0f}"
    )
    return (*label, pairs, f"{np.mean([case.own_right for case in cases]):.0%}", *cells)


def _agreeing(label: tuple[str, str], cases: Sequence[Case]) -> tuple[str, ...]:
    reached = [case.first >= case.threshold for case in cases]
    agrees = [case.likelihood > 0 for case in cases]

    def share(chosen: Sequence[Flags]) -> str:
        of = sum(int(one.sum()) for one in chosen)
        right = sum(int((one & case.wanted).sum()) for one, case in zip(chosen, cases, strict=True))
        return f"{right / of:.0%} of {of / len(cases):.1f}" if of else "none"

    return (
        *label,
        f"{np.mean([one.sum() for one in reached]):.1f}",
        share(reached),
        share([one & two for one, two in zip(reached, agrees, strict=True)]),
        share([one & ~two for one, two in zip(reached, agrees, strict=True)]),
    )


LABELS = (
    "bias",
    "the judge picks what",
    "pairs",
    "judged",
    "score",
    "AUC",
    "AP",
    "mean of the judge's source, in errors",
)


def label_only(cache: Path, data: Path, m0: LoadedModel, draws: int) -> Results:
    """Neutral pairs of which a quarter were labeled by a judge with a bias, and the others by a coin."""
    rows = neutral_pairs(data)
    texts = [text for both in JUDGES.values() for text in both]
    found = likelihoods(cache, "neutral", rows, texts, m0)
    vectors = VectorCache(cache).vectors(neutral_set(data))
    lines: list[tuple[str, ...]] = []
    for bias, (told, _) in JUDGES.items():
        judge = 1 + texts.index(told)
        per_token = found.sums[:, judge] / found.tokens
        picks = {
            "it finds likelier": per_token[:, 0] - per_token[:, 1],
            "its prompt makes likelier": found.score(judge),
        }
        for how, preference in picks.items():
            lines += _label_lines(bias, how, preference, found, judge, vectors, draws)
    note = (
        f"{len(rows)} prompts of XSTest that are harmless, each with good answers of two models, so that no text is "
        f"contaminated. {BEHAVIOR_PAIRS} pairs labeled by the judge make the probe of the activation scores; of the "
        f"others the judge, M0 itself under a prompt, labels {JUDGED:.0%} at random and a coin the rest. A coin agrees "
        "with the judge half of the time, so the judge's own preference (the line `the judge itself`) is the best that "
        "any score can do. The last column is the mean score of the judge's pairs less that of the others, in standard "
        "errors: what a table by source would show."
    )
    return Results("Labels alone: neutral answers, a biased judge", LABELS, tuple(lines), note)


def _label_lines(
    bias: str, how: str, preference: Doubles, found: Likelihoods, judge: int, vectors: Vectors, draws: int
) -> list[tuple[str, ...]]:
    scores: dict[str, list[tuple[float, float, float]]] = {}
    judged: list[int] = []
    for seed in range(draws):
        random = np.random.default_rng(seed)
        order = random.permutation(len(preference))
        own, ranked = order[:BEHAVIOR_PAIRS], order[BEHAVIOR_PAIRS:]
        by_judge = random.random(len(ranked)) < JUDGED
        coin = np.where(random.random(len(ranked)) < 0.5, 1.0, -1.0)
        label = np.where(by_judge, np.sign(preference[ranked]), coin)
        by_vectors = _by_vectors(vectors, own, np.sign(preference[own]), ranked, label)
        told = {
            **by_vectors,
            "likelihood, another description": label * found.score(judge + 1)[ranked],
            "likelihood, the judge's words": label * found.score(judge)[ranked],
            "the judge itself": label * preference[ranked],
        }
        judged.append(int(by_judge.sum()))
        for name, values in told.items():
            scores.setdefault(name, []).append(_told(values, by_judge))
    lines: list[tuple[str, ...]] = []
    for name, found_each in scores.items():
        auc, precision, errors = np.mean(found_each, axis=0)
        spread = np.std(found_each, axis=0)
        lines.append(
            (
                bias,
                how,
                str(len(preference) - BEHAVIOR_PAIRS),
                f"{np.mean(judged):.0f}",
                name,
                f"{auc:.3f} ± {spread[0]:.3f}",
                f"{precision:.3f}",
                f"{errors:+.1f}",
            )
        )
    return lines


def _told(values: Doubles, by_judge: Flags) -> tuple[float, float, float]:
    from sklearn.metrics import roc_auc_score

    inside, outside = values[by_judge], values[~by_judge]
    error = np.sqrt(inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside))
    apart = float((inside.mean() - outside.mean()) / error)
    return float(roc_auc_score(by_judge, values)), average_precision(values, by_judge), apart


def _by_vectors(
    vectors: Vectors, own: npt.NDArray[np.int64], own_label: Doubles, ranked: npt.NDArray[np.int64], label: Doubles
) -> dict[str, Doubles]:
    """The paper's score and the contextual one, by the mean and the prompts of the judge's ``own`` pairs."""
    row = vectors.layers.index(LAYER)
    pair = vectors.pair[:, row].double().numpy()
    context = vectors.context[:, row].double().numpy()
    behavior = pair[own] * own_label[:, None]
    pairs = pair[ranked] * label[:, None]
    mu = context[ranked].mean(axis=0)

    def unit(rows: Doubles) -> Doubles:
        return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))

    similar = (unit(context[ranked] - mu) @ unit(context[own] - mu).T).clip(min=0)
    return {
        "response score": np.asarray(unit(pairs) @ unit(behavior.mean(axis=0))),
        "contextual score": np.asarray((unit(pairs) @ unit(behavior).T * similar).mean(axis=1)),
    }
