"""Whatever a person gets wrong on the command line: exit code 2 and one message, no traceback, nothing half-written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.fuzzing import Case, drawn, make_world

CASES = drawn(160, seed=15)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, commands: Commands) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed")
    make_world(folder, model_folder, commands)
    return folder


def held(folder: Path) -> dict[bytes, int]:
    """Every path in ``folder`` with its size."""
    return {os.fsencode(path): path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()}


def test_the_draw_is_of_every_verb() -> None:
    assert len({case.words[0] for case in CASES}) >= 14


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_wrong_command_line_is_one_message_and_leaves_nothing_behind(
    case: Case, world: Path, commands: Commands
) -> None:
    before = held(world)
    done = commands.run(world, "trl-attribution", *case.words)
    said = done.stdout + done.stderr
    assert done.returncode in case.codes, said
    assert "Traceback" not in said
    if done.returncode == 2:
        assert done.stderr.strip() and "\x1b" not in done.stderr
        assert held(world) == before
    else:
        remove(held(world).keys() - before.keys())


def remove(paths: set[bytes]) -> None:
    for path in paths:
        os.unlink(path)  # noqa: PTH108  # names that are no UTF-8
