"""Which lines a branch adds to a dataset in git, and that nothing in a repository hides rows from the gate."""

from __future__ import annotations

import gzip
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.git_repository import Repository
from trl_attribution.errors import DataError, SettingsError
from trl_attribution.gate.rows import changes
from trl_attribution.gate.rows.changes import ChangedLines, changed_lines


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """With ``data/a.jsonl`` of three lines on ``main``; the working directory is its top."""
    made = Repository(tmp_path / "repo")
    made.write("data/a.jsonl", "one", "two", "three")
    made.branch()
    monkeypatch.chdir(made.path)
    return made


def by_name(found: ChangedLines, top: Path) -> dict[str, list[int] | None]:
    return {
        os.path.relpath(file, top): None if lines is None else [number for part in lines for number in part]
        for file, lines in found.files.items()
    }


def changed(repository: Repository, path: str = "data", base: str = "main") -> dict[str, list[int] | None]:
    return by_name(changed_lines(path, base), repository.path)


def test_added_and_changed_lines_are_found_by_number(repository: Repository) -> None:
    repository.write("data/a.jsonl", "one", "TWO", "three", "four", "five")
    assert changed(repository) == {"data/a.jsonl": [2, 4, 5]}
    repository.commit()
    assert changed(repository) == {"data/a.jsonl": [2, 4, 5]}


def test_a_branch_that_changes_nothing_says_so(repository: Repository) -> None:
    repository.write("README.md", "unrelated")
    found = changed_lines("data", "main")
    assert found.files == {}
    assert found.notes == (f"nothing in data differs from main (merge base {found.base[:12]})",)


def test_what_the_base_gained_after_the_branch_left_it_does_not_count(repository: Repository) -> None:
    repository.git("switch", "--quiet", "main")
    repository.write("data/a.jsonl", "one", "two", "three", "by others")
    repository.commit()
    repository.git("switch", "--quiet", "work")
    repository.write("data/a.jsonl", "mine", "one", "two", "three")
    assert changed(repository) == {"data/a.jsonl": [1]}


def test_moved_and_deleted_lines_do_not_count_and_a_repeated_one_does(repository: Repository) -> None:
    repository.write("data/a.jsonl", "three", "one", "one")
    assert changed(repository) == {"data/a.jsonl": [3]}


def test_other_line_ends_change_nothing(repository: Repository) -> None:
    (repository.path / "data/a.jsonl").write_bytes(b"one\r\ntwo\r\nthree")
    assert changed(repository) == {}


def test_a_new_file_counts_whole_whether_git_tracks_it_or_not(repository: Repository) -> None:
    repository.write("data/b.jsonl", "new")
    repository.git("add", "data/b.jsonl")
    repository.write("data/c.jsonl", "untracked")
    repository.write(".gitignore", "d.jsonl")
    repository.write("data/d.jsonl", "ignored")
    repository.write("data/e.jsonl", "to be added")
    repository.git("add", "--intent-to-add", "data/e.jsonl")
    assert changed(repository) == {f"data/{name}.jsonl": None for name in "bcde"}


def test_deleted_files_and_files_that_are_no_dataset_do_not_count(repository: Repository) -> None:
    (repository.path / "data/a.jsonl").unlink()
    repository.write("data/notes.txt", "no data")
    repository.write("data/.hidden.jsonl", "not read")
    assert changed(repository) == {}


def test_a_renamed_file_is_compared_with_what_it_was(repository: Repository) -> None:
    lines = [f"line {number}" for number in range(20)]
    repository.write("data/a.jsonl", *lines)
    repository.commit()
    repository.git("branch", "--force", "main")
    repository.git("mv", "data/a.jsonl", "data/b.jsonl")
    repository.write("data/b.jsonl", *lines, "new")
    repository.commit()
    assert changed(repository) == {"data/b.jsonl": [21]}


@pytest.mark.parametrize("before", ["scratch/a.jsonl", "data/a.txt", "data/.a.jsonl", "data/test.jsonl"])
def test_rows_that_were_no_part_of_the_dataset_before_a_rename_are_all_new(repository: Repository, before: str) -> None:
    repository.write(before, *(f"never judged {number}" for number in range(20)))
    repository.commit()
    repository.git("branch", "--force", "main")
    repository.git("mv", before, "data/b.jsonl")
    repository.commit()
    assert changed(repository)["data/b.jsonl"] is None


