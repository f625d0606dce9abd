"""What the gate says of a row that comes in, in every situation that git can bring a dataset into.

``main`` holds two good pairs and a bad one, which nobody is to answer for again. Each situation brings in one more row,
a bad one or a good one. 1 stops it, 2 says that the gate cannot decide, and 0 must never meet the bad one. Where the
good row gets a 1 too, git's objects do not tell what was there: all rows are judged, the bad one of ``main`` as well.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import hashlib
import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import Dataset

from tests.git_repository import Repository
from trl_attribution.errors import AttributionError
from trl_attribution.gate.check import GateOptions, run_gate
from trl_attribution.gate.policy.file import PolicyFile, parse_policy

POLICY = "{version: 1, reading: {READING}, rules: {hygiene: {long_prompts: {limit: 0, characters: 200}}}}"
PASS, FAIL, UNDECIDED = 0, 1, 2
ALLOW = ["-c", "protocol.file.allow=always"]
Row = dict[str, str]


def pair(name: str, bad: bool = False) -> Row:
    return {"prompt": name * (201 if bad else 1), "chosen": f"yes, {name}", "rejected": f"no, {name}"}


OLD = [pair("a"), pair("o", bad=True), pair("b")]


def text_of(*rows: Row) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


@dataclass
class Scratch:
    """A repository with the rows ``OLD`` in ``data/a.jsonl`` on ``main``, on its branch ``work``."""

    folder: Path
    repository: Repository
    new: Row
    """What comes in."""
    monkeypatch: pytest.MonkeyPatch
    dataset: str = "data"
    base: str = "main"
    reading: str = ""

    @property
    def place(self) -> Path:
        return self.repository.path

    def git(self, *words: str) -> str:
        return self.repository.git(*words)

    def write(self, name: str, *rows: Row) -> Path:
        return put(self.place / name, text_of(*rows))

    def append(self, name: str = "data/a.jsonl") -> None:
        put(self.place / name, (self.place / name).read_bytes() + text_of(self.new))

    def commit(self) -> None:
        self.repository.commit()

    def rebase(self) -> None:
        """Make of what is there what ``main`` has."""
        self.commit()
        self.git("branch", "--force", "main")

    def other(self, name: str, *rows: Row) -> Repository:
        """Another repository, with these rows in ``a.jsonl``."""
        made = Repository(self.folder / name)
        put(made.path / "a.jsonl", text_of(*rows))
        made.commit()
        return made

    def with_submodule(self, path: str = "prefs", name: str = "source") -> Repository:
        """The rows of ``main`` lie in a submodule; returned is where it comes from."""
        source = self.other(name, *OLD)
        self.git(*ALLOW, "submodule", "--quiet", "add", f"file://{source.path}", path)
        self.rebase()
        self.dataset = path
        return source

    def bump(self, source: Repository, path: str = "prefs") -> None:
        """The row comes in with the newest commit of the submodule."""
        put(source.path / "a.jsonl", (source.path / "a.jsonl").read_bytes() + text_of(self.new))
        source.commit()
        Repository(self.place / path).git(*ALLOW, "pull", "--quiet")
        self.commit()

    def clone(self, *options: str) -> None:
        """Go on in a clone, as a runner has it."""
        target = self.folder / "clone"
        words = [*ALLOW, "clone", "--quiet", "--no-single-branch", "--branch", "work", *options]
        self.git(*words, f"file://{self.place}", str(target))
        self.repository, self.base = Repository(target), "origin/main"

    def exit_code(self) -> int:
        self.monkeypatch.chdir(self.place)
        policy = PolicyFile(parse_policy(POLICY.replace("READING", self.reading)), self.folder)
        options = GateOptions(today=datetime.date(2026, 6, 1), base_ref=self.base)
        try:
            return PASS if run_gate(policy, self.dataset, options).verdict.passed else FAIL
        except AttributionError:
            return UNDECIDED


def put(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


Build = Callable[[Scratch], None]
TABLE: list[tuple[Build, int, int]] = []


def situation(bad: int, good: int) -> Callable[[Build], Build]:
    """The exit codes for a bad row that comes in, and for a good one."""

    def add(build: Build) -> Build:
        TABLE.append((build, bad, good))
        return build

    return add


# Files.


@situation(bad=FAIL, good=PASS)
def an_appended_line(case: Scratch) -> None:
    case.append()
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_line_in_the_place_of_another(case: Scratch) -> None:
    case.write("data/a.jsonl", case.new, *OLD[1:])
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_change_that_is_not_committed(case: Scratch) -> None:
    case.append()


@situation(bad=FAIL, good=PASS)
def a_change_that_is_not_committed_beside_the_last_commit(case: Scratch) -> None:
    case.append()
    case.base = "HEAD"


@situation(bad=FAIL, good=PASS)
def a_new_file(case: Scratch) -> None:
    case.write("data/b.jsonl", case.new)
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_file_that_git_does_not_track(case: Scratch) -> None:
    case.write("data/b.jsonl", case.new)


@situation(bad=FAIL, good=PASS)
def a_file_that_git_ignores(case: Scratch) -> None:
    put(case.place / ".gitignore", b"b.jsonl\n")
    case.write("data/b.jsonl", case.new)
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_file_that_is_only_to_be_added(case: Scratch) -> None:
    case.write("data/b.jsonl", case.new)
    case.git("add", "--intent-to-add", "data/b.jsonl")


@situation(bad=FAIL, good=PASS)
def a_renamed_file(case: Scratch) -> None:
    case.git("mv", "data/a.jsonl", "data/b.jsonl")
    case.append("data/b.jsonl")
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_file_that_becomes_two(case: Scratch) -> None:
    case.write("data/a.jsonl", *OLD[:1])
    case.write("data/sub/b.jsonl", case.new, *OLD[1:])
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_deleted_file_beside_a_new_one(case: Scratch) -> None:
    (case.place / "data/a.jsonl").unlink()
    case.write("data/b.jsonl", case.new)
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_file_moved_into_the_dataset(case: Scratch) -> None:
    case.write("scratch/b.jsonl", case.new)
    case.rebase()
    case.git("mv", "scratch/b.jsonl", "data/b.jsonl")
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_file_that_was_not_read_under_its_old_name(case: Scratch) -> None:
    case.write("data/.b.jsonl", case.new)
    case.rebase()
    case.git("mv", "data/.b.jsonl", "data/b.jsonl")
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_file_of_another_split(case: Scratch) -> None:
    case.reading = "split: train"
    case.git("mv", "data/a.jsonl", "data/train.jsonl")
    case.write("data/test.jsonl", case.new)
    case.rebase()
    case.git("mv", "data/test.jsonl", "data/train-2.jsonl")
    case.commit()


@situation(bad=FAIL, good=FAIL)
def a_moved_dataset(case: Scratch) -> None:
    case.append()
    case.git("mv", "data", "prefs")
    case.commit()
    case.dataset = "prefs"


@situation(bad=FAIL, good=PASS)
def a_dataset_that_is_one_file(case: Scratch) -> None:
    case.append()
    case.commit()
    case.dataset = "data/a.jsonl"


@situation(bad=FAIL, good=PASS)
def a_dataset_that_was_not_there(case: Scratch) -> None:
    case.write("new/a.jsonl", case.new)
    case.commit()
    case.dataset = "new"


@situation(bad=FAIL, good=PASS)
def a_file_that_becomes_a_folder(case: Scratch) -> None:
    case.git("mv", "data/a.jsonl", "prefs.jsonl")
    case.rebase()
    case.git("mv", "prefs.jsonl", "kept.jsonl")
    case.write("prefs.jsonl/a.jsonl", case.new)
    case.commit()
    case.dataset = "prefs.jsonl"


@situation(bad=FAIL, good=FAIL)
def a_base_that_cannot_be_read(case: Scratch) -> None:
    put(case.place / "data/a.jsonl", b"cut off\n" + text_of(*OLD))
    case.rebase()
    case.write("data/a.jsonl", *OLD, case.new)
    case.commit()


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_broken_line(case: Scratch) -> None:
    case.append()
    put(case.place / "data/b.jsonl", b"cut off\n")
    case.commit()


@situation(bad=FAIL, good=PASS)
def names_that_are_not_utf8_or_hold_anything(case: Scratch) -> None:
    for name in ("\udcff.jsonl", ':(glob)*"\t.jsonl', "-rf.jsonl"):
        case.write(f"data/{name}", pair("c"))
    case.rebase()
    case.append("data/\udcff.jsonl")
    case.commit()


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_name_that_datasets_passes_over(case: Scratch) -> None:
    case.write("data/new\nline.jsonl", case.new)
    case.commit()


@situation(bad=FAIL, good=PASS)
def names_that_differ_in_case_only(case: Scratch) -> None:
    case.write("data/A.jsonl", case.new)
    case.commit()


# Formats.


@situation(bad=FAIL, good=PASS)
def compressed_lines(case: Scratch) -> None:
    (case.place / "data/a.jsonl").unlink()
    put(case.place / "data/a.jsonl.gz", gzip.compress(text_of(*OLD)))
    case.rebase()
    put(case.place / "data/a.jsonl.gz", gzip.compress(text_of(*OLD, case.new)))
    case.commit()


@situation(bad=FAIL, good=PASS)
def compressed_lines_under_a_plain_name(case: Scratch) -> None:
    put(case.place / "data/a.jsonl", gzip.compress(text_of(*OLD, case.new)))
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_table_of_text(case: Scratch) -> None:
    (case.place / "data/a.jsonl").unlink()
    for rows, done in ((OLD, case.rebase), ([*OLD, case.new], case.commit)):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        put(case.place / "data/a.csv", text.getvalue().encode())
        done()


@situation(bad=FAIL, good=PASS)
def parquet(case: Scratch) -> None:
    (case.place / "data/a.jsonl").unlink()
    for rows, done in ((OLD, case.rebase), ([*OLD, case.new], case.commit)):
        Dataset.from_list(rows).to_parquet(case.place / "data/a.parquet")
        done()


@situation(bad=FAIL, good=PASS)
def a_saved_dataset(case: Scratch) -> None:
    case.dataset = "saved"
    Dataset.from_list(OLD).save_to_disk(case.place / "saved")
    case.rebase()
    Dataset.from_list([*OLD, case.new]).save_to_disk(case.place / "saved")
    case.commit()


@situation(bad=FAIL, good=PASS)
def the_same_rows_in_another_format(case: Scratch) -> None:
    (case.place / "data/a.jsonl").unlink()
    Dataset.from_list([case.new, *OLD]).to_parquet(case.place / "data/a.parquet")
    case.commit()


# Histories.


@situation(bad=FAIL, good=PASS)
def a_pair_that_main_got_after_the_branch_left(case: Scratch) -> None:
    case.git("switch", "--quiet", "main")
    case.append()
    case.write("data/b.jsonl", pair("c"))
    case.commit()
    case.git("switch", "--quiet", "work")
    case.append()
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_pair_that_main_removed_before_the_branch_left(case: Scratch) -> None:
    case.append()
    case.rebase()
    case.write("data/a.jsonl", *OLD)
    case.rebase()
    case.append()
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_pair_hidden_in_the_merge_of_main(case: Scratch) -> None:
    case.git("switch", "--quiet", "main")
    case.write("data/b.jsonl", pair("c"))
    case.commit()
    case.git("switch", "--quiet", "work")
    case.git("merge", "--quiet", "--no-commit", "--no-ff", "main")
    case.append()
    case.commit()


def cross(case: Scratch, first: str, second: str) -> None:
    """Two branches have merged each other's first commit; ``first`` began with the row, but only ``work`` kept it."""
    case.git("switch", "--quiet", first)
    case.append()
    case.commit()
    case.git("tag", "with")
    case.git("switch", "--quiet", second)
    put(case.place / "other.txt", b"other")
    case.commit()
    case.git("merge", "--quiet", "--no-ff", "-m", "merge", "with")
    case.git("switch", "--quiet", first)
    case.git("merge", "--quiet", "--no-ff", "-m", "merge", f"{second}~")
    case.git("switch", "--quiet", "main")
    case.write("data/a.jsonl", *OLD)
    case.commit()
    case.git("switch", "--quiet", "work")
    assert len(case.git("merge-base", "--all", "main", "HEAD").splitlines()) == 2


