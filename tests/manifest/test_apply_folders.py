"""Folders and datasets of several splits come out as what they were; links and names that lead out of them do not."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.manifest_cases import Row, ids_of, manifest_for, read_back, row, simple_rows, swapped, write_jsonl
from trl_attribution.errors import AttributionError, DataError, ManifestError
from trl_attribution.pairs import Reading
from trl_attribution.pairs.rows import open_rows, write_rows

FILES = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROWS = simple_rows(9)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three JSONL files at two depths, with a card, a script and a gzip that JSON tools would write otherwise."""
    place = tmp_path / "data"
    (place / "deep" / "er").mkdir(parents=True)
    write_jsonl(place / "a.jsonl", ROWS[:3])
    (place / "deep" / "b.jsonl").write_bytes(b"".join(json.dumps(row).encode() + b" \r\n" for row in ROWS[3:6]))
    whole = b"".join(json.dumps(row, indent=None).encode() + b"\n" for row in ROWS[6:])
    (place / "deep" / "er" / "c.jsonl.gz").write_bytes(gzip.compress(whole, 1))
    (place / "README.md").write_bytes(b"---\nlicense: mit\n---\r\n# Mine\r\n")
    (place / "make.py").write_bytes(b"\x00not text\xff")
    (place / ".gitattributes").write_bytes(b"*.gz lfs\n")
    return place


def test_a_folder_becomes_a_folder_of_the_same_files_of_which_only_touched_ones_change(
    folder: Path, tmp_path: Path
) -> None:
    before = contents(folder)
    manifest = manifest_for(folder, ids_of(ROWS)[4:5], "filter")
    report = manifest.apply_file(folder, tmp_path / "out")
    after = contents(tmp_path / "out")
    lines = before["deep/b.jsonl"].splitlines(keepends=True)
    assert after == {**before, "deep/b.jsonl": lines[0] + lines[2]}
    assert (report.files_rewritten, report.files_copied, report.files_left_out) == (1, 5, 0)
    assert contents(folder) == before
    assert manifest.check_file(folder, tmp_path / "out").filtered == 1


def test_a_flip_in_a_zipped_file_of_a_folder_is_zipped_again(folder: Path, tmp_path: Path) -> None:
    manifest = manifest_for(folder, ids_of(ROWS)[8:], "flip")
    manifest.apply_file(folder, tmp_path / "out", card=True)
    expected = [*ROWS[:8], swapped(ROWS[8], Reading())]
    assert read_back(tmp_path / "out") == expected
    assert (tmp_path / "out" / "deep" / "er" / "c.jsonl.gz").read_bytes()[:2] == b"\x1f\x8b"
    card = (tmp_path / "out" / "README.md").read_bytes()
    assert card.startswith((folder / "README.md").read_bytes().rstrip(b"\n"))
    assert manifest.digest.encode() in card
    manifest.apply_file(tmp_path / "out", tmp_path / "back", undo=True, card=True)
    assert read_back(tmp_path / "back") == ROWS
    assert manifest.digest.encode() not in (tmp_path / "back" / "README.md").read_bytes()