def test_the_dataset_may_be_one_file_in_a_part_of_the_repository_seen_from_anywhere(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.write("data/deep/b.jsonl", "new")
    repository.write("data/a.jsonl", "one", "two", "three", "four")
    monkeypatch.chdir(repository.path / "data" / "deep")
    assert changed(repository, "../a.jsonl") == {"data/a.jsonl": [4]}
    monkeypatch.chdir(tmp_path)
    assert changed(repository, "repo/data/deep") == {"data/deep/b.jsonl": None}
    assert changed(repository, str(repository.path)) == {"data/a.jsonl": [4], "data/deep/b.jsonl": None}


@pytest.mark.parametrize(
    "name",
    [
        "new\nline.jsonl",
        ":(glob)*.jsonl",
        "-rf.jsonl",
        'tab\tquote"back\\slash.jsonl',
        "ünï \u202e.jsonl",
        "\udcff.jsonl",
        "::error::.jsonl",
    ],
)
def test_any_file_name_is_taken_literally(repository: Repository, name: str) -> None:
    for file in (f"data/{name}", name):
        repository.write(file, "one", "two")
    repository.commit()
    repository.git("branch", "--force", "main")
    for file in (f"data/{name}", name):
        repository.write(file, "one", "two", "three")
    assert changed(repository) == {f"data/{name}": [3]}
    assert changed(repository, f"data/{name}") == {f"data/{name}": [3]}
    assert changed(repository, str(repository.path / name)) == {name: [3]}


@pytest.mark.parametrize(
    "attributes", ["*.jsonl -diff", "*.jsonl binary", "*.jsonl diff=hide", "*.jsonl -text merge=ours export-ignore"]
)
def test_attributes_of_the_branch_hide_no_line(repository: Repository, attributes: str) -> None:
    repository.git("config", "diff.hide.textconv", "true")
    repository.git("config", "diff.hide.command", "true")
    repository.write(".gitattributes", attributes)
    repository.write("data/a.jsonl", "one", "two", "three", "four")
    repository.commit()
    assert changed(repository) == {"data/a.jsonl": [4]}


def test_a_file_that_a_filter_keeps_elsewhere_counts_whole_once_it_differs(repository: Repository) -> None:
    # As git-lfs does: the repository holds a line that stands for the file.
    repository.git("config", "filter.keep.clean", "sha1sum")
    repository.git("config", "filter.keep.smudge", "cat")
    repository.write(".gitattributes", "*.jsonl filter=keep")
    repository.write("data/a.jsonl", "one", "two")
    repository.commit()
    repository.git("branch", "--force", "main")
    assert changed(repository) == {}
    repository.write("data/a.jsonl", "one", "two", "three")
    assert changed(repository) == {"data/a.jsonl": [1, 2, 3]}


def test_the_settings_of_a_repository_or_a_hook_change_nothing(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "diff.renames": "false",
        "diff.noprefix": "true",
        "diff.interHunkContext": "100",
        "color.ui": "always",
        "core.quotepath": "true",
        "core.pager": "false",
        "diff.external": "false",
    }.items():
        repository.git("config", name, value)
    repository.write("data/a.jsonl", "one", "two", "three", "four")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert changed(repository) == {"data/a.jsonl": [4]}


def test_what_a_diff_cannot_limit_to_lines_counts_whole_and_the_notes_say_so(repository: Repository) -> None:
    csv = repository.write("data/b.csv", "prompt,chosen,rejected", "a,b,c")
    zipped = repository.path / "data/c.jsonl.gz"
    zipped.write_bytes(gzip.compress(b"one\n"))
    untouched = repository.write("data/d.csv", "prompt,chosen,rejected", "a,b,c")
    repository.commit()
    repository.git("branch", "--force", "main")
    os.utime(untouched, (1, 1))
    repository.write("data/b.csv", "prompt,chosen,rejected", "a,b,c", "d,e,f")
    zipped.write_bytes(gzip.compress(b"one\ntwo\n"))
    assert changed(repository) == {"data/b.csv": None, "data/c.jsonl.gz": None}
    assert [note.partition(":")[0] for note in changed_lines("data", "main").notes] == ["data/b.csv", "data/c.jsonl.gz"]
    assert changed(repository, str(csv)) == {"data/b.csv": None}


def test_jsonl_that_turns_out_to_be_compressed_counts_whole(repository: Repository) -> None:
    # The reader unzips it: its line numbers are not those of the bytes.
    (repository.path / "data/a.jsonl").write_bytes(gzip.compress(b"\n".join([b"one"] * 100)))
    repository.commit()
    assert changed(repository) == {"data/a.jsonl": None}


def test_a_dataset_reached_through_a_link_counts_whole(repository: Repository, tmp_path: Path) -> None:
    repository.write("pool/x.jsonl", "never judged")
    repository.commit()
    repository.git("branch", "--force", "main")
    (repository.path / "data/linked.jsonl").symlink_to("../pool/x.jsonl")
    (repository.path / "data/a.jsonl").unlink()
    (repository.path / "data/a.jsonl").symlink_to("../pool/x.jsonl")
    (repository.path / "moved").symlink_to("pool")
    repository.commit()
    assert changed(repository) == {"data/a.jsonl": None, "data/linked.jsonl": None}
    assert changed(repository, "moved") == {"moved/x.jsonl": None}
    assert changed(repository, "moved/x.jsonl") == {"moved/x.jsonl": None}
    other = Repository(tmp_path / "other")
    other.write("x.jsonl", "never judged here")
    other.commit()
    (repository.path / "out").symlink_to(other.path)
    assert changed(repository, "out") == {"out/x.jsonl": None}
    assert changed(repository, "out/x.jsonl") == {"out/x.jsonl": None}
    (tmp_path / "door").symlink_to(repository.path)
    outside = changed_lines(tmp_path / "door" / "data", "main")
    assert by_name(outside, tmp_path / "door") == {"data/a.jsonl": None, "data/linked.jsonl": None}


def test_a_link_from_outside_into_the_middle_of_a_repository_is_refused(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "shortcut").symlink_to(repository.path / "data")
    with pytest.raises(SettingsError, match=r"shortcut is a link into the repository .*working tree itself"):
        changed_lines(tmp_path / "shortcut", "main")


def test_a_repository_inside_the_dataset_counts_whole(repository: Repository) -> None:
    inner = Repository(repository.path / "data" / "inner")
    inner.write("x.jsonl", "one")
    inner.commit()
    assert changed(repository) == {"data/inner/x.jsonl": None}


def test_a_saved_dataset_is_one_thing(repository: Repository) -> None:
    for name in ("state.json", "dataset_info.json", "data-00000.arrow"):
        repository.write(f"saved/{name}", "bytes")
    repository.commit()
    repository.git("branch", "--force", "main")
    assert changed(repository, "saved") == {}
    extra = repository.write("saved/data-00001.arrow", "git does not know it")
    assert changed(repository, "saved") == {"saved": None}
    extra.unlink()
    repository.write("saved/data-00000.arrow", "other bytes")
    assert changed(repository, "saved") == {"saved": None}


def test_a_file_that_is_only_newer_than_the_index_did_not_change(repository: Repository) -> None:
    os.utime(repository.path / "data/a.jsonl", (1, 1))
    assert changed(repository) == {}


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("--output=stolen", "not the name of a branch"),
        ("-main", "not the name of a branch"),
        ("main\x1b[31m", r"main\\x1b\[31m: not the name"),
        ("main\nHEAD", "not the name"),
        ("origin/main", "fetch-depth: 0"),
        ("main..work", "unknown here"),
        ("0" * 40, "unknown here"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused(repository: Repository, reference: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        changed_lines("data", reference)
    assert not (repository.path / "stolen").exists()


def test_a_reference_that_means_two_things_is_refused(repository: Repository) -> None:
    repository.git("tag", "main", "work")
    with pytest.raises(SettingsError, match=r"several branches or tags .* refs/remotes/origin/main"):
        changed_lines("data", "main")
    assert changed(repository, base="refs/heads/main") == {}


def test_a_shallow_clone_without_the_merge_base_is_refused_with_the_way_out(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.write("data/a.jsonl", "one", "two", "three", "four")
    repository.commit()
    repository.git("switch", "--quiet", "main")
    repository.write("other", "x")
    repository.commit()
    source = f"file://{repository.path}"
    clone = ["git", "clone", "--quiet", "--depth=1", "--no-single-branch", "--branch=work", source, "clone"]
    subprocess.run(clone, cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path / "clone")
    with pytest.raises(SettingsError, match=r"this clone is shallow.*fetch-depth: 0"):
        changed_lines("data", "origin/main")
    subprocess.run(["git", "fetch", "--quiet", "--unshallow"], check=True)
    assert by_name(changed_lines("data", "origin/main"), tmp_path / "clone") == {"data/a.jsonl": [4]}


def test_histories_that_never_met_are_refused(repository: Repository) -> None:
    repository.git("switch", "--quiet", "--orphan", "island")
    repository.write("data/a.jsonl", "one")
    repository.commit()
    with pytest.raises(SettingsError, match="no commit in common"):
        changed_lines("data", "main")


def test_a_folder_outside_of_git_and_a_dataset_that_is_no_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text("one\n")
    with pytest.raises(SettingsError, match="not a git repository"):
        changed_lines(tmp_path / "a.jsonl", "main")
    with pytest.raises(DataError, match="compares files"):
        changed_lines("owner/dataset", "main")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="git, which is not installed"):
        changed_lines(tmp_path / "a.jsonl", "main")


def test_a_lost_object_is_an_error_and_no_pass(repository: Repository) -> None:
    blob = repository.git("rev-parse", "main:data/a.jsonl")
    repository.write("data/a.jsonl", "one", "two", "three", "four")
    repository.commit()
    (repository.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(SettingsError, match=f"git cannot read {blob[:12]}"):
        changed_lines("data", "main")


@given(st.lists(st.sampled_from("abcd")), st.lists(st.sampled_from("abcd")))
def test_every_line_that_is_in_surplus_is_named_and_no_other(before: list[str], now: list[str]) -> None:
    new_lines: Callable[..., tuple[range, ...]] = changes._new_lines
    found = new_lines([line.encode() for line in before], [line.encode() for line in now])
    named = [now[number - 1] for part in found for number in part]
    for letter in "abcd":
        assert named.count(letter) == max(0, now.count(letter) - before.count(letter))
