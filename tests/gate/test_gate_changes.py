"""Which rows a branch adds to a dataset in git, and what is said where that cannot be told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.git_repository import Repository
from trl_attribution.errors import DataError, SettingsError
from trl_attribution.gate.rows.changes import NewRows
from trl_attribution.gate.rows.inventory import take_inventory
from trl_attribution.pairs import PairReader, Reading

READING = Reading(on_bad_row="skip")


def line(name: str) -> str:
    """A row that is a pair, or for ``broken`` one without a response."""
    return json.dumps({"prompt": name, "chosen": "" if name.startswith("broken") else "yes", "rejected": "no"})


def write(repository: Repository, file: str, *names: str) -> None:
    repository.write(file, *map(line, names))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """With ``data/a.jsonl`` of three rows on ``main``; the working directory is its top."""
    made = Repository(tmp_path / "repo")
    write(made, "data/a.jsonl", "one", "two", "broken")
    made.branch()
    monkeypatch.chdir(made.path)
    return made


def compared(path: str | Path = "data", base: str = "main") -> tuple[list[str], list[str]]:
    """The names of the new rows, and the notes."""
    new = NewRows(path, base, READING)
    reader = PairReader(path, READING)
    inventory = take_inventory(reader, new.among, set(), lambda *_: None)
    rows = list(reader.source)
    found = sorted({*inventory.rows[inventory.examined].tolist(), *(row for row, _ in inventory.repeats)})
    found = sorted({*found, *(bad.row for bad in inventory.bad_rows if bad.examined)})
    return [str(rows[row].values["prompt"]) for row in found], new.notes


def added(path: str | Path = "data", base: str = "main") -> list[str]:
    return compared(path, base)[0]


def test_rows_that_moved_or_went_do_not_count_and_a_repeated_or_broken_one_does(repository: Repository) -> None:
    write(repository, "data/a.jsonl", "broken", "one", "three", "one", "broken new")
    assert added() == ["three", "one", "broken new"]
    repository.commit()
    assert added() == ["three", "one", "broken new"]


def test_another_way_to_write_the_same_pair_is_nothing_new(repository: Repository) -> None:
    row = {"note": "another column", "rejected": "no", "chosen": "yes", "prompt": "one"}
    repository.write("data/a.jsonl", json.dumps(row, indent=None, separators=(" ,", " : ")), line("two"))
    assert added() == []


def test_a_branch_that_changes_nothing_says_so(repository: Repository) -> None:
    repository.write("README.md", "unrelated")
    base = repository.git("rev-parse", "main")
    assert compared() == ([], [f"nothing in data differs from main (merge base {base[:12]})"])


def test_the_notes_say_what_could_not_be_compared(repository: Repository) -> None:
    repository.write("data/a.jsonl", line("one"), '{"prompt": "cut off', line("two"))
    repository.commit()
    repository.git("branch", "--force", "main")
    base = repository.git("rev-parse", "main")[:12]
    write(repository, "data/a.jsonl", "one", "two")
    repository.commit()
    names, (note,) = compared()
    assert names == ["one", "two"]
    reason = f"at the merge base {base} it cannot be read ({base}:data/a.jsonl:2: broken JSON"
    assert note.startswith(f"all rows of data count as new: {reason}")
    write(repository, "more/b.jsonl", "three")
    repository.commit()
    names, (note,) = compared("more")
    assert names == ["three"]
    assert note == f"all rows of more count as new: at the merge base {base} nothing is there"


def test_rows_that_are_committed_but_not_here_are_refused_with_the_way_out(repository: Repository) -> None:
    write(repository, "data/a.jsonl", "one", "two", "broken", "three", "four")
    repository.commit()
    write(repository, "data/a.jsonl", "one", "two", "broken")
    with pytest.raises(SettingsError, match=r"2 rows that are committed or staged since main .*git sparse-checkout"):
        compared()


def test_a_submodule_that_is_not_checked_out_is_refused_by_name(repository: Repository) -> None:
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},data/more")
    repository.git("commit", "--quiet", "--message", "submodule")
    with pytest.raises(SettingsError, match=r"HEAD has the submodule data/more \(1{12}\), .*git submodule update"):
        compared()


def test_the_dataset_may_be_one_file_in_a_part_of_the_repository_seen_from_anywhere(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(repository, "data/deep/b.jsonl", "new")
    write(repository, "data/a.jsonl", "one", "two", "four")
    monkeypatch.chdir(repository.path / "data" / "deep")
    assert added("../a.jsonl") == ["four"]
    monkeypatch.chdir(tmp_path)
    assert added("repo/data/deep") == ["new"]
    assert added(repository.path) == ["four", "new"]


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
        compared(base=reference)
    assert not (repository.path / "stolen").exists()


def test_a_reference_that_means_two_things_is_refused(repository: Repository) -> None:
    repository.git("tag", "main", "work")
    with pytest.raises(SettingsError, match=r"several branches or tags .* refs/remotes/origin/main"):
        compared()
    assert added(base="refs/heads/main") == []


def test_a_shallow_clone_without_the_merge_base_is_refused_with_the_way_out(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(repository, "data/a.jsonl", "one", "two", "four")
    repository.commit()
    repository.git("switch", "--quiet", "main")
    repository.write("other", "x")
    repository.commit()
    source = f"file://{repository.path}"
    clone = ["git", "clone", "--quiet", "--depth=1", "--no-single-branch", "--branch=work", source, "clone"]
    subprocess.run(clone, cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path / "clone")
    with pytest.raises(SettingsError, match=r"this clone is shallow.*fetch-depth: 0"):
        compared(base="origin/main")
    subprocess.run(["git", "fetch", "--quiet", "--unshallow"], check=True)
    assert added(base="origin/main") == ["four"]


def test_histories_that_never_met_are_refused(repository: Repository) -> None:
    repository.git("switch", "--quiet", "--orphan", "island")
    write(repository, "data/a.jsonl", "one")
    repository.commit()
    with pytest.raises(SettingsError, match="no commit in common"):
        compared()


def test_a_dataset_outside_of_git_behind_a_link_or_on_the_hub_is_refused(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text(line("one"))
    (tmp_path / "shortcut").symlink_to(repository.path / "data")
    for path in (tmp_path / "a.jsonl", tmp_path / "shortcut"):
        with pytest.raises(SettingsError, match=r"is in no git working tree, or reached through a link"):
            compared(path)
    with pytest.raises(DataError, match="compares files"):
        compared("owner/dataset")
    (repository.path / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"'\.\.' leads out of a link"):
        compared(f"link/../{tmp_path.name}/a.jsonl")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="git, which is not installed"):
        compared()


def test_a_lost_object_is_an_error_and_no_pass(repository: Repository) -> None:
    blob = repository.git("rev-parse", "main:data/a.jsonl")
    write(repository, "data/a.jsonl", "one", "two", "four")
    repository.commit()
    (repository.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(SettingsError, match=f"git cat-file failed .*{blob}"):
        compared()
