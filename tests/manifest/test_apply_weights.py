"""Weights in place of filtering: every row stays and gets a column, and taking it out again gives back the dataset."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from tests.manifest_cases import ids_of, manifest_for, read_back, simple_rows, write_jsonl
from trl_attribution.errors import ManifestError, SettingsError
from trl_attribution.manifest import Manifest
from trl_attribution.manifest.config import ApplyOptions
from trl_attribution.manifest.weights import pair_weights, score_weights
from trl_attribution.pairs import Reading
from trl_attribution.pairs.rows import write_rows

ROWS = simple_rows(5)
SCORES = {1: 0.5, 2: 0.3, 4: 0.2}
WEIGHTS = [1.0, 0.0, 0.5, 1.0, 1.0]


def scored(scores: dict[int, float | None] | dict[int, float] = SCORES, **header: Any) -> Manifest:
    """A manifest that filters those rows of ``ROWS``, with scores."""
    listed = manifest_for(ROWS, ids_of([ROWS[number] for number in scores]), "filter")
    decisions = [
        dataclasses.replace(one, score=score) for one, score in zip(listed.decisions, scores.values(), strict=True)
    ]
    return Manifest(dataclasses.replace(listed.header, **header), tuple(decisions))


def test_a_weight_falls_with_the_score_from_1_at_the_lowest_flagged_to_the_floor_at_twice_that() -> None:
    assert score_weights([0.1, 0.15, 0.2, 0.9]) == [1.0, 0.5, 0.0, 0.0]
    assert score_weights([0.1, 0.15, 0.2, 0.9], floor=0.25) == [1.0, 0.5, 0.25, 0.25]
    assert score_weights([0.0, -0.3, 0.1, 0.15]) == [1.0, 1.0, 1.0, 0.5]
    scores = [number / 97 for number in range(1, 40)]
    weights = score_weights(scores)
    assert weights == sorted(weights, reverse=True)


def test_each_probe_has_a_threshold_of_its_own_and_what_a_person_decided_weighs_least() -> None:
    manifest = scored()
    first, second, third = manifest.decisions
    mixed = [first, dataclasses.replace(second, probe="lies"), dataclasses.replace(third, score=None, reviewer="ann")]
    mixed += [dataclasses.replace(first, pair_id="0" * 32, score=0.25)]
    weights = pair_weights(Manifest(manifest.header, tuple(mixed)), floor=0.1)
    assert weights == {first.pair_id: 0.1, "0" * 32: 1.0, second.pair_id: 1.0, third.pair_id: 0.1}


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data.csv", "data.parquet", "data"])
@pytest.mark.parametrize("out", ["out.jsonl", "out.csv", "out.parquet", "out"])
def test_every_row_gets_its_weight_is_checked_and_loses_it_again(name: str, out: str, tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path / name)
    report = scored().apply_file(tmp_path / name, tmp_path / out, action="weight")
    assert (report.rows_in, report.rows_out, report.filtered, report.weighed, report.weighed_as) == (5, 5, 0, 3, 1.5)
    found = read_back(tmp_path / out)
    assert [float(row["weight"]) for row in found] == WEIGHTS
    assert [{column: value for column, value in row.items() if column != "weight"} for row in found] == ROWS
    assert scored().check_file(tmp_path / name, tmp_path / out, action="weight").weighed == 3
    with pytest.raises(ManifestError, match="column 'weight' differs"):
        scored().check_file(tmp_path / name, tmp_path / out, action="weight", weight_floor=0.2)
    back = tmp_path / f"back-{name}"
    scored().apply_file(tmp_path / out, back, action="weight", undo=True)
    assert read_back(back) == ROWS
    assert scored().check_file(tmp_path / out, back, action="weight", undo=True).weight_column == "weight"


def test_taking_weights_out_of_json_lines_gives_back_every_byte(tmp_path: Path) -> None:
    lines = [json.dumps(row, separators=(",", ":"), ensure_ascii=number % 2 == 0) for number, row in enumerate(ROWS)]
    lines[3] = lines[3].replace("}", " \t}  ").replace("Answer", "\\u0041nswer")
    given = "\r\n".join(lines)  # without a newline at the end
    (tmp_path / "data.jsonl").write_bytes(given.encode())
    scored().apply_file(tmp_path / "data.jsonl", tmp_path / "out.jsonl", action="weight", weight_column='say, "so"')
    assert (tmp_path / "out.jsonl").read_bytes().count(b'"say, \\"so\\"": 1.0}') == 3
    undone = dict(action="weight", undo=True, weight_column='say, "so"')
    scored().apply_file(tmp_path / "out.jsonl", tmp_path / "back.jsonl", **undone)  # type: ignore[arg-type]
    assert (tmp_path / "back.jsonl").read_bytes() == given.encode()


def test_a_column_that_was_moved_since_is_taken_out_too(tmp_path: Path) -> None:
    moved = [{"weight": weight, **row} for weight, row in zip(WEIGHTS, ROWS, strict=True)]
    source = write_jsonl(tmp_path / "moved.jsonl", moved)
    scored().apply_file(source, tmp_path / "back.jsonl", action="weight", undo=True)
    assert read_back(tmp_path / "back.jsonl") == ROWS


def test_in_memory_too(tmp_path: Path) -> None:
    manifest = scored()
    rows = manifest.apply(ROWS, action="weight", weight_floor=0.2)
    assert [row["weight"] for row in rows] == [1.0, 0.2, 0.5, 1.0, 1.0]
    dataset = Dataset.from_list(ROWS)
    weighed = manifest.apply(dataset, action="weight")
    assert weighed["weight"][:] == WEIGHTS and weighed.features["weight"].dtype == "float64"
    assert manifest.apply(weighed, action="weight", undo=True).to_list() == ROWS
    assert manifest.apply(manifest.apply(ROWS, action="weight"), action="weight", undo=True) == ROWS
    for again in (weighed, manifest.apply(ROWS, action="weight")):
        with pytest.raises(ManifestError, match="row 0: has a column 'weight' already"):
            manifest.apply(again, action="weight")
        with pytest.raises(ManifestError, match=r"row 1: column 'weight' holds 0\.0, not the weight 0\.1"):
            manifest.apply(again, action="weight", weight_floor=0.1, undo=True)
    for other in (ROWS, [{**row, "weight": "high"} for row in ROWS], Dataset.from_list(ROWS)):
        with pytest.raises(ManifestError, match=r"row 0: column 'weight' holds (None|'high'), not the weight 1\.0"):
            manifest.apply(other, action="weight", undo=True)


def test_folders_and_splits_keep_their_layout(tmp_path: Path) -> None:
    (tmp_path / "data" / "more").mkdir(parents=True)
    write_jsonl(tmp_path / "data" / "a.jsonl", ROWS[:2])
    write_jsonl(tmp_path / "data" / "more" / "b.jsonl", ROWS[2:])
    (tmp_path / "data" / "notes.txt").write_text("as it is")
    report = scored().apply_file(tmp_path / "data", tmp_path / "out", action="weight")
    assert (report.files_rewritten, report.files_copied) == (2, 1)
    assert [row["weight"] for row in read_back(tmp_path / "out" / "more" / "b.jsonl")] == WEIGHTS[2:]
    assert scored().check_file(tmp_path / "data", tmp_path / "out", action="weight").weighed == 3
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS)).save_to_disk(str(tmp_path / "splits"))
    manifest = scored(reading=dataclasses.asdict(dataclasses.replace(scored().reading, split="train")))
    manifest.apply_file(tmp_path / "splits", tmp_path / "weighed", action="weight")
    found = load_from_disk(str(tmp_path / "weighed"))
    assert found["train"]["weight"][:] == WEIGHTS and "weight" not in found["test"].column_names


def test_the_card_says_what_was_weighed_and_taking_it_out_takes_that_out(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "data.jsonl", ROWS)
    scored().apply_file(source, tmp_path / "out.jsonl", action="weight", card=True)
    card = (tmp_path / "out.jsonl.card.md").read_text()
    assert "3 rows by the score, counting as much as 1.5, all others 1: column weight" in card.replace("\\", "")
    assert "| source | rows before | left out | weighed |" in card and "| part 0 | 3 | 0 | 2 |" in card
    scored().apply_file(tmp_path / "out.jsonl", tmp_path / "back.jsonl", action="weight", undo=True, card=True)
    assert "weighed" not in (tmp_path / "back.jsonl.card.md").read_text()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (manifest_for(ROWS, ids_of(ROWS[:2]), "flip"), "the manifest flips pairs"),
        (scored({1: 0.4, 2: 0.4}), "all 2 pairs that the manifest filters have one score, or none above 0"),
        (scored({1: -0.4, 2: -0.2}), "each would keep its full weight. Filter them instead"),
    ],
)
def test_what_leaves_nothing_to_weigh_is_refused(manifest: Manifest, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        manifest.apply(ROWS, action="weight")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "drop"}, "choose listed, weight"),
        ({"action": "weight", "weight_floor": 1.0}, "--weight-floor: 1.0 is out of range"),
        ({"action": "weight", "weight_column": ""}, "a column needs a name"),
        ({"action": "weight", "zero_advantages": True}, "contradicts --action weight"),
        ({"weight_floor": 0.5}, "only say something with --action weight"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ApplyOptions(**settings)


def test_rows_that_are_no_pairs_get_a_weight_and_lose_it_again_byte_for_byte(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", ROWS)
    text = (tmp_path / "data.jsonl").read_text() + '{}\n{ }\n{"note": "}"}\n'
    (tmp_path / "data.jsonl").write_text(text)
    manifest, reading = scored(), Reading(on_bad_row="skip")
    manifest.apply_file(tmp_path / "data.jsonl", tmp_path / "out.jsonl", reading=reading, action="weight")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["weight"] for row in found] == [*WEIGHTS, 1.0, 1.0, 1.0] and found[5] == found[6] == {"weight": 1.0}
    manifest.apply_file(tmp_path / "out.jsonl", tmp_path / "back.jsonl", reading=reading, action="weight", undo=True)
    assert (tmp_path / "back.jsonl").read_text() == text