@situation(bad=FAIL, good=PASS)
def several_merge_bases_with_the_row_in_that_of_the_branch(case: Scratch) -> None:
    cross(case, "work", "main")


@situation(bad=FAIL, good=PASS)
def several_merge_bases_with_the_row_in_that_of_main(case: Scratch) -> None:
    cross(case, "main", "work")


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_clone_without_the_merge_base(case: Scratch) -> None:
    case.append()
    case.commit()
    case.git("switch", "--quiet", "main")
    case.write("other.txt", pair("c"))
    case.commit()
    case.clone("--depth=1")


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_clone_whose_history_ends_before_the_true_merge_base(case: Scratch) -> None:
    case.append()
    case.commit()
    case.git("tag", "before")
    case.write("data/a.jsonl", *OLD)
    case.rebase()
    for _ in range(4):
        case.commit()
    # The branch left main after main had removed the row; a merge of what was before is all that the clone sees.
    case.append()
    case.git("add", "data")
    tree = case.git("write-tree")
    case.git("reset", "--quiet", "--hard", case.git("commit-tree", tree, "-p", "HEAD", "-p", "before", "-m", "merge"))
    true = case.git("merge-base", "main", "work")
    case.clone("--depth=3")
    assert case.git("merge-base", "origin/main", "work") != true