def test_a_csv_file_of_another_hand_keeps_its_untouched_lines(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lines = [b'prompt,chosen,"rejected"', b'"Q, 1",a,b', b'"Q\n2","c",d', b"Q3,e,f"]
    (tmp_path / "data" / "a.csv").write_bytes(b"\n".join(lines))
    rows = read_back(tmp_path / "data")
    manifest_for(rows, ids_of(rows)[1:2], "flip").apply_file(tmp_path / "data", tmp_path / "out")
    assert (tmp_path / "out" / "a.csv").read_bytes() == b"\n".join([*lines[:2], b'"Q\n2",d,c', lines[3]])


def test_applying_takes_the_same_memory_for_many_rows_as_for_few(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        rows = ({**row, "note": "x" * 20_000} for row in map(one_row, range(count)))
        write_rows(rows, tmp_path / "in.jsonl")
        tracemalloc.start()
        try:
            report = manifest.apply_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
            assert (report.rows_in, report.flipped) == (count, 3)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def one_row(number: int) -> Row:
        return row("text", (f"Question {number}?", f"Answer {number}.", f"No, {number}."), number)

    manifest = manifest_for(ROWS, ids_of(ROWS)[:3], "flip")
    peak(10)  # the first call of a process also imports: up to 20 MB
    # Of 60 MB more, what datasets reads at a time may be held twice longer: 10 MB, until garbage is collected.
    assert peak(4000) < 2 * peak(1000)


def test_a_folder_can_be_written_as_one_file(folder: Path, tmp_path: Path) -> None:
    manifest_for(folder, ids_of(ROWS)[:2], "filter").apply_file(folder, tmp_path / "all.jsonl")
    assert read_back(tmp_path / "all.jsonl") == ROWS[2:]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
@settings(FILES, max_examples=6)
@given(data=st.data())
def test_a_folder_of_any_format_holds_what_the_rows_in_one_list_become(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    place = tmp_path_factory.mktemp("folders")
    cuts = sorted(data.draw(st.lists(st.integers(1, 8), max_size=2, unique=True)))
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, 9], strict=True)):
        write_rows(ROWS[start:end], place / "in" / f"part-{number}" / f"{number}.{kind}")
    actions = data.draw(st.dictionaries(st.integers(0, 8), st.sampled_from(["filter", "flip"])))
    listed = {act: [ids_of(ROWS)[row] for row in actions if actions[row] == act] for act in ("filter", "flip")}
    expected = ROWS
    source = place / "in"
    for act in ("flip", "filter"):
        target = place / act
        before = contents(source)
        manifest = manifest_for(source, listed[act], act)
        expected = manifest.apply(expected)
        report = manifest.apply_file(source, target)
        after = contents(target)
        assert after.keys() == before.keys()
        assert sum(after[name] != before[name] for name in before) == report.files_rewritten
        assert read_back(target) == expected
        assert manifest.check_file(source, target).rows_out == report.rows_out
        source = target


def test_files_of_the_other_splits_of_a_folder_are_carried_over(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", ROWS[:4])
    (tmp_path / "data" / "test.jsonl").write_bytes(b'{"anything": 1}\n')
    reading = Reading(split="train")
    manifest_for(ROWS[:4], ids_of(ROWS)[:1], "filter", reading).apply_file(
        tmp_path / "data", tmp_path / "out", reading=reading
    )
    assert read_back(tmp_path / "out" / "train.jsonl") == ROWS[1:4]
    assert (tmp_path / "out" / "test.jsonl").read_bytes() == b'{"anything": 1}\n'


def test_a_folder_of_which_one_split_was_cleaned_is_checked_in_that_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", ROWS[:4])
    write_jsonl(tmp_path / "data" / "test.jsonl", ROWS[4:])
    manifest = manifest_for(ROWS[:4], ids_of(ROWS)[:1], "filter", Reading(split="train"))
    manifest.apply_file(tmp_path / "data", tmp_path / "out")
    assert manifest.check_file(tmp_path / "data", tmp_path / "out").filtered == 1
    write_jsonl(tmp_path / "out" / "test.jsonl", ROWS[5:])
    with pytest.raises(ManifestError, match=r"out/test\.jsonl: differs"):
        manifest.check_file(tmp_path / "data", tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------ harm


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place, out: (place / "x.txt").symlink_to(out), "x.txt: a link that leads out of the folder"),
        (lambda place, out: (place / "x.jsonl").symlink_to(out), "x.jsonl: a link that leads out of the folder"),
        (lambda place, _: (place / "up").symlink_to(".."), "up: a link that leads out of the folder"),
        (lambda place, _: (place / "up").symlink_to("../data/../secret.jsonl"), "up: a link that leads out"),
        (lambda place, _: (place / "gone.md").symlink_to("nowhere"), "gone.md: a link to nothing"),
    ],
)
def test_a_link_out_of_a_folder_is_refused_and_nothing_of_it_is_copied(
    folder: Path, tmp_path: Path, make: Callable[[Path, Path], None], message: str
) -> None:
    write_jsonl(tmp_path / "secret.jsonl", [{**ROWS[0], "prompt": "the secret"}])
    manifest = manifest_for(folder, ids_of(ROWS)[:1], "filter")
    make(folder, tmp_path / "secret.jsonl")
    with pytest.raises(ManifestError, match=message):
        manifest.apply_file(folder, tmp_path / "out", allow_missing=True)
    assert not (tmp_path / "out").exists()


