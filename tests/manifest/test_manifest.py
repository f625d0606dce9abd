"""A manifest does to a dataset what it lists and nothing else, in every format, and flips can be taken back."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Value
from datasets.utils.logging import enable_progress_bar, is_progress_bar_enabled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.manifest_cases import (
    READINGS,
    Row,
    ids_of,
    manifest_for,
    read_back,
    row,
    simple_rows,
    swapped,
    write_jsonl,
)
from trl_attribution.errors import ManifestError
from trl_attribution.manifest import Manifest
from trl_attribution.manifest.swapping import Turning
from trl_attribution.pairs import PairReader, Reading, rows
from trl_attribution.pairs.rows import open_rows, write_rows

OUTPUTS = ["jsonl", "jsonl.gz", "parquet", "csv", "csv.gz", "folder"]
FILES = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MEMORY = settings(max_examples=60, deadline=None)

_TEXT = st.text(alphabet="ab é漢😀\"\\,;\n\t'{}<", min_size=1, max_size=12).map(lambda text: f"x{text}y")


@st.composite
def cases(draw: st.DrawFn, layouts: list[str] | None = None) -> tuple[str, list[Row], list[str]]:
    """A layout, rows with some pairs repeated or standing both ways round, and the ids that are listed."""
    layout = draw(st.sampled_from(layouts or list(READINGS)))
    triples = draw(st.lists(st.tuples(_TEXT, _TEXT.map("A".__add__), _TEXT.map("B".__add__)), min_size=1, max_size=6))
    chosen = draw(st.lists(st.tuples(st.sampled_from(triples), st.booleans()), min_size=1, max_size=10))
    rows = [
        row(layout, (prompt, second, first) if turned else (prompt, first, second), number)
        for number, ((prompt, first, second), turned) in enumerate(chosen)
    ]
    unique = list(dict.fromkeys(ids_of(rows, READINGS[layout])))
    return layout, rows, draw(st.lists(st.sampled_from(unique), unique=True))


def cannot_be_told_apart(rows: list[Row], listed: list[str], reading: Reading) -> bool:
    """Some listed pair stands repeatedly, and some pair that is not listed is the mirror image of a listed one."""
    counts = Counter(ids_of(rows, reading))
    mirrors = dict(zip(ids_of(rows, reading), ids_of([swapped(r, reading) for r in rows], reading), strict=True))
    repeated = any(counts[pair] > 1 for pair in listed)
    return repeated and any(mirrors[pair] in counts and mirrors[pair] not in listed for pair in listed)


@MEMORY
@given(cases())
def test_a_flip_swaps_the_listed_rows_and_undo_gives_the_dataset_back(case: tuple[str, list[Row], list[str]]) -> None:
    layout, rows, listed = case
    reading = READINGS[layout]
    manifest = manifest_for(rows, listed, "flip", reading)
    expected = [swapped(r, reading) if i in listed else r for r, i in zip(rows, ids_of(rows, reading), strict=True)]

    flipped, report = manifest.apply_with_report(rows)
    assert flipped == expected
    assert [list(r) for r in flipped] == [list(r) for r in rows]
    assert (report.rows_in, report.rows_out, report.filtered) == (len(rows), len(rows), 0)
    assert report.flipped == sum(i in listed for i in ids_of(rows, reading)) == report.pairs + report.duplicates
    assert report.same_dataset
    try:
        assert manifest.apply(flipped, undo=True) == rows
    except ManifestError:
        assert cannot_be_told_apart(rows, listed, reading)


@MEMORY
@given(cases())
def test_a_filter_drops_every_row_of_the_listed_pairs_and_nothing_else(case: tuple[str, list[Row], list[str]]) -> None:
    layout, rows, listed = case
    reading = READINGS[layout]
    kept, report = manifest_for(rows, listed, "filter", reading).apply_with_report(rows)
    dropped = [r for r, i in zip(rows, ids_of(rows, reading), strict=True) if i in listed]
    put_back = iter(kept), iter(dropped)
    assert [next(put_back[i in listed]) for i in ids_of(rows, reading)] == rows
    assert len(kept) + len(dropped) == len(rows) == report.rows_in
    assert (report.rows_out, report.filtered, report.flipped) == (len(kept), len(dropped), 0)
    assert report.duplicates == len(dropped) - len(listed)


@settings(MEMORY, max_examples=25)
@given(cases(), st.sampled_from(["filter", "flip"]))
def test_a_dataset_object_gets_what_a_list_gets_and_keeps_its_types(
    case: tuple[str, list[Row], list[str]], action: str
) -> None:
    layout, rows, listed = case
    manifest = manifest_for(rows, listed, action, READINGS[layout])
    dataset = Dataset.from_list(rows)
    result = manifest.apply(dataset)
    assert isinstance(result, Dataset)
    assert result.to_list() == manifest.apply(rows)
    assert result.features == dataset.features


@pytest.mark.parametrize("output", OUTPUTS)
@FILES
@given(case=st.data())
def test_files_of_every_format_flip_filter_and_come_back(
    tmp_path_factory: pytest.TempPathFactory, output: str, case: st.DataObject
) -> None:
    plain = ["text", "implicit text", "transcripts", "renamed"] if output.startswith("csv") else None
    layout, rows, listed = case.draw(cases(plain))
    reading = READINGS[layout]
    folder = tmp_path_factory.mktemp("files")
    source, flipped, undone, filtered = (folder / _name(stem, output) for stem in ("source", "flip", "undo", "filter"))
    write_rows(rows, source)
    flip = manifest_for(source, listed, "flip", reading)

    flip.apply_file(source, flipped)
    assert read_back(flipped) == flip.apply(rows)
    drop = manifest_for(source, listed, "filter", reading)
    report = drop.apply_file(source, filtered)
    assert report.rows_out == 0 or read_back(filtered) == drop.apply(rows)
    if not cannot_be_told_apart(rows, listed, reading):
        report = flip.apply_file(flipped, undone, undo=True)
        assert report.same_dataset
        assert read_back(undone) == rows
        if source.is_file() and output != "parquet":
            assert undone.read_bytes() == source.read_bytes()


def _name(stem: str, output: str) -> str:
    return stem if output == "folder" else f"{stem}.{output}"


@settings(MEMORY, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), style=st.data())
def test_json_lines_that_are_not_touched_stay_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[str, list[Row], list[str]], style: st.DataObject
) -> None:
    layout, rows, listed = case
    reading = READINGS[layout]
    folder = tmp_path_factory.mktemp("lines")
    lines = [_written_somehow(r, style) for r in rows]
    source, flipped, undone = (folder / f"{stem}.jsonl" for stem in ("source", "flip", "undo"))
    source.write_bytes(b"".join(lines)[: -1 if style.draw(st.booleans()) else None])
    whole = source.read_bytes()

    manifest = manifest_for(source, listed, "flip", reading)
    manifest.apply_file(source, flipped)
    manifest_for(source, listed, "filter", reading).apply_file(source, folder / "filter.jsonl")
    touched = [i in listed for i in ids_of(rows, reading)]
    before, after = whole.splitlines(keepends=True), flipped.read_bytes().splitlines(keepends=True)
    assert [line for line, hit in zip(after, touched, strict=True) if not hit] == [
        line for line, hit in zip(before, touched, strict=True) if not hit
    ]
    assert (folder / "filter.jsonl").read_bytes() == b"".join(
        line for line, hit in zip(before, touched, strict=True) if not hit
    )
    if not cannot_be_told_apart(rows, listed, reading):
        manifest.apply_file(flipped, undone, undo=True)
        assert undone.read_bytes() == whole


def _written_somehow(example: Row, style: st.DataObject) -> bytes:
    separators = style.draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,  ", " :\t")]))
    text = json.dumps(example, ensure_ascii=style.draw(st.booleans()), separators=separators)
    return (style.draw(st.sampled_from(["", " "])) + text).encode() + style.draw(st.sampled_from([b"\n", b" \n"]))


@pytest.mark.parametrize(
    ("line", "swapped_line"),
    [
        (b'{"a":1,"b":2}', b'{"a":2,"b":1}'),
        (
            b'\xef\xbb\xbf{ "b" : "x" , "c": {"a": 3}, "a" :\t[1, 2] }\r\n',
            b'\xef\xbb\xbf{ "b" : [1, 2] , "c": {"a": 3}, "a" :\t"x" }\r\n',
        ),
        (b'{"\\u0061": "\\"}{", "b": -1.50e+3}', b'{"\\u0061": -1.50e+3, "b": "\\"}{"}'),
        (b'{"a": 0, "a": null, "b": true}', b'{"a": 0, "a": true, "b": null}'),
    ],
)
def test_swapping_values_in_a_line_moves_only_their_bytes(line: bytes, swapped_line: bytes) -> None:
    turning = Turning((("a", "b"),), ())
    turned = turning.row(rows.Row(0, "row 0", json.loads(line.decode("utf-8-sig")), line))
    assert turned.raw == swapped_line
    assert turning.row(turned).raw == line


def test_a_saved_manifest_loads_to_the_same_and_starts_with_its_header(tmp_path: Path) -> None:
    rows = simple_rows()
    manifest = manifest_for(rows, ids_of(rows)[1:3], "flip", keep=ids_of(rows)[:1])
    manifest.save(tmp_path / "deep" / "flip.jsonl")
    lines = (tmp_path / "deep" / "flip.jsonl").read_text().splitlines()
    header, first = json.loads(lines[0]), json.loads(lines[1])

    assert Manifest.load(tmp_path / "deep" / "flip.jsonl") == manifest
    assert list(header)[:4] == ["format", "version", "action", "dataset_fingerprint"]
    assert header["counts"] == {"decisions": 3, "flip": 2, "keep": 1}
    assert header["reading"]["chosen_column"] == "chosen"
    assert list(first) == ["pair_id", "row", "action", "probe", "score", "rank", "q_value"]
    assert first["row"] == 1


def test_the_input_is_left_as_it_was(tmp_path: Path) -> None:
    rows = simple_rows()
    source = write_jsonl(tmp_path / "source.jsonl", rows)
    dataset = Dataset.from_list(rows)
    manifest = manifest_for(rows, ids_of(rows)[:2], "flip")
    manifest.apply_file(source, tmp_path / "out.jsonl")
    manifest.apply(rows)
    manifest.apply(dataset)
    assert read_back(source) == rows == simple_rows() == dataset.to_list()


def test_duplicates_of_a_listed_pair_are_all_acted_on_and_counted(tmp_path: Path) -> None:
    first, second, third = simple_rows(3)
    rows = [first, second, {**first, "id": "again"}, third, {**first, "id": "and again"}]
    report = manifest_for(rows, ids_of([first, third]), "filter").apply_file(
        write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    )
    assert read_back(tmp_path / "out.jsonl") == [second]
    assert (report.filtered, report.pairs, report.duplicates, report.rows_out) == (4, 2, 2, 1)


def test_pairs_listed_to_be_kept_stay_but_must_be_there() -> None:
    rows = simple_rows(4)
    manifest = manifest_for(rows, ids_of(rows)[:1], "flip", keep=ids_of(rows)[1:2])
    flipped = manifest.apply(rows)
    assert flipped[1:] == rows[1:]
    assert manifest.apply(flipped, undo=True) == rows
    with pytest.raises(ManifestError, match="lacks 1 of the 2 pairs"):
        manifest.apply([rows[0], *rows[2:]])


def test_a_shuffled_dataset_is_taken_and_reported_as_another(tmp_path: Path) -> None:
    rows = simple_rows()
    manifest = manifest_for(rows, ids_of(rows)[2:4], "filter")
    kept, report = manifest.apply_with_report(rows[::-1])
    assert kept == [*rows[4:][::-1], *rows[:2][::-1]]
    assert not report.same_dataset


def test_missing_pairs_can_be_allowed_and_are_counted() -> None:
    rows = simple_rows()
    manifest = manifest_for(rows, ids_of(rows)[:3], "flip")
    flipped, report = manifest.apply_with_report(rows[2:], allow_missing=True)
    assert flipped == [swapped(rows[2], Reading()), *rows[3:]]
    assert (report.missing, report.pairs, report.flipped) == (2, 1, 1)


def test_a_pair_that_stood_both_ways_round_is_told_apart_by_its_row() -> None:
    rows = simple_rows(3)
    rows.insert(1, {**swapped(rows[0], Reading()), "id": "mirror"})
    manifest = manifest_for(rows, ids_of(rows)[:1], "flip")
    flipped, report = manifest.apply_with_report(rows)
    assert report.opposed == 1
    assert ids_of(flipped)[0] == ids_of(flipped)[1]
    assert manifest.apply(flipped, undo=True) == rows


def test_an_undo_that_cannot_be_exact_is_refused() -> None:
    rows = simple_rows(2)
    rows += [{**swapped(rows[0], Reading()), "id": "mirror"}, {**rows[0], "id": "again"}]
    manifest = manifest_for(rows, ids_of(rows)[:1], "flip")
    with pytest.raises(ManifestError, match="does not give back the dataset that was audited"):
        manifest.apply(manifest.apply(rows), undo=True)


def test_rows_that_are_no_pairs_are_carried_over_when_the_audit_skipped_them(tmp_path: Path) -> None:
    rows = simple_rows(4)
    rows[1] = {**rows[1], "chosen": ""}
    rows[3] = {**rows[3], "rejected": rows[3]["chosen"]}
    reading = Reading(on_bad_row="skip")
    manifest = manifest_for(rows, ids_of([rows[2]]), "flip", reading)
    report = manifest.apply_file(write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert read_back(tmp_path / "out.jsonl") == [*rows[:2], swapped(rows[2], reading), rows[3]]
    assert (report.rows_in, report.rows_out, report.unreadable) == (4, 4, 2)
    assert manifest.apply(read_back(tmp_path / "out.jsonl"), undo=True) == rows


def test_one_format_can_be_written_as_another(tmp_path: Path) -> None:
    rows = simple_rows()
    manifest = manifest_for(rows, ids_of(rows)[1:4], "flip")
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    for name in ("out.parquet", "out.csv", "saved", "out.jsonl.gz"):
        manifest.apply_file(source, tmp_path / name)
        assert read_back(tmp_path / name) == manifest.apply(rows)
        manifest.apply_file(tmp_path / name, tmp_path / f"{name}.jsonl", undo=True)
        assert read_back(tmp_path / f"{name}.jsonl") == rows


def test_the_audited_file_may_have_other_column_names_than_the_one_cleaned(tmp_path: Path) -> None:
    rows = simple_rows()
    renamed = [{"q": r["prompt"], "yes": r["chosen"], "no": r["rejected"]} for r in rows]
    manifest = manifest_for(rows, ids_of(rows)[:2], "flip")
    reading = Reading(prompt_column="q", chosen_column="yes", rejected_column="no")
    manifest.apply_file(write_jsonl(tmp_path / "in.jsonl", renamed), tmp_path / "out.jsonl", reading=reading)
    assert read_back(tmp_path / "out.jsonl") == [
        {**r, "yes": r["no"], "no": r["yes"]} if n < 2 else r for n, r in enumerate(renamed)
    ]


@pytest.mark.parametrize("action", ["filter", "flip"])
def test_a_dataset_keeps_its_format_its_order_and_its_column_types(action: str) -> None:
    rows = [{**r, "weight": number / 2, "tags": ["a", None]} for number, r in enumerate(simple_rows(2500))]
    dataset = Dataset.from_list(rows).cast_column("weight", Value("float32")).shuffle(seed=1).select(range(2000))
    dataset = dataset.with_format("numpy", columns=["weight"])
    shuffled: list[Row] = dataset.with_format(None).to_list()
    listed = ids_of(shuffled)[::3]
    enable_progress_bar()
    result = manifest_for(shuffled, listed, action).apply(dataset)
    assert result.format == dataset.format
    assert result.features == dataset.features
    assert result.with_format(None).to_list() == manifest_for(shuffled, listed, action).apply(shuffled)
    assert is_progress_bar_enabled()


def test_nothing_listed_changes_nothing(tmp_path: Path) -> None:
    rows = simple_rows()
    manifest = manifest_for(rows, [], "flip")
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    manifest.apply_file(source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == source.read_bytes()
    dataset: Any = Dataset.from_list(rows)
    assert manifest.apply(dataset).to_list() == rows


def test_every_row_filtered_leaves_an_empty_dataset_of_the_same_columns(tmp_path: Path) -> None:
    rows = simple_rows()
    dataset = Dataset.from_list(rows, features=Features({name: Value("string") for name in rows[0]}))
    manifest = manifest_for(rows, ids_of(rows), "filter")
    assert manifest.apply(dataset).column_names == dataset.column_names
    dataset.to_parquet(str(tmp_path / "in.parquet"))
    manifest.apply_file(tmp_path / "in.parquet", tmp_path / "out.parquet")
    empty = open_rows(tmp_path / "out.parquet")
    assert (empty.num_rows, empty.features) == (0, dataset.features)


def test_real_transcripts_flip_and_come_back_byte_for_byte(tmp_path: Path, hh_rlhf: Path) -> None:
    reading = Reading(on_bad_row="skip")
    pairs = list(PairReader(hh_rlhf, reading))
    listed = list(dict.fromkeys(pair.pair_id for pair in pairs[::5]))
    manifest = manifest_for(hh_rlhf, listed, "flip", reading)
    report = manifest.apply_file(hh_rlhf, tmp_path / "flip.jsonl")
    manifest.apply_file(tmp_path / "flip.jsonl", tmp_path / "undo.jsonl", undo=True)
    original = gzip.decompress(hh_rlhf.read_bytes())
    changed = zip(original.splitlines(), (tmp_path / "flip.jsonl").read_bytes().splitlines(), strict=True)
    assert report.rows_in == 2312
    assert sum(before != after for before, after in changed) == report.flipped == report.pairs + report.duplicates
    assert (tmp_path / "undo.jsonl").read_bytes() == original