@situation(bad=FAIL, good=PASS)
def a_clone_that_is_cut_below_the_merge_base(case: Scratch) -> None:
    case.rebase()
    case.append()
    case.commit()
    case.clone("--depth=2")


@situation(bad=UNDECIDED, good=UNDECIDED)
def histories_that_never_met(case: Scratch) -> None:
    case.git("switch", "--quiet", "--orphan", "island")
    case.write("data/a.jsonl", *OLD, case.new)
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_commit_replaced_by_another(case: Scratch) -> None:
    case.append()
    case.commit()
    case.git("replace", "main", "work")


@situation(bad=FAIL, good=PASS)
def a_file_replaced_by_another(case: Scratch) -> None:
    case.append()
    case.commit()
    case.git("replace", "main:data/a.jsonl", "work:data/a.jsonl")


@situation(bad=FAIL, good=PASS)
def a_graft_that_makes_the_branch_a_part_of_main(case: Scratch) -> None:
    case.append()
    case.commit()
    put(case.place / ".git/info/grafts", f"{case.git('rev-parse', 'main')} {case.git('rev-parse', 'work')}\n".encode())


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_tag_with_the_name_of_the_base(case: Scratch) -> None:
    case.append()
    case.commit()
    case.git("config", "core.warnAmbiguousRefs", "false")
    case.git("tag", "main", "work")


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_lost_object(case: Scratch) -> None:
    blob = case.git("rev-parse", "main:data/a.jsonl")
    case.append()
    case.commit()
    (case.place / ".git/objects" / blob[:2] / blob[2:]).unlink()


