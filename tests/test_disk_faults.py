"""A disk that is full or a clock that jumps stops an audit at most, and what is run again is an undisturbed one."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest

from tests.audit_cases import auditor_of, pair_rows, score_rows, tiny_loaded, tiny_probe
from tests.gate_cases import write_rows
from tests.killing import start, was_killed
from tests.store_cases import contents
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.errors import AttributionError


@pytest.fixture(scope="module")
def auditor() -> DataAuditor:
    loaded = tiny_loaded()
    return auditor_of(loaded, [tiny_probe(loaded)], shard_size=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "data.jsonl", pair_rows(8))


@pytest.fixture(scope="module")
def undisturbed(auditor: DataAuditor, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "audit"
    auditor.audit(data, folder, results=False)
    return folder


def audit_with_little_space(auditor: DataAuditor, data: Path, folder: Path, most: int) -> None:
    """An audit in a process whose files can have ``most`` bytes each: it says so, and fails in no other way."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    with pytest.raises(AttributionError, match="File too large"):
        auditor.audit(data, folder, results=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the audits that run out of space are forked children")
def test_a_disk_that_fills_up_anywhere_leaves_an_audit_that_goes_on(
    auditor: DataAuditor, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    sizes = sorted({path.stat().st_size for path in undisturbed.rglob("*") if path.is_file()} - {0})
    for most in (0, *(size - 1 for size in sizes)):
        assert not was_killed(start(lambda: audit_with_little_space(auditor, data, tmp_path / "audit", most)))  # noqa: B023
        assert not list(tmp_path.rglob("*.part"))
    auditor.audit(data, tmp_path / "audit", results=False)
    assert contents(tmp_path / "audit" / "vectors") == contents(undisturbed / "vectors")
    assert score_rows(tmp_path / "audit") == score_rows(undisturbed)


def test_a_clock_that_jumps_changes_nothing(
    auditor: DataAuditor, data: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: chance.uniform(0, 4e9))
    auditor.audit(data, tmp_path / "audit", results=False)
    assert contents(tmp_path / "audit" / "vectors") == contents(undisturbed / "vectors")
    assert score_rows(tmp_path / "audit") == score_rows(undisturbed)
