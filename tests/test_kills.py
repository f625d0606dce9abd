"""Whatever is killed and done again comes to what undisturbed work makes; the nightly script has a thousand kills."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.kill_draws import WORK

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "nightly_kills.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the work to kill runs in forked children")
def test_audits_runs_gates_reviews_and_validations_survive_kills_bit_for_bit(
    tmp_path: Path, commands: Commands
) -> None:
    log = tmp_path / "log.csv"
    # Every kind of work comes round in turn.
    words = ("--kills", "10", "--seconds", "90", "--log", str(log), "--folder", str(tmp_path / "work"))
    done = commands.run(tmp_path, "python", str(SCRIPT), *words)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert {row["verdict"] for row in rows} == {"equal"}
    assert sum(int(row["kills"]) for row in rows) >= len(WORK)
