"""``kill -9`` at any moment and a rerun leave the same store, bit for bit, as a run that nobody disturbed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Commands
from tests.kill_child import PAIRS, SHARD_SIZE
from tests.killing import report_of
from tests.store_cases import contents, ids
from trl_attribution.store import VectorStore

KILLS = 24

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the child that kills its children forks them")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> tuple[Path, dict[str, Any]]:
    """The folder with all stores, and how many kills each kind took (see tests/kill_child.py)."""
    folder = tmp_path_factory.mktemp("killed")
    return folder, report_of(commands, "tests.kill_child", folder, KILLS)


@pytest.mark.parametrize("kind", ["moments", "lines"])
def test_a_killed_run_resumes_to_the_same_store(killed: tuple[Path, dict[str, Any]], kind: str) -> None:
    folder, report = killed
    undisturbed = contents(folder / "undisturbed")
    stores = sorted((folder / kind).iterdir())
    assert len(undisturbed) == 1 + PAIRS // SHARD_SIZE
    assert report[kind]["kills"] >= KILLS
    assert len(stores) == report[kind]["stores"]
    for store in stores:
        assert contents(store) == undisturbed, f"{store} differs after {report}"


def test_some_kills_hit_a_half_written_shard(killed: tuple[Path, dict[str, Any]]) -> None:
    _, report = killed
    assert report["moments"]["half_written"] + report["lines"]["half_written"] >= 1


def test_the_resumed_store_is_whole(killed: tuple[Path, dict[str, Any]]) -> None:
    store = VectorStore.open(killed[0] / "lines" / "0")
    store.verify()
    assert store.pair_ids == ids(PAIRS)
