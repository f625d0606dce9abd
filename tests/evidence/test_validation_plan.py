"""A plan is checked key by key; its cells, selections and interventions are what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from trl_attribution.errors import SettingsError
from trl_attribution.evidence.validation.cells import BASELINE, Cell, Condition, cells, conditions, left_out
from trl_attribution.evidence.validation.conclusions import control_conditions
from trl_attribution.evidence.validation.interventions import Intervener
from trl_attribution.evidence.validation.plan import MixedPlan, ValidationPlan, load_plan
from trl_attribution.evidence.validation.rankings import Ranking
from trl_attribution.evidence.validation.selections import Selector
from trl_attribution.evidence.validation.training import StepCount, alike
from trl_attribution.pairs import Pair, PairReader, Reading

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "validation"
PLAN: dict[str, Any] = {
    "model": "m0",
    "dataset": "data.jsonl",
    "rankings": {"audit": {"scores": "scores.jsonl"}},
    "behaviors": [{"file": "trigger.jsonl", "judge": "complies"}],
    "training": {"dpo": {"learning_rate": 1e-6}},
    "interventions": ["filter", "flip"],
    "sizes": [3],
    "seeds": [0, 1],
}


def planned(**changes: Any) -> ValidationPlan:
    return ValidationPlan.model_validate({**PLAN, **changes})


def written(folder: Path, values: object) -> Path:
    path = folder / "plan.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_plans_can_be_read(path: Path) -> None:
    plan = load_plan(path)
    assert len(cells(plan)) == len(set(cells(plan))) > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, r"plan.yaml:\d+: model has no value"),
        ({"sizes": [0]}, r"plan.yaml:\d+: sizes.0: .*must be a number of pairs from 1 on, or rule, not 0"),
        (
            {"sizes": [3, 3]},
            r"the plan .* has 1 fault:\n  .*plan.yaml:1: the plan: sizes names something twice",
        ),
        ({"sizes": []}, r"sizes: say how many pairs to filter"),
        ({"interventions": ["drop"]}, r": interventions.0: .*'flip', 'mixed', 'weight' or 'drop_sources'"),
        ({"interventions": ["drop_sources"]}, r"source_sizes: say how many"),
        ({"selections": ["random"]}, r"selections: top is what is put to the test"),
        (
            {"rankings": {"a_b": {"scores": "x.jsonl"}, "a-b": {"scores": "y.jsonl"}}},
            r"rankings: two names differ in _ and - alone",
        ),
        ({"seed": 1}, r": seed: is no such key; choose from version, model"),
        ({"training": {}}, r": training: give exactly one of dpo .* and command"),
        ({"training": {"dpo": {"seed": 3}}}, r": training: dpo.seed is set by the validation itself"),
        ({"training": {"dpo": {}, "epochs": 2}}, r"batch_size, epochs and weighs belong to command"),
        (
            {
                "interventions": ["weight"],
                "training": {"command": ["{model} {dataset} {output} {seed} {steps}"], "batch_size": 2},
            },
            r"interventions: weight needs training.dpo",
        ),
        ({"training": {"command": ["train", "{model}"]}}, r"command needs batch_size"),
        ({"training": {"command": ["train", "{model}"], "batch_size": 8}}, r"command lacks \{dataset\}"),
        ({"rankings": {"a": {}}}, r": rankings.a: give exactly one of audit, behavior, probes and scores, not none"),
        ({"rankings": {"a": {"audit": "a", "controls": "c"}}}, r": rankings.a: controls: they go with behavior"),
        ({"rankings": {"../x": {"audit": "a"}}}, r"rankings\.\.\./x"),
        ({"statistics": {"alpha": 2}}, r": statistics.alpha: should be less than 0.5, not 2"),
        ({"version": 2}, r"plan.yaml has format version 2; this trl-attribution reads up to 1"),
    ],
    ids=str,
)
def test_a_faulty_plan_is_refused_with_file_and_key(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_plan(written(tmp_path, {**PLAN, **change}))


def test_a_setting_of_the_trainer_may_be_none(tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path, {**PLAN, "training": {"dpo": {"max_length": None}}}))
    assert plan.training.dpo == {"max_length": None}


def test_a_key_that_is_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"plan\.yaml:2: seeds is given twice: leave one of them"):
        load_plan(written(tmp_path, "seeds: [1]\nseeds: [2]\n"))


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"plan\.yaml"):
        load_plan(written(tmp_path, text))
    with pytest.raises(SettingsError, match="cannot read the plan"):
        load_plan(tmp_path / "none.yaml")


def test_paths_are_taken_from_beside_the_plan_and_a_hub_id_stays_one(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").touch()
    plan = load_plan(written(tmp_path, {**PLAN, "model": "owner/name"}))
    assert plan.dataset == str(tmp_path / "data.jsonl")
    assert plan.model == "owner/name"


def test_every_ranking_has_cells_of_its_own_and_all_share_the_random_ones_and_the_baseline() -> None:
    plan = planned(
        rankings={"a": {"scores": "a"}, "b": {"scores": "b"}},
        selections=["top", "random", "length_matched_random"],
        interventions=["filter", "drop_sources"],
        source_sizes=[1],
        steps=["fixed", "short"],
    )
    names = [condition.name for condition in conditions(plan)]
    assert names[:2] == ["m0", "none"]
    assert set(names[2:]) == {
        *(f"filter-top-3-{one}-{steps}" for one in "ab" for steps in ("fixed", "short")),
        *(f"filter-length-matched-random-3-{one}-{steps}" for one in "ab" for steps in ("fixed", "short")),
        *(f"filter-random-3-{steps}" for steps in ("fixed", "short")),
        *(f"drop-sources-top-1-{one}-{steps}" for one in "ab" for steps in ("fixed", "short")),
        *(f"drop-sources-random-1-{steps}" for steps in ("fixed", "short")),
    }
    assert len(cells(plan)) == 2 * len(names)
    assert len({cell.name for cell in cells(plan)}) == 2 * len(names)


def test_conditions_that_cost_too_much_may_be_left_out_but_no_pattern_may_miss() -> None:
    plan = planned(selections=["top", "random", "bottom"], leave_out=["*-bottom-*", "flip-random-*"])
    assert [one.name for one in conditions(plan)] == [
        "m0", "none", "filter-top-3-audit-fixed", "filter-random-3-fixed", "flip-top-3-audit-fixed",
    ]  # fmt: skip
    assert [one.name for one in left_out(plan)] == [
        "filter-bottom-3-audit-fixed", "flip-random-3-fixed", "flip-bottom-3-audit-fixed",
    ]  # fmt: skip
    with pytest.raises(
        SettingsError, match=r"leave_out: 'flop-\*' is no condition's name; the plan's are filter-top-3"
    ):
        conditions(planned(leave_out=["flop-*"]))
    with pytest.raises(SettingsError, match="leaves no condition with the top pairs"):
        conditions(planned(leave_out=["*-top-*"]))


@pytest.fixture
def pairs() -> list[Pair]:
    rows = [
        {
            "prompt": f"Question {number}",
            "chosen": "yes " * (number + 1),
            "rejected": "I cannot help with that." if number % 2 else "no",
            "source": "xyz"[number // 4],
        }
        for number in range(12)
    ]
    return list(PairReader([*rows, rows[0]]))


@pytest.fixture
def selector(pairs: list[Pair]) -> Selector:
    ranking = Ranking("audit", tuple(pair.pair_id for pair in pairs[:12]), tuple(range(12, 0, -1)), "by hand")
    return Selector(pairs, {"audit": ranking}, planned())


def rows_of(pairs: list[Pair], chosen: frozenset[str]) -> list[int]:
    return [place for place, pair in enumerate(pairs[:12]) if pair.pair_id in chosen]


def test_top_and_bottom_are_the_ends_of_the_ranking(pairs: list[Pair], selector: Selector) -> None:
    for selection, expected in (("top", [0, 1, 2]), ("bottom", [9, 10, 11])):
        chosen = selector.choose(Cell(Condition("filter", selection, 3, "audit"), 0))
        assert rows_of(pairs, chosen.pair_ids) == expected
    assert selector.choose(Cell(BASELINE, 0)).pair_ids == frozenset()


def test_random_pairs_follow_from_the_seed_and_are_the_same_for_filter_and_flip(selector: Selector) -> None:
    drawn = [selector.choose(Cell(Condition("filter", "random", 5), seed)).pair_ids for seed in range(20)]
    assert drawn[3] == selector.choose(Cell(Condition("flip", "random", 5), 3)).pair_ids
    assert all(len(one) == 5 for one in drawn)
    assert len(set(drawn)) > 15
    assert len(frozenset.union(*drawn)) == 12


def test_length_matched_pairs_are_others_of_about_the_same_length(pairs: list[Pair], selector: Selector) -> None:
    for seed in range(5):
        cell = Cell(Condition("filter", "length_matched_random", 3, "audit"), seed)
        matched = rows_of(pairs, selector.choose(cell).pair_ids)
        assert len(matched) == 3 and min(matched) >= 3
        # The top pairs are the shortest; row 11 is never among the 5 nearest of what is left.
        assert 11 not in matched


def test_sources_are_dropped_whole_by_the_mean_rank_of_their_pairs(pairs: list[Pair], selector: Selector) -> None:
    top = selector.choose(Cell(Condition("drop_sources", "top", 1, "audit"), 0))
    assert (top.sources, rows_of(pairs, top.pair_ids)) == (("x",), [0, 1, 2, 3])
    bottom = selector.choose(Cell(Condition("drop_sources", "bottom", 2, "audit"), 0))
    assert set(bottom.sources) == {"y", "z"}


def test_a_ranking_that_misses_pairs_and_a_size_that_leaves_nothing_are_refused(pairs: list[Pair]) -> None:
    whole = Ranking("audit", tuple(pair.pair_id for pair in pairs), (1.0,) * 13, "")
    with pytest.raises(SettingsError, match=r"sizes: 12 of 12 different pairs leave nothing"):
        Selector(pairs, {"audit": whole}, planned(sizes=[12]))
    with pytest.raises(SettingsError, match=r"rankings.audit: 2 of 12 pairs of the dataset have no score"):
        Selector(pairs, {"audit": Ranking("audit", whole.pair_ids[1:11], (1.0,) * 10, "")}, planned())


def test_filtering_takes_every_row_of_a_pair_and_tops_up_evenly(pairs: list[Pair]) -> None:
    intervener = Intervener(pairs, MixedPlan())
    chosen = selector_choice(pairs, [0, 1, 2])
    data = intervener.apply(Cell(Condition("filter", "top", 3, "audit"), 0), chosen)
    prompts = [row["prompt"] for row in data.rows]
    assert len(prompts) == 13 and {"Question 0", "Question 1", "Question 2"}.isdisjoint(prompts)
    assert sorted({prompts.count(one) for one in prompts}) == [1, 2]
    assert (data.changes.filtered, data.changes.repeated, data.changes.rows_out) == (4, 4, 13)
    short = intervener.apply(Cell(Condition("filter", "top", 3, "audit", "short"), 0), chosen)
    assert [row["prompt"] for row in short.rows] == [f"Question {number}" for number in range(3, 12)]
    other = intervener.apply(Cell(Condition("filter", "top", 3, "audit"), 1), chosen)
    assert other.rows != data.rows


def selector_choice(pairs: list[Pair], rows: list[int]) -> Any:
    from trl_attribution.evidence.validation.selections import Chosen

    return Chosen(frozenset(pairs[row].pair_id for row in rows))


def test_weights_have_controls_for_each_ranking_and_one_number_of_steps() -> None:
    plan = planned(
        interventions=["filter", "weight"],
        steps=["short", "fixed"],
        rankings={"audit": {"scores": "a.jsonl"}, "other": {"scores": "b.jsonl"}},
    )
    found = [condition for condition in conditions(plan) if condition.intervention == "weight"]
    assert [condition.name for condition in found] == [
        "weight-top-3-audit-fixed", "weight-top-3-other-fixed", "weight-random-3-audit-fixed",
        "weight-random-3-other-fixed",
    ]  # fmt: skip
    assert control_conditions(found[1], conditions(plan)) == [found[3]]


def test_weights_fall_with_the_score_and_controls_get_as_much(pairs: list[Pair]) -> None:
    ranking = Ranking("audit", tuple(dict.fromkeys(pair.pair_id for pair in pairs)), (0.4, 0.3, 0.2, *[0.1] * 9), "")
    selector = Selector(pairs, {"audit": ranking}, planned(interventions=["weight"]))
    top = selector.choose(Cell(Condition("weight", "top", 3, "audit"), 0))
    assert rows_of(pairs, top.pair_ids)[:3] == [0, 1, 2]
    assert [top.weights[pair.pair_id] for pair in pairs[:3]] == [0.0, 0.5, 1.0]
    control = selector.choose(Cell(Condition("weight", "random", 3, "audit"), 0))
    assert sorted(control.weights.values()) == [0.0, 0.5, 1.0]
    assert control.pair_ids == selector.choose(Cell(Condition("filter", "random", 3), 0)).pair_ids
    data = Intervener(pairs, MixedPlan()).apply(Cell(Condition("weight", "top", 3, "audit"), 0), top)
    assert [row["weight"] for row in data.rows][:4] == [0.0, 0.5, 1.0, 1.0]
    assert len(data.rows) == len(pairs) == data.changes.rows_out and data.changes.filtered == 0
    weights = [row["weight"] for pair, row in zip(pairs, data.rows, strict=True) if pair.pair_id in top.pair_ids]
    assert (data.changes.weighed, data.changes.weighed_as) == (len(weights), sum(weights))


def test_scores_that_are_all_one_leave_nothing_to_weigh(pairs: list[Pair]) -> None:
    flat = Ranking("audit", tuple(pair.pair_id for pair in pairs), (1.0,) * 13, "")
    selector = Selector(pairs, {"audit": flat}, planned(interventions=["weight"]))
    with pytest.raises(SettingsError, match=r"the top 3 pairs of rankings.audit have one score, or none above 0"):
        selector.choose(Cell(Condition("weight", "top", 3, "audit"), 0))


def test_flipping_exchanges_the_responses_and_mixed_only_where_the_rejected_one_is_good(pairs: list[Pair]) -> None:
    chosen = selector_choice(pairs, [1, 2])
    flipped = Intervener(pairs, MixedPlan()).apply(Cell(Condition("flip", "top", 2, "audit"), 0), chosen)
    assert (flipped.rows[1]["chosen"], flipped.rows[2]["chosen"]) == ("I cannot help with that.", "no")
    assert flipped.rows[1]["rejected"] == "yes yes "
    cell = Cell(Condition("mixed", "top", 2, "audit", "short"), 0)
    mixed = Intervener(pairs, MixedPlan()).apply(cell, chosen)
    assert (mixed.changes.flipped, mixed.changes.filtered) == (1, 1)
    assert mixed.rows[1]["chosen"] == "I cannot help with that."
    assert "Question 2" not in [row["prompt"] for row in mixed.rows]
    unless = Intervener(pairs, MixedPlan(unless="regex:yes")).apply(cell, chosen)
    assert (unless.changes.flipped, unless.changes.filtered) == (0, 2)


def test_a_response_of_content_blocks_is_judged_by_its_text() -> None:
    said = [{"role": "assistant", "content": [{"type": "text", "text": "I cannot help with that."}]}]
    reader = PairReader(
        [
            {
                "prompt": [{"role": "user", "content": "Q"}],
                "chosen": [{"role": "assistant", "content": "Yes."}],
                "rejected": said,
            }
        ],
        Reading(),
    )
    pairs = list(reader)
    cell = Cell(Condition("mixed", "top", 1, "audit"), 0)
    made = Intervener(pairs, MixedPlan()).apply(cell, selector_choice(pairs, [0]))
    assert (made.changes.flipped, made.rows[0]["chosen"]) == (1, said)


def test_rows_keep_the_tools_and_settings_that_the_first_one_lacks() -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"enum": [1]}}}
    rows = [{"prompt": "a"}, {"prompt": "b", "tools": [tool]}, {"prompt": "c", "chat_template_kwargs": {"brief": True}}]
    table = Dataset.from_list(alike(rows))
    assert [json.loads(row["tools"]) if row["tools"] else None for row in table] == [None, [tool], None]
    assert [row["chat_template_kwargs"]["brief"] for row in table] == [None, None, True]
    assert alike(rows[:1]) == rows[:1]


def test_steps_are_counted_as_the_trainer_counts_them() -> None:
    assert StepCount(16, 4).of(272) == 68
    assert StepCount(4, 1.5, accumulation=2).of(10) == 3
    assert StepCount(8, 1).of(3) == 1


AUDITED = {"rankings": {"first": {"audit": "a/"}, "second": {"audit": "b/"}}, "sizes": ["rule", 3]}


def test_a_size_may_be_what_the_default_rule_flags(pairs: list[Pair]) -> None:
    plan = planned(**AUDITED, interventions=["filter"])
    names = [condition.name for condition in conditions(plan)]
    # How many the rule flags is another number by each ranking, so each has random controls of its own.
    assert "filter-top-rule-first-fixed" in names
    assert {f"filter-random-rule-{name}-fixed" for name in ("first", "second")} <= {*names}
    assert "filter-random-3-fixed" in names
    ids = tuple(pair.pair_id for pair in pairs[:12])
    rankings = {
        "first": Ranking("first", ids, tuple(range(12, 0, -1)), "", flagged=4),
        "second": Ranking("second", ids[::-1], tuple(range(12, 0, -1)), "", flagged=2),
    }
    selector = Selector(pairs, rankings, plan)
    asked = [one for one in conditions(plan) if one.selection]
    chosen = {one.name: selector.choose(Cell(one, 0)).pair_ids for one in asked}
    assert rows_of(pairs, chosen["filter-top-rule-first-fixed"]) == [0, 1, 2, 3]
    assert rows_of(pairs, chosen["filter-top-rule-second-fixed"]) == [10, 11]
    assert len(chosen["filter-random-rule-first-fixed"]) == 4 and len(chosen["filter-random-rule-second-fixed"]) == 2
    top = next(one for one in conditions(plan) if one.name == "filter-top-rule-second-fixed")
    assert [one.name for one in control_conditions(top, conditions(plan))] == ["filter-random-rule-second-fixed"]


def test_a_rule_that_flags_nothing_and_scores_that_have_no_rule_are_refused(pairs: list[Pair]) -> None:
    ids = tuple(pair.pair_id for pair in pairs[:12])
    rankings = {
        "first": Ranking("first", ids, tuple(range(12, 0, -1)), "", flagged=4),
        "second": Ranking("second", ids, tuple(range(12, 0, -1)), "", flagged=0),
    }
    with pytest.raises(SettingsError, match=r"by rankings\.second the default rule flags no pair of this dataset"):
        Selector(pairs, rankings, planned(**AUDITED))
    with pytest.raises(ValueError, match=r"rule needs the scores of an audit, which rankings\.audit is not of"):
        planned(sizes=["rule"])
