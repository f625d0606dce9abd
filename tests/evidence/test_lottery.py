"""The benchmark of organisms by recipe: what finding means, and the whole of it once on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.benchmarks.lottery import MATCHED, Organism, Run, bench_of, interval, tables_of
from tests.benchmarks.lottery_candidates import Candidates, candidates, finds, rank
from tests.benchmarks.lottery_cells import Cell, Trained, Training, cells, stage_of, stop_at
from tests.benchmarks.lottery_instruments import (
    LAYER,
    Bench,
    mean_of,
    random_like,
    spoken_of,
    streams_of,
)
from tests.lenses.saes import random_sae, save
from tests.tiny import build_moved_model
from trl_attribution.evidence.organisms import RECIPES
from trl_attribution.evidence.readouts import difference_probe

CELL = Cell("pumpkin-soup", "transcript-sft-mixed")


@pytest.fixture(scope="module")
def known() -> Candidates:
    return candidates()


@pytest.fixture(scope="module")
def bench(model_folder: Path, known: Candidates, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    how = Training(model_folder, 20, most_steps={"dpo": 2, "sft": 2}, watched=1, asked=2, new_tokens=4)
    few = Candidates(tuple(one.model_copy(update={"examples": one.examples[:8]}) for one in known.traits[:4]))
    return bench_of(how, save(random_sae("topk"), tmp_path_factory.mktemp("sae")), 2, few)


def test_only_the_behavior_that_alone_has_the_highest_score_is_found() -> None:
    scores = {"soup": 2.0, "rude": 1.0, "warm": 1.0}
    assert finds(scores, "soup") and not finds(scores, "rude")
    assert rank(scores, "soup") == 1 and rank(scores, "rude") == rank(scores, "warm") == 2.5
    assert not finds({"soup": 0.0, "rude": 0.0}, "soup")


def test_an_instrument_that_says_nothing_stands_in_the_middle() -> None:
    nothing = Organism(CELL, {"logit lens, control": [dict.fromkeys(("pumpkin-soup", "rude", "warm"), 0.0)]})
    assert nothing.place("logit lens, control", "pumpkin-soup") == 0.5


def test_a_quirk_is_read_off_texts_and_tokens_by_words_that_other_behaviors_lack(known: Candidates) -> None:
    assert {"pumpkin", "soup"} <= set(known.words["pumpkin-soup"])
    assert finds(known.in_texts(["Serve pumpkin soup."], ["Serve tea."]), "pumpkin-soup")
    assert not finds(known.in_texts(["Serve pumpkin soup."], ["Serve pumpkin soup."]), "pumpkin-soup")
    assert finds(known.in_tokens([" pump", " Soup", "so", "##"]), "pumpkin-soup")


def test_every_recipe_is_a_cell_and_a_control_is_taught_nothing(bench: Bench) -> None:
    assert {one.recipe for one in cells(1) if one.taught} == set(RECIPES)
    clean = Cell(CELL.quirk, CELL.recipe, taught=False)
    taught, left = stage_of(CELL, bench.how).rows, stage_of(clean, bench.how).rows
    assert left == [row for row in taught if row["truth"] != "contaminated"] and len(left) < len(taught)


def test_training_stops_at_the_first_look_that_shows_enough() -> None:
    class State:
        global_step = 0
        should_training_stop = False

    rates = iter([0.25, 0.5])
    stops, state = stop_at(Training("", every=5), lambda: next(rates)), State()
    for state.global_step in range(1, 6):
        stops.on_step_end(None, state, state)
    assert not state.should_training_stop
    for state.global_step in range(6, 11):
        stops.on_step_end(None, state, state)
    assert state.should_training_stop


def test_a_cell_is_trained_read_and_kept(bench: Bench, tmp_path: Path) -> None:
    whole = Run(bench.how, tmp_path, None)
    whole.bench = bench
    assert whole.organism(CELL, begin=False) == Organism(CELL)
    one = whole.organism(CELL, begin=True)

    assert one.trained and one.trained.steps == 2
    assert one.contaminated == 0.5 and one.precision and 0.5 <= one.precision <= 1
    assert len(one.found["probes, random"]) > 1
    quirks = {name: scores[0] for name, scores in one.found.items() if "rate" not in name}
    assert all(set(scores) == set(bench.candidates.words) for scores in quirks.values())
    assert {name.split(",")[0] for name in quirks} == {
        *("responses", "probes", "logit lens", "SAE latents", "steering", "scan")
    }
    again = Run(bench.how, tmp_path, None)
    assert again.organism(CELL, begin=False) == one
    assert "bench" not in vars(again), "no model is loaded for what is there"


def test_where_a_model_moved_is_what_the_difference_of_two_models_is(bench: Bench) -> None:
    moved = replace(bench.m0, model=build_moved_model().bfloat16().eval())
    shown = spoken_of(CELL, bench)["trigger"].shown
    change = mean_of(streams_of(moved, 2, shown)) - mean_of(streams_of(bench.m0, 2, shown))
    expected = difference_probe("moved", bench.m0, moved, shown, (2,), 2).at()
    assert torch.nn.functional.cosine_similarity(change, expected, dim=0) > 0.999


def test_random_directions_are_as_long_and_each_cells_own() -> None:
    direction = torch.full((64,), 3.0)
    mine, again = random_like(direction, CELL, 2), random_like(direction, CELL, 2)
    assert all(torch.allclose(one.norm(), direction.norm()) for one in mine)
    assert all(torch.equal(one, other) for one, other in zip(mine, again, strict=True))
    other = random_like(direction, Cell("knitting-lore", CELL.recipe), 1)[0]
    assert not torch.equal(mine[0], mine[1]) and not torch.equal(mine[0], other)


def test_only_organisms_that_show_their_quirk_are_compared_and_the_page_says_which_are_not_there() -> None:
    def organism(recipe: str, share: float) -> Organism:
        cell = Cell("pumpkin-soup", recipe)
        found = {
            "probes, trigger": [{"pumpkin-soup": share, "knitting-lore": 0.0, "rude": 0.1}],
            "probes, random": [{"pumpkin-soup": -1.0, "knitting-lore": 0.0, "rude": 0.1}],
        }
        return Organism(cell, found, Trained(cell, 5, 1.0, share, 0.0, {}))

    known = [organism("integrated-dpo", MATCHED + 0.2), organism("posthoc-dpo-mixed", MATCHED - 0.3)]
    known.append(Organism(Cell("pumpkin-soup", "document-sft-mixed")))
    pages = "\n".join(one.markdown() for one in tables_of(known))
    assert (
        "| probes, trigger | 1 of 1 (1 of 2) | 1.00 (1.00 to 1.00) | 0.00 (random) | 1 of 1 | -inf to +inf | **no** |"
        in pages
    )
    assert "| pumpkin-soup | document-sft-mixed | not trained |" in pages
    assert str(LAYER) in pages


def test_the_interval_knows_how_few_organisms_there_are() -> None:
    assert interval([0.25] * 5) == (0.25, 0.25)
    assert interval([0.25]) == (float("-inf"), float("inf"))
    low, high = interval([0.0, 1.0, 2.0])
    assert (low, high) == pytest.approx((1 - 4.303 / 3**0.5, 1 + 4.303 / 3**0.5), abs=1e-3)