def test_links_inside_a_folder_become_files_and_what_is_no_file_is_counted(folder: Path, tmp_path: Path) -> None:
    (folder / "copy.md").symlink_to("README.md")
    (folder / "again").symlink_to("deep")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("[remote]")
    os.mkfifo(folder / "pipe")
    report = manifest_for(ROWS, ids_of(ROWS)[:1], "filter").apply_file(folder, tmp_path / "out")
    copied = tmp_path / "out" / "copy.md"
    assert copied.is_file() and not copied.is_symlink()
    assert not any((tmp_path / "out" / name).exists() for name in ("again", ".git", "pipe"))
    assert report.files_left_out == 3


@pytest.mark.parametrize(
    "name", ["-rf.jsonl", "a\tb.jsonl", "\x1b[31m.jsonl", "$(id).jsonl", "a..jsonl", "%2e%2e.jsonl"]
)
def test_strange_file_names_stay_what_they_are_and_where_they_are(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / name, ROWS)
    manifest_for(ROWS, ids_of(ROWS)[:1], "flip").apply_file(tmp_path / "data", tmp_path / "out", card=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([name, "README.md"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


@pytest.mark.parametrize("split", ["../evil", "/tmp/evil", "..", "a/b", "a\\b", "", "\x1b[1m"])
def test_a_saved_dataset_whose_splits_lead_out_of_it_is_refused(tmp_path: Path, split: str) -> None:
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "in"))
    (tmp_path / "evil").symlink_to(tmp_path / "in" / "train")
    (tmp_path / "in" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", split]}))
    with pytest.raises(DataError, match="is no name of a split. Save the dataset again") as refused:
        open_rows(tmp_path / "in", "train")
    assert "\x1b" not in str(refused.value)


def test_a_saved_dataset_whose_data_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "other"))
    Dataset.from_list(ROWS[:1]).save_to_disk(str(tmp_path / "in"))
    state = json.loads((tmp_path / "in" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../other/data-00000-of-00001.arrow"}]
    (tmp_path / "in" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="is not a file of this folder"):
        open_rows(tmp_path / "in")


def test_a_row_as_large_as_a_book_is_carried_through(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "note": "x" * 3_000_000}, *ROWS[1:3], {**ROWS[3], "deep": json.loads("[" * 20 + "]" * 20)}]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    manifest_for(rows, ids_of(rows)[:1], "flip").apply_file(source, tmp_path / "out.jsonl", card=True)
    assert read_back(tmp_path / "out.jsonl") == [swapped(rows[0], Reading()), *rows[1:]]
    assert len((tmp_path / "out.jsonl.card.md").read_text()) < 5000


# ---------------------------------------------------------------------------------------------------------- splits


def saved_splits(place: Path) -> Path:
    splits = {"train": Dataset.from_list(ROWS[:6]), "test": Dataset.from_list(ROWS[6:])}
    DatasetDict(splits).save_to_disk(str(place))
    return place


def test_a_dataset_of_several_splits_comes_out_with_all_of_them(tmp_path: Path) -> None:
    source = saved_splits(tmp_path / "in")
    reading = Reading(split="train")
    manifest = manifest_for(ROWS[:6], ids_of(ROWS)[:2], "filter", reading)
    report = manifest.apply_file(source, tmp_path / "out", reading=reading, card=True)
    again = load_from_disk(str(tmp_path / "out"))
    assert {name: again[name].to_list() for name in again} == {"train": ROWS[2:6], "test": ROWS[6:]}
    assert again["train"].features == load_from_disk(str(source))["train"].features
    assert (report.rows_in, report.rows_out, report.other_splits) == (6, 4, {"test": 3})
    assert "test (3 rows)" in (tmp_path / "out" / "README.md").read_text()
    assert manifest.check_file(source, tmp_path / "out", reading=reading).filtered == 2
    second = manifest_for(ROWS[6:], ids_of(ROWS)[8:], "flip", Reading(split="test"))
    second.apply_file(tmp_path / "out", tmp_path / "both")
    both = load_from_disk(str(tmp_path / "both"))
    assert both["test"].to_list() == [*ROWS[6:8], swapped(ROWS[8], Reading())]
    card = tmp_path / "both" / "README.md"
    assert not card.exists()


def test_a_single_file_holds_the_audited_split_and_the_others_are_named(tmp_path: Path) -> None:
    reading = Reading(split="train")
    manifest = manifest_for(ROWS[:6], ids_of(ROWS)[:2], "filter", reading)
    report = manifest.apply_file(saved_splits(tmp_path / "in"), tmp_path / "out.jsonl", reading=reading)
    assert read_back(tmp_path / "out.jsonl") == ROWS[2:6]
    assert (report.splits_left_out, report.other_splits) == (("test",), {})


def test_a_split_emptied_by_a_filter_is_still_a_split(tmp_path: Path) -> None:
    reading = Reading(split="train")
    manifest = manifest_for(ROWS[:6], ids_of(ROWS)[:6], "filter", reading)
    manifest.apply_file(saved_splits(tmp_path / "in"), tmp_path / "out", reading=reading)
    again = load_from_disk(str(tmp_path / "out"))
    assert {name: len(rows) for name, rows in again.items()} == {"train": 0, "test": 3}
    assert again["train"].column_names == again["test"].column_names


# ----------------------------------------------------------------------------------------------------------- check

Change = Callable[[list[Row]], list[Row]]


@pytest.mark.parametrize("output", ["jsonl", "parquet", "csv", "folder"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows, None),
        (
            lambda rows: [*rows[:3], {**rows[3], "note": "other"}, *rows[4:]],
            "row 3, column 'note' differs .*'other' inst",
        ),
        (lambda rows: rows[:-1], r"ends after 6 rows, where the manifest leaves more: the next is .*in\.jsonl:9"),
        (lambda rows: [*rows, ROWS[0]], "row 7 is not in what the manifest makes of the input"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "row 0, column 'id' differs"),
        (
            lambda rows: [{**row, "new": "x"} for row in rows],
            "row 0, column 'new' differs .*'x' instead of (nothing|'')",
        ),
    ],
)
def test_a_result_is_told_from_anything_else_by_its_first_difference(
    tmp_path: Path, output: str, change: Change, message: str | None
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ROWS)
    manifest = manifest_for(ROWS, ids_of(ROWS)[:2], "filter")
    target = tmp_path / ("out" if output == "folder" else f"out.{output}")
    manifest.apply_file(source, target)
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    write_rows(change(ROWS[2:]), target)
    if message is None:
        assert manifest.check_file(source, target).filtered == 2
        return
    with pytest.raises(ManifestError, match=message):
        manifest.check_file(source, target)


