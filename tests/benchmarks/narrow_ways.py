"""Other ways to find a narrow effect, on vectors that are known: other topics, other tests; none is the scan's.

Axis letters: N pairs, T traits, K components, A leaf topics, C topics, F draws, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from tests.benchmarks.pages import Results
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.discovery.effects import Doubles, Sums
from trl_attribution.discovery.topics import Topics
from trl_attribution.discovery.traits.measures import measured, take_measures
from trl_attribution.discovery.traits.panel import Panel, build_panel, unit
from trl_attribution.discovery.traits.trait import packaged_traits
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Pair, PairReader, whole_text

if TYPE_CHECKING:
    from tests.benchmarks.scan import Known

LAYER = 20
DRAWS = 399
ALPHA = 0.01
FEWEST = 20
COMPONENTS = 64
TOPICS = {"contexts": "contexts, as the scan", "words": "the prompt's words"}
TESTS = {"all": "z over all, as the scan", "tails": "the same, tails of few pairs", "places": "places, then traits"}
Row = Mapping[str, Any]
Way = tuple[str, str]
"""How topics are made, and what an effect has to reach."""


@dataclass(frozen=True)
class Planted:
    """Pairs with a planted trait among clean ones."""

    trait: str
    rest: Sequence[Row]
    own: Sequence[Row]
    at_random: Sequence[Row]
    """``own``, labels at random."""
    known: Known


def table(cases: Sequence[Planted], doubled: Sequence[Planted], model: LoadedModel, console: Console) -> Results:
    """What each way finds of ``cases``, and of probed traits planted in twice as many pairs."""
    panel = build_panel(packaged_traits(), DataAuditor(model, layers=[LAYER]), LAYER, lambda *_: None)
    counted = {one.name for one in panel.traits if one.measure}
    told = [_told(case, panel, model, console) for case in cases]
    twice = [_told(case, panel, model, console) for case in doubled]
    kinds = [[case.trait in counted for case in cases].count(kind) for kind in (True, False)]
    rows = []
    for topics, topics_said in TOPICS.items():
        for test, test_said in TESTS.items():
            found = [(case.trait, *one[topics, test]) for case, one in zip(cases, told, strict=True)]
            hits = [sum(trait in names for trait, names, _ in found if (trait in counted) == kind) for kind in (1, 0)]
            more = sum(case.trait in one[topics, test][0] for case, one in zip(doubled, twice, strict=True))
            others = sum(len(names - counted - {trait}) for trait, names, _ in found) / len(found)
            chance = sum(bool(names) for *_, names in found)
            cells = [f"{hit} of {kind}" for hit, kind in zip(hits, kinds, strict=True)]
            cells += [f"{more} of {len(doubled)}", f"{others:.1f}", f"{chance} of {len(found)}"]
            rows.append((topics_said, test_said, *cells))
    note = (
        "Found: the trait stands out in a topic at least half of which are its pairs. What the scan asks beyond that "
        "(that the place is apart from the rest, that no other finding explains it) is left out: this is the most that "
        "each way could tell. Probed, 4%: of both subjects, 60 pairs. Other names: probed traits, a case in the mean, "
        "that stand out there too. At random: any trait is found there when the labels of these pairs are drawn. The "
        "prompt's words: the mean of M0's input embeddings, a rare word weighing more; planted questions share their "
        "wording with each other and with no other pair. Tails of few pairs: z with the correction of its 4th moment "
        "(Cornish-Fisher), since random signs of 30 pairs do not reach as far as those of thousands. Places, then "
        f"traits: a topic has to teach anything at all (the largest {COMPONENTS} components of its pair vectors "
        "together, over all topics), then a trait has to stand out among the traits of that topic alone. "
        "**What finds more names more that was not planted**, so the scan does neither."
    )
    columns = ("topics from", "test", "counted", "probed", "probed, 4%", "other names", "at random")
    return Results("Other ways to find a trait planted in one topic", columns, tuple(rows), note)


def _told(case: Planted, panel: Panel, model: LoadedModel, console: Console) -> dict[Way, tuple[set[str], set[str]]]:
    """For each way the traits that stand out in the planted pairs' topic, and those at random."""
    pairs = [list(PairReader([*case.rest, *own])) for own in (case.own, case.at_random)]
    _, contexts = _known(pairs[0], case.known)
    spaces = {"contexts": contexts, "words": _words(pairs[0], model)}
    found: dict[Way, tuple[set[str], set[str]]] = {}
    for name, space in spaces.items():
        topics = Topics.of(space, FEWEST // 2)
        leaves = topics.leaves_of(space)
        sides = [_standing(one, case, panel, topics, leaves) for one in pairs]
        for test in TESTS:
            found[name, test] = (sides[0][test], sides[1][test])
    console.print(f"{case.trait}, {len(case.own)} pairs: {found}", markup=False)
    return found


def _standing(
    pairs: Sequence[Pair], case: Planted, panel: Panel, topics: Topics, leaves: np.ndarray
) -> dict[str, set[str]]:
    """For each test the traits that stand out in a topic at least half of which are the planted pairs."""
    vectors, contexts = _known(pairs, case.known)
    scores = panel.scores(vectors).astype(np.float32)
    take_measures(panel.traits, scores, np.stack([measured(pair) for pair in pairs]))
    applies = panel.applies(contexts)
    scores[~applies] = 0
    members, number = topics.members.astype(float), len(panel.traits)
    leaf = np.eye(members.shape[1], dtype=np.float32)[leaves].T
    inside = members @ leaf
    planted = np.arange(len(pairs)) >= len(case.rest)
    there = 2 * inside @ planted >= inside.sum(axis=1)
    rows = unit(vectors)
    components = rows @ np.linalg.eigh(rows.T @ rows)[1][:, -COMPONENTS:]
    both = np.concatenate([scores, components], axis=1).astype(np.float32)
    squares, fourths = inside @ both.astype(float) ** 2, inside @ both[:, :number].astype(float) ** 4
    scale = 1 / np.sqrt(np.where(squares > 0, squares, np.inf))
    tested = Sums.of(scores, applies, leaves, members.shape[1]).over(members).count >= FEWEST
    shape = fourths * scale[:, :number] ** 4

    def seen(signs: np.ndarray) -> tuple[Doubles, Doubles, Doubles]:
        z = members @ (leaf @ (signs[:, None] * both)) * scale
        own = np.where(tested, z[:, :number], 0)
        return own, own + shape / 12 * (own**3 - 3 * own), (z[:, number:] ** 2).sum(axis=1)

    rng = np.random.default_rng(0)
    draws = [seen(rng.choice(np.array([-1, 1], dtype=np.float32), len(pairs))) for _ in range(DRAWS)]
    drawn = [np.abs(np.stack(part)) for part in zip(*draws, strict=True)]
    z, tails, anything = seen(np.ones(len(pairs), dtype=np.float32))
    spread = drawn[2].std(axis=0)
    taught = (anything - COMPONENTS) / spread >= _beyond(((drawn[2] - COMPONENTS) / spread).max(axis=1))
    stands = {
        "all": np.abs(z) >= _beyond(drawn[0].max(axis=(1, 2))),
        "tails": np.abs(tails) >= _beyond(drawn[1].max(axis=(1, 2))),
        "places": taught[:, None] & (np.abs(z) >= _beyond(drawn[0].max(axis=2))[:, None]),
    }
    names = np.array([one.name for one in panel.traits])
    towards = {name: np.where(z > 0, one, False) & there[:, None] & tested for name, one in stands.items()}
    return {name: set(names[one.any(axis=0)].tolist()) for name, one in towards.items()}


def _beyond(drawn: Doubles) -> Doubles:
    """What all but a share of ``ALPHA`` of the draws ``[F, ...]`` stay below."""
    found: Doubles = np.sort(drawn, axis=0)[-int(ALPHA * (DRAWS + 1))]
    return found


def _known(pairs: Sequence[Pair], known: Known) -> tuple[Doubles, Doubles]:
    sides = zip(*(known.vectors[pair.pair_id] for pair in pairs), strict=True)
    vectors, contexts = (np.stack([one.double().numpy() for one in side]) for side in sides)
    return vectors, contexts


def _words(pairs: Sequence[Pair], model: LoadedModel) -> Doubles:
    """``[N, D]``: mean input embeddings of the prompts' ends, weighted by the words' inverse document frequency."""
    embeddings: Doubles = model.model.get_input_embeddings().weight.detach().double().numpy()
    texts = [whole_text(pair.prompt)[-1000:] for pair in pairs]
    tokens = [np.array(model.encoder(text, add_special_tokens=False)["input_ids"], dtype=int) for text in texts]
    in_texts = np.zeros(len(embeddings))
    for one in tokens:
        in_texts[np.unique(one)] += 1
    weights = np.log(len(tokens) / np.maximum(in_texts, 1))
    return np.stack([weights[one] @ embeddings[one] / max(weights[one].sum(), 1e-9) for one in tokens])