# Working trees.


@situation(bad=FAIL, good=PASS)
def a_file_marked_as_unchanged(case: Scratch) -> None:
    case.git("update-index", "--assume-unchanged", "data/a.jsonl")
    case.append()


@situation(bad=FAIL, good=PASS)
def a_file_marked_to_be_left_alone(case: Scratch) -> None:
    case.git("update-index", "--skip-worktree", "data/a.jsonl")
    case.append()


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_committed_row_behind_such_a_mark(case: Scratch) -> None:
    case.append()
    case.commit()
    case.git("update-index", "--assume-unchanged", "data/a.jsonl")
    case.write("data/a.jsonl", *OLD)


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_sparse_checkout(case: Scratch) -> None:
    case.write("data/more/b.jsonl", case.new)
    case.commit()
    case.git("sparse-checkout", "set", "--no-cone", "/*", "!/data/more/")
    assert not (case.place / "data/more").exists()


@situation(bad=FAIL, good=PASS)
def a_sparse_checkout_of_the_whole_dataset(case: Scratch) -> None:
    case.write("elsewhere/b.jsonl", pair("c"))
    case.append()
    case.commit()
    case.git("sparse-checkout", "set", "data")
    assert not (case.place / "elsewhere").exists()


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_committed_row_that_is_gone_from_the_file(case: Scratch) -> None:
    case.append()
    case.commit()
    case.write("data/a.jsonl", *OLD)


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_staged_row_that_is_gone_from_the_file(case: Scratch) -> None:
    case.append()
    case.git("add", "data")
    case.write("data/a.jsonl", *OLD)
    case.base = "HEAD"


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_conflict(case: Scratch) -> None:
    case.append()
    case.commit()
    case.git("switch", "--quiet", "main")
    case.write("data/a.jsonl", *OLD, pair("c"))
    case.commit()
    case.git("switch", "--quiet", "work")
    with pytest.raises(subprocess.CalledProcessError):
        case.git("merge", "main")