def test_a_flip_that_was_left_out_or_done_to_another_row_is_found(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ROWS)
    manifest = manifest_for(ROWS, ids_of(ROWS)[4:5], "flip")
    with pytest.raises(ManifestError, match="row 4, column 'chosen' differs"):
        manifest.check_file(source, source)
    manifest.apply_file(source, tmp_path / "out.csv")
    assert manifest.check_file(source, tmp_path / "out.csv").flipped == 1


def test_a_folder_with_another_file_or_a_changed_one_is_no_result(folder: Path, tmp_path: Path) -> None:
    manifest = manifest_for(folder, ids_of(ROWS)[4:5], "filter")
    manifest.apply_file(folder, tmp_path / "out", card=True)
    manifest.check_file(folder, tmp_path / "out")
    (tmp_path / "out" / "make.py").write_bytes(b"changed")
    with pytest.raises(ManifestError, match="make.py: differs from"):
        manifest.check_file(folder, tmp_path / "out")
    (tmp_path / "out" / "make.py").unlink()
    with pytest.raises(ManifestError, match="lacks the file 'make.py' of the input"):
        manifest.check_file(folder, tmp_path / "out")


def test_another_split_that_changed_is_found(tmp_path: Path) -> None:
    source = saved_splits(tmp_path / "in")
    reading = Reading(split="train")
    manifest = manifest_for(ROWS[:6], ids_of(ROWS)[:2], "filter", reading)
    splits = {"train": Dataset.from_list(ROWS[2:6]), "test": Dataset.from_list(ROWS[7:])}
    DatasetDict(splits).save_to_disk(str(tmp_path / "out"))
    with pytest.raises(AttributionError, match=r"out \(test\) row 0: row 0, column 'id' differs"):
        manifest.check_file(source, tmp_path / "out", reading=reading)
