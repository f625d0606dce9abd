"""Files and folders appear whole or not at all, whoever else writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from trl_attribution.errors import AttributionError
from trl_attribution.utils.atomic import atomic_folder, atomic_path, write_json

WRITER = """
import os, sys
from trl_attribution.utils import atomic
with getattr(atomic, sys.argv[1])(sys.argv[2]) as part:
    (part / "file" if part.is_dir() else part).write_text("of another process")
    print(part, flush=True)
    if sys.stdin.readline() == "die\\n":
        os._exit(9)
"""


def writer(kind: str, target: Path) -> subprocess.Popen[str]:
    """Another process that has begun to write; ``communicate`` tells it to go on, or to die."""
    command = [sys.executable, "-c", WRITER, kind, str(target)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip().endswith(".part")
    return process


def test_of_two_writers_each_commits_its_own_bytes(tmp_path: Path) -> None:
    target = tmp_path / "data"
    with ExitStack() as outer, atomic_path(target) as second:
        first = outer.enter_context(atomic_path(target))
        first.write_text("first")
        second.write_text("second, and longer")
        outer.close()
        assert target.read_text() == "first"
    assert target.read_text() == "second, and longer"
    assert list(tmp_path.iterdir()) == [target]


def test_of_two_processes_each_commits_its_own_bytes(tmp_path: Path) -> None:
    target = tmp_path / "data"
    with writer("atomic_path", target) as other:
        with atomic_path(target) as part:
            part.write_text("mine")
        assert target.read_text() == "mine"
        other.communicate("go on\n")
    assert target.read_text() == "of another process"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_is_cleared_away_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    with writer("atomic_path", tmp_path / "data") as living:
        for kind in ("atomic_path", "atomic_folder"):
            with writer(kind, tmp_path / f"{kind} of the dead") as dead:
                dead.communicate("die\n")
        assert list(tmp_path.glob("atomic_folder of the dead*"))
        with atomic_path(tmp_path / "mine") as part:
            part.write_text("mine")
        living.communicate("go on\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "mine"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "data"
    with atomic_folder(target) as part:
        (part / "sub").mkdir()
        (part / "sub" / "file").write_text("whole")
        assert not target.exists()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "new",
        "new/data",
        "new/data/sub",
        "new/data/sub/file",
    ]


def test_a_folder_whose_writing_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_folder(tmp_path / "data") as part:
            (part / "file").write_text("half")
            raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="broke"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("kept")
    with (
        pytest.raises(AttributionError, match=r"cannot write .*data: Directory not empty"),
        atomic_folder(tmp_path / "data") as part,
    ):
        (part / "file").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "mine"]


def test_a_file_name_that_is_not_utf8_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    value = {"name": "data/\udcff ü.jsonl", "path": "C:\\\udcff\\"}
    write_json(tmp_path / "value.json", value)
    assert json.loads((tmp_path / "value.json").read_text(encoding="utf-8")) == value
