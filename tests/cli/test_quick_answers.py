"""A path that is not there is said to be so at once, before anything that takes long to import."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzzing import COMMANDS
from trl_attribution.errors import AttributionError
from trl_attribution.utils.paths import local_path, what_to_check

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "trl", "datasets", "accelerate", "peft", "sklearn", "scipy", "pyarrow"}
MOST_SECONDS = 2.0
"""Of CPU, the user's part, for a process that begins with nothing: half a second on an idle machine."""
# As `trl-attribution` does, and then says what it has loaded.
SCRIPT = f"""
import json, sys
from trl_attribution.cli import main
try:
    main()
except SystemExit as ended:
    print(json.dumps([ended.code, sorted({HEAVY!r} & set(sys.modules))]))
"""
READING = [command for command in COMMANDS if "{" in command.replace("{new}", "")]


def user_seconds() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


def python(code: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module", autouse=True)
def with_bytecode(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As installed: with every module compiled."""
    python(SCRIPT, "probe", "list", folder=tmp_path_factory.mktemp("first"))


@pytest.mark.parametrize("command", READING)
def test_a_path_that_is_not_there_is_answered_at_once(command: str, tmp_path: Path) -> None:
    words = [word.replace("{new}", "new") for word in command.split()]
    words = ["missing.jsonl" if word.startswith("{") else word for word in words]
    before = user_seconds()
    done = python(SCRIPT, *words, folder=tmp_path)
    assert user_seconds() - before < MOST_SECONDS
    assert json.loads(done.stdout) == [2, []]
    assert "missing.jsonl" in done.stderr and "Check the path" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "says"), [("notes.txt", "is a file, not a model"), ("folder", "no config.json in this folder")]
)
def test_what_is_there_and_is_no_model_is_answered_at_once(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.jsonl").write_text("{}")
    before = user_seconds()
    done = python(SCRIPT, "scan", name, "data.jsonl", "-o", "new", folder=tmp_path)
    assert user_seconds() - before < MOST_SECONDS
    assert json.loads(done.stdout) == [2, []] and says in done.stderr


@pytest.mark.parametrize("word", ["s3://bucket/data.jsonl", "gs://bucket/audit", "hdfs:/data", "file:///data"])
def test_a_url_is_refused_where_files_have_to_be_on_this_machine(word: str) -> None:
    from trl_attribution.audit.claim import check_folder
    from trl_attribution.pairs.rows import open_rows

    for refused in (lambda: local_path(word), lambda: open_rows(word), lambda: check_folder(Path(word))):
        with pytest.raises(AttributionError, match="no place on this machine.*Copy them"):
            refused()


def test_importing_the_auditor_takes_no_time(tmp_path: Path) -> None:
    before = user_seconds()
    code = f"import sys; from trl_attribution import DataAuditor; print(sorted({HEAVY!r} & set(sys.modules)))"
    assert python(code, folder=tmp_path).stdout == "[]\n"
    assert user_seconds() - before < MOST_SECONDS


def test_a_name_that_is_nearly_right_is_offered(tmp_path: Path) -> None:
    for name in ("data.jsonl", "probes", "unrelated.jsonl"):
        (tmp_path / name).touch()
    assert what_to_check(tmp_path / "dta.jsnl") == f"Did you mean {tmp_path / 'data.jsonl'}?"
    assert "Check the path" in what_to_check(tmp_path / "nothing-like-it.jsonl")


def test_a_link_to_nothing_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    assert what_to_check(tmp_path / "link") == "It is a link to nothing: gone."


@pytest.mark.parametrize("name", ["n" * 300, f"there/is/no/{'n' * 300}/x", "a/" * 3000, "nul\0"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(AttributionError, match="Check the path"):
        local_path(name)