@situation(bad=FAIL, good=PASS)
def a_second_working_tree(case: Scratch) -> None:
    case.git("worktree", "add", "--quiet", "-b", "more", str(case.folder / "second"))
    case.repository = Repository(case.folder / "second")
    case.append()
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_git_folder_elsewhere(case: Scratch) -> None:
    case.git("init", "--quiet", "--separate-git-dir", str(case.folder / "elsewhere.git"))
    case.append()
    case.commit()


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_working_tree_elsewhere(case: Scratch) -> None:
    case.append()
    case.commit()
    case.git("config", "core.worktree", str(case.folder))


@situation(bad=FAIL, good=PASS)
def a_folder_of_the_dataset_that_looks_like_a_bare_repository(case: Scratch) -> None:
    bare = case.place / "data"
    subprocess.run(["git", "init", "--quiet", "--bare", str(bare)], check=True)
    case.append()
    case.commit()


@situation(bad=FAIL, good=PASS)
def variables_that_lead_git_elsewhere(case: Scratch) -> None:
    case.append()
    case.commit()
    other = case.other("other", *OLD, case.new).path
    for name, value in {
        "GIT_DIR": other / ".git",
        "GIT_WORK_TREE": other,
        "GIT_INDEX_FILE": other / ".git/index",
        "GIT_OBJECT_DIRECTORY": other / ".git/objects",
        "GIT_GRAFT_FILE": other,
        "GIT_ICASE_PATHSPECS": "1",
        "GIT_EXTERNAL_DIFF": "true",
        "GIT_CEILING_DIRECTORIES": case.folder,
    }.items():
        case.monkeypatch.setenv(name, str(value))


# Attributes, filters and Git LFS.


@situation(bad=FAIL, good=PASS)
def other_line_ends(case: Scratch) -> None:
    put(case.place / ".gitattributes", b"*.jsonl text eol=crlf\n")
    put(case.place / "data/a.jsonl", text_of(*OLD, case.new).replace(b"\n", b"\r\n"))
    case.commit()


@situation(bad=FAIL, good=PASS)
def attributes_and_settings_that_hide_differences(case: Scratch) -> None:
    put(case.place / ".gitattributes", b"*.jsonl binary diff=hide -text merge=ours export-ignore\n")
    settings = {"diff.hide.textconv": "true", "diff.hide.command": "true", "diff.external": "true"}
    settings |= {"diff.ignoreSubmodules": "all", "core.fileMode": "false", "core.pager": "false"}
    for name, value in settings.items():
        case.git("config", name, value)
    case.append()
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_filter_that_hides_rows_from_git(case: Scratch) -> None:
    case.git("config", "filter.hide.clean", "head -n 3")
    put(case.place / ".gitattributes", b"*.jsonl filter=hide\n")
    case.commit()
    case.append()
    case.commit()
    assert case.git("status", "--porcelain") == ""


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_filter_that_keeps_rows_from_everybody_else(case: Scratch) -> None:
    case.git("config", "filter.secret.clean", "rev")
    case.git("config", "filter.secret.smudge", "rev")
    put(case.place / ".gitattributes", b"*.jsonl filter=secret\n")
    case.git("add", "--renormalize", ".")
    case.rebase()
    case.append()
    case.commit()


def in_lfs(case: Scratch, *rows: Row, stored: bool = True) -> None:
    """``data/a.jsonl`` as git-lfs commits it, and checks it out."""
    content = text_of(*rows)
    digest = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n"
    put(case.place / "data/a.jsonl", pointer.encode())
    case.commit()
    if stored:
        put(case.place / f".git/lfs/objects/{digest[:2]}/{digest[2:4]}/{digest}", content)
    put(case.place / "data/a.jsonl", content)


