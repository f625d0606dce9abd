"""Which pairs are read first: does a reading of so few of them tell what it is said to tell?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tests.scoring.test_decision import known, look_alikes, neutral, world
from trl_attribution.scoring.decision import Decision, KnownPairs, decide
from trl_attribution.scoring.read_first import MARGIN, ReadFirst, read_first


def ids_of(count: int, seed: int = 0) -> pa.Array:
    random = np.random.default_rng(seed)
    return pa.array([random.bytes(16).hex() for _ in range(count)])


def planned(contaminated: int = 80, seed: int = 0) -> tuple[ReadFirst, Decision, np.ndarray, np.ndarray]:
    scores, truth, pairs = world(seed, contaminated)
    decision = decide(scores, 0.9, pairs)
    plan = read_first(scores, decision.passes(scores), ids_of(len(scores), seed), decision.prevalence)
    return plan, decision, scores, truth


def test_pairs_near_the_threshold_have_more_places_than_those_at_the_top() -> None:
    plan, decision, scores, _ = planned()
    inside = np.concatenate(plan.strata)
    assert set(inside) == set(np.flatnonzero(decision.passes(scores)))
    assert (np.diff(scores[inside]) <= 0).all()
    read = set(plan.positions.tolist())
    shares = [np.mean([place in read for place in stratum]) for stratum in plan.strata]
    assert shares[-1] > 1.5 * shares[0] > 0
    # Right beneath the threshold some are read too: they tell what was missed.
    assert (scores[plan.beneath] < decision.threshold.threshold).all()
    assert read & set(plan.beneath.tolist())


def test_every_beginning_of_the_list_takes_all_strata_in_turn() -> None:
    plan, *_ = planned()
    parts = [*plan.strata, plan.beneath]
    of = {int(place): number for number, part in enumerate(parts) for place in part}
    assert sorted(of[place] for place in plan.positions[: len(parts)].tolist()) == list(range(len(parts)))


def test_the_choice_depends_on_the_pairs_and_not_on_their_order() -> None:
    scores, _, pairs = world(0, 80)
    decision, names = decide(scores, 0.9, pairs), ids_of(len(scores))
    turned = np.random.default_rng(1).permutation(len(scores))
    first = read_first(scores, decision.passes(scores), names, decision.prevalence)
    again = read_first(
        scores[turned], decision.passes(scores[turned]), names.take(pa.array(turned)), decision.prevalence
    )
    assert names.take(pa.array(first.positions)) == names.take(pa.array(turned[again.positions]))


def test_reading_them_tells_how_many_are_wrong_to_within_the_margin() -> None:
    off = []
    for seed in range(20):
        plan, _, _, truth = planned(seed=seed)
        read = set(plan.positions.tolist())
        labeled = [[truth[place] for place in stratum if place in read] for stratum in plan.strata]
        wrong = sum(len(all_) * (1 - np.mean(some)) for all_, some in zip(plan.strata, labeled, strict=True))
        inside = np.concatenate(plan.strata)
        off.append(abs(wrong - (~truth[inside]).sum()) / len(inside))
        assert len(plan) < len(inside)
    assert np.mean(np.array(off) <= MARGIN) >= 0.9


def test_where_nothing_is_flagged_the_top_ten_are_read_all_the_same() -> None:
    random = np.random.default_rng(0)
    scores = np.concatenate([neutral(random, 200), look_alikes(random, 20)])
    pairs = KnownPairs(known(np.full(40, 0.9)), known(look_alikes(random, 40)))
    decision = decide(scores, 0.9, pairs)
    plan = read_first(scores, decision.passes(scores), ids_of(len(scores)), decision.prevalence)
    assert plan.positions.tolist() == np.argsort(-scores, kind="stable")[:10].tolist()
    assert plan.strata == ()
