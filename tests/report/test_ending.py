"""An audit ends alike by the command line, in Python and in a run: the same manifests, a page with the same numbers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from markupsafe import escape
from typer.testing import CliRunner

from tests.manifest_cases import write_jsonl
from tests.training import make_trainer, probe_on, text_rows, train
from trl_attribution import AttributionCallback, DataAuditor, ProbeRegistry
from trl_attribution.cli import app
from trl_attribution.errors import DataError
from trl_attribution.manifest import Manifest
from trl_attribution.report import ending
from trl_attribution.report.answer import answer_of
from trl_attribution.report.findings import read_findings
from trl_attribution.scoring import Rule

ROWS = text_rows(24)
TOP = 5


@pytest.fixture(scope="module")
def folders(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An audit of the same pairs for each of the three ways."""
    root = tmp_path_factory.mktemp("endings")
    data, probes, probe = root / "data.jsonl", root / "probes", probe_on(model_folder)
    write_jsonl(data, ROWS)
    ProbeRegistry(probes).save(probe)
    how: dict[str, Any] = dict(score="response", vector_dtype="float32")
    words = ["audit", model_folder, data, "--probes", probes, "--top-k", TOP, "-o", root / "command line"]
    words += ["--score", "response", "--vector-dtype", "float32", "--dtype", "float32"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    DataAuditor(model_folder, probes=[probe], dtype="float32", **how).audit(data, root / "Python", rule=Rule(top_k=TOP))
    trainer = make_trainer(model_folder, root, Dataset.from_list(ROWS))
    train(trainer, AttributionCallback(trainer, probes=[probe], top_k=TOP, output_dir=root / "run", **how))
    return {way: root / way for way in ("command line", "Python", "run")}


def decisions(folder: Path, action: str) -> list[tuple[Any, ...]]:
    listed = Manifest.load(folder / f"manifest.{action}.jsonl").decisions
    return [(one.pair_id, one.row, one.action, one.probe, one.rank) for one in listed]


def numbers(folder: Path) -> dict[str, Any]:
    found = read_findings(folder)
    return {
        "headline": answer_of(found).headline,
        "pairs": found.pairs,
        "rule": found.rule,
        "flagged": [(one.column.probe, one.column.layer, one.flagged) for one in found.probes],
        "sources": [(row.source, row.flagged, row.pairs) for row in found.sources],
    }


def test_the_same_pairs_leave_the_same_manifests_and_numbers_by_all_three_ways(folders: dict[str, Path]) -> None:
    expected = folders["command line"]
    assert len(decisions(expected, "filter")) == TOP
    for folder in folders.values():
        for action in ("filter", "flip"):
            assert decisions(folder, action) == decisions(expected, action), folder.name
        assert numbers(folder) == numbers(expected), folder.name
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert f"<h1>{escape(answer_of(read_findings(expected)).headline)}</h1>" in page


def test_without_its_page_an_audit_is_whole_and_says_how_to_make_it(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise DataError("data.jsonl: no such file")

    monkeypatch.setattr(ending, "write_report", gone)
    with caplog.at_level(logging.ERROR):
        DataAuditor(model_folder, probes=[probe_on(model_folder)], score="response", dtype="float32").audit(
            ROWS, tmp_path / "audit", rule=Rule(top_k=TOP)
        )
    assert len(Manifest.load(tmp_path / "audit" / "manifest.filter.jsonl").decisions) == TOP
    assert f"no such file. Make it with: trl-attribution report {tmp_path}/audit" in caplog.text