@situation(bad=FAIL, good=PASS)
def a_file_in_lfs(case: Scratch) -> None:
    in_lfs(case, *OLD)
    case.git("branch", "--force", "main")
    in_lfs(case, *OLD, case.new)


@situation(bad=FAIL, good=FAIL)
def a_file_in_lfs_whose_old_content_is_not_here(case: Scratch) -> None:
    in_lfs(case, *OLD, stored=False)
    case.git("branch", "--force", "main")
    in_lfs(case, *OLD, case.new)


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_file_in_lfs_whose_committed_content_is_not_here(case: Scratch) -> None:
    in_lfs(case, *OLD)
    case.git("branch", "--force", "main")
    in_lfs(case, *OLD, case.new, stored=False)
    case.write("data/a.jsonl", *OLD)


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_file_in_lfs_that_was_not_pulled(case: Scratch) -> None:
    in_lfs(case, *OLD)
    case.git("branch", "--force", "main")
    in_lfs(case, *OLD, case.new)
    case.git("checkout", "--quiet", "--", "data")


# Submodules, other repositories and links.


@situation(bad=FAIL, good=PASS)
def a_submodule_at_a_newer_commit(case: Scratch) -> None:
    case.bump(case.with_submodule())


@situation(bad=FAIL, good=PASS)
def a_part_of_a_submodule(case: Scratch) -> None:
    case.bump(case.with_submodule())
    case.dataset = "prefs/a.jsonl"


@situation(bad=FAIL, good=PASS)
def a_submodule_inside_the_dataset(case: Scratch) -> None:
    source = case.with_submodule("data/more")
    case.dataset = "data"
    case.bump(source, "data/more")


@situation(bad=FAIL, good=PASS)
def a_submodule_of_a_submodule(case: Scratch) -> None:
    inner = case.other("inner", *OLD)
    outer = case.other("outer", pair("c"))
    outer.git(*ALLOW, "submodule", "--quiet", "add", str(inner.path), "deep")
    outer.commit()
    case.git(*ALLOW, "submodule", "--quiet", "add", str(outer.path), "prefs")
    case.git(*ALLOW, "submodule", "--quiet", "update", "--init", "--recursive")
    case.rebase()
    for repository in (outer, Repository(case.place / "prefs")):
        if repository is outer:
            put(inner.path / "a.jsonl", text_of(*OLD, case.new))
            inner.commit()
        Repository(repository.path / "deep").git(*ALLOW, "pull", "--quiet", "origin", "main")
        repository.commit()
    case.commit()
    case.dataset = "prefs/deep"


@situation(bad=FAIL, good=PASS)
def a_submodule_with_another_history(case: Scratch) -> None:
    case.with_submodule()
    inner = Repository(case.place / "prefs")
    inner.git("switch", "--quiet", "--orphan", "island")
    put(inner.path / "a.jsonl", text_of(*OLD, case.new))
    inner.commit()
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_submodule_whose_change_is_not_committed(case: Scratch) -> None:
    case.with_submodule()
    case.append("prefs/a.jsonl")


@situation(bad=FAIL, good=FAIL)
def a_new_submodule(case: Scratch) -> None:
    source = case.other("source", *OLD, case.new)
    case.git(*ALLOW, "submodule", "--quiet", "add", str(source.path), "prefs")
    case.commit()
    case.dataset = "prefs"


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_submodule_that_was_not_updated(case: Scratch) -> None:
    case.bump(case.with_submodule())
    case.git("-C", "prefs", "checkout", "--quiet", "HEAD~")


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_submodule_whose_newest_commit_is_not_here(case: Scratch) -> None:
    case.with_submodule()
    case.clone("--recurse-submodules")
    case.git("update-index", "--cacheinfo", f"160000,{'1' * 40},prefs")
    case.git("commit", "--quiet", "-m", "bump")


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_submodule_that_is_not_checked_out(case: Scratch) -> None:
    case.bump(case.with_submodule())
    case.clone()


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_submodule_in_the_dataset_that_is_not_checked_out(case: Scratch) -> None:
    source = case.with_submodule("data/more")
    case.bump(source, "data/more")
    case.dataset = "data"
    case.clone()


