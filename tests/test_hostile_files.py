"""Files from strangers are taken or refused with a message, whatever is wrong with them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile_files import RAW, Format, broken, make_folder, outcome


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Format, bytes]]:
    """A folder with a good file of every format, and what they hold."""
    folder = tmp_path_factory.mktemp("files")
    return folder, {one: (folder / one.file).read_bytes() for one in make_folder(folder)}


def test_good_files_are_taken(place: tuple[Path, dict[Format, bytes]]) -> None:
    folder, files = place
    assert {one.name: outcome(one, folder, good) for one, good in files.items()} == dict.fromkeys(
        (one.name for one in files), "taken"
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_broken_files_of_every_format_are_taken_or_refused(seed: int, place: tuple[Path, dict[Format, bytes]]) -> None:
    folder, files = place
    for one, good in files.items():
        found = outcome(one, folder, broken(good, random.Random(f"{seed} {one.name}")))
        (folder / one.file).write_bytes(good)
        assert found in ("taken", "refused"), f"{one.name}: {found}"


@pytest.mark.parametrize("raw", [one for one in RAW if len(one) > 4000], ids=["digits", "text", "lists", "objects"])
def test_json_bombs_are_refused_by_every_format_of_json(raw: str, place: tuple[Path, dict[Format, bytes]]) -> None:
    folder, files = place
    for one, good in files.items():
        if good.lstrip()[:1] == b"{":
            found = outcome(one, folder, raw.encode())
            (folder / one.file).write_bytes(good)
            assert found == "refused", f"{one.name}: {found}"
