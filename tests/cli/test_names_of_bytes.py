"""File names are bytes: one that is not UTF-8 works, or is refused in one sentence before any work is done."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.audit_cases import auditor_of, pair_rows, tiny_loaded, tiny_probe
from tests.commands import Commands
from tests.gate_cases import write_rows
from trl_attribution.audit.info import AuditInfo
from trl_attribution.errors import DataError, StoreError
from trl_attribution.pairs.rows import open_rows
from trl_attribution.pairs.rows.writers import output_kind
from trl_attribution.report.page import write_report

ODD = os.fsdecode(b"d\xff")
DATA = f"{ODD}/{ODD}.jsonl"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ODD).mkdir()
    write_rows(tmp_path / ODD / f"{ODD}.jsonl", pair_rows(8))
    return tmp_path


def test_a_dataset_of_such_a_name_is_audited_reported_cleaned_and_gated(place: Path, commands: Commands) -> None:
    loaded = tiny_loaded()
    audit = auditor_of(loaded, [tiny_probe(loaded)], layers=(3,)).audit(DATA, "audit", vectors=f"vectors {ODD}")
    audit.flag(top_k=3).save_manifests()
    assert AuditInfo.load("audit").dataset.name == DATA
    assert AuditInfo.load("audit").open_store("audit").path == place / f"vectors {ODD}"
    written = write_report("audit")
    assert written.texts == written.listed > 0
    (place / "gate.yaml").write_text("{version: 1, rules: {hygiene: {duplicates: 0}}}")
    for words in (
        ["apply", "audit/manifest.filter.jsonl", DATA, "-o", f"clean {ODD}.jsonl"],
        ["show", "audit"],
        ["report", "audit", "-o", f"{ODD}.html"],
        ["gate", DATA, "--policy", "gate.yaml"],
    ):
        done = commands.run(place, "trl-attribution", *words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len((place / f"clean {ODD}.jsonl").read_text().splitlines()) == 5
    assert all(json.loads(line) for line in (place / f"clean {ODD}.jsonl").read_text().splitlines())


def test_what_arrow_and_datasets_cannot_name_is_refused_at_once(place: Path) -> None:
    (place / f"{ODD}.parquet").write_bytes(b"cut short")
    for refused in (lambda: open_rows(f"{ODD}.parquet").columns, lambda: output_kind(place / f"{ODD}.parquet")):
        with pytest.raises(DataError, match=r"udcff.parquet: the name is not UTF-8.*Rename it"):
            refused()
    with pytest.raises(DataError, match="datasets cannot load this folder"):
        open_rows(ODD)
    with pytest.raises(StoreError, match=r"udcff: the name is not UTF-8.*Rename it"):
        auditor_of(tiny_loaded(), layers=(3,)).audit(pair_rows(2), f"audit {ODD}")