@situation(bad=FAIL, good=FAIL)
def a_submodule_without_its_history(case: Scratch) -> None:
    case.bump(case.with_submodule())
    case.clone("--recurse-submodules", "--shallow-submodules")


@situation(bad=FAIL, good=FAIL)
def a_submodule_that_becomes_a_plain_folder(case: Scratch) -> None:
    case.with_submodule()
    case.git("rm", "--quiet", "--force", "prefs")
    case.write("prefs/a.jsonl", *OLD, case.new)
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_plain_folder_that_becomes_a_submodule(case: Scratch) -> None:
    source = case.other("source", *OLD, case.new)
    case.git("rm", "--quiet", "-r", "data")
    case.git(*ALLOW, "submodule", "--quiet", "add", str(source.path), "data")
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_repository_inside_the_dataset(case: Scratch) -> None:
    inner = Repository(case.place / "data/inner")
    put(inner.path / "b.jsonl", text_of(case.new))
    inner.commit()


@situation(bad=FAIL, good=PASS)
def a_repository_of_its_own_in_the_working_tree(case: Scratch) -> None:
    inner = Repository(case.place / "cloned")
    put(inner.path / "a.jsonl", text_of(*OLD))
    inner.branch()
    put(inner.path / "a.jsonl", text_of(*OLD, case.new))
    inner.commit()
    case.dataset = "cloned"


@situation(bad=FAIL, good=PASS)
def a_link_in_the_dataset(case: Scratch) -> None:
    case.write("pool/x.jsonl", case.new)
    case.rebase()
    (case.place / "data/b.jsonl").symlink_to("../pool/x.jsonl")
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_dataset_that_becomes_a_link(case: Scratch) -> None:
    case.write("pool/a.jsonl", *OLD, case.new)
    case.rebase()
    case.git("rm", "--quiet", "-r", "data")
    (case.place / "data").symlink_to("pool")
    case.commit()


@situation(bad=FAIL, good=PASS)
def a_dataset_that_becomes_a_link_to_another_repository(case: Scratch) -> None:
    case.other("other", *OLD, case.new)
    case.git("rm", "--quiet", "-r", "data")
    (case.place / "data").symlink_to(case.folder / "other")
    case.commit()


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_link_to_what_is_not_checked_out(case: Scratch) -> None:
    case.write("pool/x.jsonl", case.new)
    (case.place / "data/b.jsonl").symlink_to("../pool/x.jsonl")
    case.commit()
    case.git("sparse-checkout", "set", "data")
    assert not (case.place / "pool").exists()


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_link_that_leads_elsewhere_than_the_committed_one(case: Scratch) -> None:
    case.write("pool/x.jsonl", case.new)
    (case.place / "data/b.jsonl").symlink_to("../pool/x.jsonl")
    case.commit()
    case.git("update-index", "--assume-unchanged", "data/b.jsonl")
    (case.place / "data/b.jsonl").unlink()
    (case.place / "data/b.jsonl").symlink_to("a.jsonl")


@situation(bad=UNDECIDED, good=UNDECIDED)
def a_link_from_outside_into_the_repository(case: Scratch) -> None:
    case.append()
    case.commit()
    (case.folder / "shortcut").symlink_to(case.place / "data")
    case.dataset = "../shortcut"


@situation(bad=FAIL, good=PASS)
def a_link_from_outside_to_the_whole_repository(case: Scratch) -> None:
    case.append()
    case.commit()
    (case.folder / "door").symlink_to(case.place)
    case.dataset = "../door/data"


@pytest.mark.parametrize(("build", "bad", "good"), TABLE, ids=[build.__name__ for build, _, _ in TABLE])
def test_a_bad_row_never_passes(
    build: Build, bad: int, good: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bad != PASS
    for is_bad, expected in ((True, bad), (False, good)):
        folder = tmp_path / str(is_bad)
        repository = Repository(folder / "repo")
        put(repository.path / "data/a.jsonl", text_of(*OLD))
        repository.branch()
        with monkeypatch.context() as patch:
            case = Scratch(folder, repository, pair("n", is_bad), patch)
            build(case)
            assert case.exit_code() == expected, f"{'bad' if is_bad else 'good'} row"
