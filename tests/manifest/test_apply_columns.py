"""Columns that belong to one response change places with it; one that only may belong to it is asked about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.manifest_cases import Row, ids_of, manifest_for, read_back, row, simple_rows, write_jsonl
from trl_attribution.errors import ManifestError, SettingsError
from trl_attribution.manifest import ColumnRules
from trl_attribution.pairs import Reading
from trl_attribution.pairs.rows import write_rows

OUTPUTS = ["jsonl", "jsonl.gz", "parquet", "csv", "folder"]
FILES = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Columns as public preference datasets name them, with what has to become of them.
KNOWN_PAIRS = [
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-model", "rejected-model"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("ref_chosen_logps", "ref_rejected_logps"),
    ("rewardChosen", "rewardRejected"),
    ("num_tokens_chosen", "num_tokens_rejected"),
    ("winner_score", "loser_score"),
]
KNOWN_GAPS = ["margin", "score_diff", "reward_margin", "rating_gap", "chosen_rejected_margin"]
INNOCENT = ["source", "id", "prompt_id", "preference_type", "weight", "all_rm_scores", "is_on_policy", "language"]


def with_columns(columns: dict[str, Any], count: int = 4) -> list[Row]:
    return [{**example, **columns} for example in simple_rows(count)]


def flipped(rows: list[Row], rules: ColumnRules | None = None, reading: Reading | None = None) -> list[Row]:
    return manifest_for(rows, ids_of(rows, reading)[:2], "flip", reading).apply(rows, columns=rules)


@pytest.mark.parametrize(("first", "second"), KNOWN_PAIRS)
def test_the_common_pairs_of_columns_are_exchanged(first: str, second: str) -> None:
    rows = with_columns({first: 9, "between": "x", second: None})
    turned = flipped(rows)
    assert [(one[first], one[second]) for one in turned] == [(None, 9)] * 2 + [(9, None)] * 2
    assert [list(one) for one in turned] == [list(one) for one in rows]


@pytest.mark.parametrize("name", KNOWN_GAPS)
def test_the_common_differences_change_their_sign(name: str) -> None:
    rows = [{**one, name: value} for one, value in zip(simple_rows(4), [0.5, -2, 1, None], strict=True)]
    assert [one[name] for one in flipped(rows)] == [-0.5, 2, 1, None]


@pytest.mark.parametrize("name", INNOCENT)
def test_other_columns_stay_as_they_are(name: str) -> None:
    rows = with_columns({name: [1, 2]} if name.startswith("all") else {name: "x"})
    assert [one[name] for one in flipped(rows)] == [one[name] for one in rows]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chosen_critique": "x", "rejected_critique": "y"}, "--swap-columns chosen_critique:rejected_critique"),
        ({"original_chosen": "x", "original_rejected": "y"}, "--swap-columns original_chosen:original_rejected"),
        ({"chosen_score": 3}, "'chosen_score' is named like one response: --swap-columns chosen_score:OTHER"),
        ({"winner": "model_a"}, "'winner' is named like one response"),
        ({"margin": "large"}, r"'margin' is named like a difference of two scores but holds no number \(row 0\)"),
        ({"preference_strength": 2}, "--negate-columns preference_strength"),
        ({"score_ratio": 2.5}, "--negate-columns score_ratio"),
        ({"delta": 2}, "--negate-columns delta"),
        ({"metadata": {"run": 1, "raw": {"chosen_score": 2}}}, "'metadata' has the entry 'raw.chosen_score' inside"),
    ],
)
def test_a_column_that_looks_as_if_it_belonged_to_one_response_is_named(columns: Row, message: str) -> None:
    rows = with_columns(columns)
    with pytest.raises(ManifestError, match=message) as refused:
        flipped(rows)
    assert "--leave-columns" in str(refused.value)
    assert flipped(rows, ColumnRules(leave=tuple(columns)))[0].items() >= columns.items()
    # Filtering leaves no response behind.
    assert manifest_for(rows, ids_of(rows)[:2], "filter").apply(rows) == rows[2:]


def test_a_copy_of_one_response_under_another_name_is_found_by_its_content() -> None:
    rows = [row("messages", (f"Q {n}", f"A {n}", f"B {n}"), n) for n in range(3)]
    for name, copy in (
        ("messages", lambda one: one["chosen"]),
        ("answer", lambda one: one["rejected"][-1]["content"]),
    ):
        copied = [{**one, name: copy(one)} for one in rows]
        with pytest.raises(ManifestError, match=f"'{name}' holds the same as (chosen|rejected): --leave-columns"):
            flipped(copied)
        assert [one[name] for one in flipped(copied, ColumnRules(leave=(name,)))] == [one[name] for one in copied]
    other = [{**one, "messages": one["chosen"] if n else one["prompt"]} for n, one in enumerate(rows)]
    assert [one["messages"] for one in flipped(other)] == [one["messages"] for one in other]


def test_the_words_for_the_two_sides_come_from_the_pairs_own_columns() -> None:
    reading = Reading(chosen_column="response_a", rejected_column="response_b")
    rows = [
        {"prompt": "Q", "response_a": f"A {n}", "response_b": f"B {n}", "score_a": 1, "score_b": 2} for n in range(3)
    ]
    assert [(one["score_a"], one["score_b"]) for one in flipped(rows, reading=reading)] == [(2, 1), (2, 1), (1, 2)]


def test_declared_columns_are_exchanged_and_negated() -> None:
    rows = with_columns({"quality_one": "low", "quality_two": "high", "gain": "-0.5", "delta": 3})
    rules = ColumnRules((("quality_one", "quality_two"),), ("gain", "delta"))
    manifest = manifest_for(rows, ids_of(rows)[:2], "flip")
    turned, report = manifest.apply_with_report(rows, columns=rules)
    assert {key: turned[0][key] for key in ("quality_one", "quality_two", "gain", "delta")} == {
        "quality_one": "high",
        "quality_two": "low",
        "gain": "0.5",
        "delta": -3,
    }
    assert turned[2:] == rows[2:]
    assert (report.swapped_columns, report.negated_columns) == (rules.swap, rules.negate)
    assert manifest.apply(turned, undo=True, columns=rules) == rows


@pytest.mark.parametrize("layout", [list, Dataset.from_list], ids=["list", "dataset"])
def test_only_flipped_rows_need_a_number_to_negate(layout: Any) -> None:
    rows = [{**one, "gain": "0.5" if number < 2 else "n/a"} for number, one in enumerate(simple_rows(4))]
    turned = manifest_for(rows, ids_of(rows)[:2], "flip").apply(layout(rows), columns=ColumnRules(negate=("gain",)))
    assert [one["gain"] for one in turned] == ["-0.5", "-0.5", "n/a", "n/a"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            ColumnRules(leave=("nothing",)),
            "no column 'nothing' to exchange, negate or leave. Further columns there: id",
        ),
        (ColumnRules(swap=(("chosen", "note"),)), "column 'chosen' is part of the pair itself"),
        (ColumnRules(negate=("note",)), "column 'note' holds no number, so it cannot be negated"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(rules: ColumnRules, message: str) -> None:
    for rows in (simple_rows(), Dataset.from_list(simple_rows())):
        manifest = manifest_for(simple_rows(), ids_of(simple_rows())[:2], "flip")
        with pytest.raises(ManifestError, match=message):
            manifest.apply(rows, columns=rules)  # type: ignore[type-var]


def test_rules_on_the_command_line_name_two_columns_each() -> None:
    assert ColumnRules.parse(["a:b"], ["c"], ["d"]) == ColumnRules((("a", "b"),), ("c",), ("d",))
    for text in ("a", "a:", ":b", "a:b:c"):
        with pytest.raises(SettingsError, match="does not name two columns. Write them as FIRST:SECOND"):
            ColumnRules.parse([text], [], [])
    with pytest.raises(SettingsError, match="column 'a' stands in two rules"):
        ColumnRules.parse(["a:b"], ["a"], [])


def test_a_row_that_has_only_one_of_two_columns_is_refused_by_place(tmp_path: Path) -> None:
    rows = with_columns({"score_chosen": 1, "score_rejected": 2})
    del rows[1]["score_rejected"]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    with pytest.raises(ManifestError, match=r"in\.jsonl:2: has column 'score_chosen' but not 'score_rejected'"):
        manifest_for(rows, ids_of(rows)[:2], "flip").apply_file(source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_type_without_a_sign_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    from datasets import Value

    dataset = Dataset.from_list(with_columns({"margin": 3})).cast_column("margin", Value("uint8"))
    manifest = manifest_for(dataset, ids_of(simple_rows())[:1], "flip")
    with pytest.raises(ManifestError, match="column 'margin' is of type uint8, whose sign cannot be turned"):
        manifest.apply(dataset)


@st.composite
def scored_rows(draw: st.DrawFn, output: str) -> list[Row]:
    text = output.startswith("csv")
    number = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False, width=32)
    number = number.map(str) if text else number.map(float)
    missing = st.just("") if text else st.none()
    rows = []
    for n in range(draw(st.integers(1, 5))):
        # A typed column with nothing but None has a type of its own, and cannot be exchanged with one of numbers.
        scores = {
            name: draw(number if n == 0 else number | missing) for name in ("score_chosen", "score_rejected", "margin")
        }
        rows.append({**simple_rows(5)[n], **scores, "declared one": f"a{n}", "declared two": "b"})
    return rows


@pytest.mark.parametrize("output", OUTPUTS)
@FILES
@given(data=st.data())
def test_flipping_twice_is_nothing_also_for_scores_and_margins_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, output: str, data: st.DataObject
) -> None:
    rows = data.draw(scored_rows(output))
    listed = data.draw(st.lists(st.sampled_from(ids_of(rows)), unique=True))
    folder = tmp_path_factory.mktemp("columns")
    name = (lambda stem: stem) if output == "folder" else (lambda stem: f"{stem}.{output}")
    source, turned, back = (folder / name(stem) for stem in ("source", "turned", "back"))
    write_rows(rows, source)
    rules = ColumnRules(swap=(("declared one", "declared two"),))
    manifest = manifest_for(source, listed, "flip")
    report = manifest.apply_file(source, turned, columns=rules)
    assert report.flipped == len(listed)
    for before, after in zip(rows, read_back(turned), strict=True):
        hit = ids_of([before])[0] in listed
        for one, other in (("score_chosen", "score_rejected"), ("declared one", "declared two")):
            assert (after[one], after[other]) == ((before[other], before[one]) if hit else (before[one], before[other]))
        if before["margin"] not in (None, ""):
            assert float(after["margin"]) == float(before["margin"]) * (-1 if hit else 1)
        assert all(after[key] == before[key] for key in ("id", "prompt", "source", "note"))
    manifest.apply_file(turned, back, undo=True, columns=rules)
    assert read_back(back) == rows
    if output == "jsonl":
        assert back.read_bytes() == source.read_bytes()


def test_numbers_in_a_json_line_change_nothing_but_their_sign(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "Q", "chosen": "a", "rejected": "b", "margin":  1.50e-3 , "score_diff": -0}\n',
        '{"prompt": "Q", "chosen": "c", "rejected": "d", "margin": -7, "score_diff": "0.10"}\r\n',
        '{"prompt": "Q", "chosen": "e", "rejected": "f", "margin": null, "score_diff": NaN}',
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(lines), newline="")
    rows = [json.loads(line) for line in lines]
    manifest = manifest_for(rows, ids_of(rows), "flip")
    manifest.apply_file(source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes().decode() == (
        '{"prompt": "Q", "chosen": "b", "rejected": "a", "margin":  -1.50e-3 , "score_diff": -0}\n'
        '{"prompt": "Q", "chosen": "d", "rejected": "c", "margin": 7, "score_diff": "-0.10"}\r\n'
        '{"prompt": "Q", "chosen": "f", "rejected": "e", "margin": null, "score_diff": NaN}'
    )
    manifest.apply_file(tmp_path / "out.jsonl", tmp_path / "back.jsonl", undo=True)
    assert (tmp_path / "back.jsonl").read_bytes() == source.read_bytes()
