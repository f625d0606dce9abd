"""A scan inside a report: what the page, the terminal and the card tell of it, and the commands that follow from it."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.audit_cases import auditor_of, pair_rows, tiny_loaded
from tests.report.test_report import embedded
from tests.report_cases import HOSTILE, Case, make_case, save_scan
from trl_attribution.discovery import Agreement, Prediction, ScanResult, TraitChange
from trl_attribution.errors import StoreError
from trl_attribution.report.answer import answer_of
from trl_attribution.report.card import card
from trl_attribution.report.findings import Findings, read_findings
from trl_attribution.report.page import write_report
from trl_attribution.report.scan import source_text
from trl_attribution.report.story import story
from trl_attribution.report.teaches import elsewhere_text, finding_command, finding_groups, looked_for


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("scan-report"))


@pytest.fixture
def found(made: Case) -> Findings:
    return read_findings(made.folder)


def scan_of(found: Findings) -> ScanResult:
    assert found.extras.scan is not None
    return found.extras.scan


def test_a_scan_alone_answers_with_its_findings_and_beside_an_audit_in_a_sentence(
    found: Findings, tmp_path: Path
) -> None:
    unasked = "The scan, which nobody told what to look for, has 2 findings ("
    assert unasked in answer_of(found).unasked and "found 2 behaviors over 36 prompts" in answer_of(found).unasked
    assert unasked in " ".join(card(found, "dataset").split()) and "flagged" in answer_of(found).headline
    auditor_of(tiny_loaded(), layers=(3,)).audit(pair_rows(8), tmp_path)
    assert answer_of(read_findings(tmp_path)).headline == "No behavior was asked about"
    save_scan(tmp_path, pair_rows(8))
    alone = answer_of(read_findings(tmp_path))
    assert alone.headline.startswith("What this dataset would teach: 2 findings, 1 harmful one first")
    assert alone.towards[1] == ("2. shorter answers (everywhere, about 12 to 20 of 30 pairs), d = 0.5 [0.3, 0.7].")
    assert any("with a chance of 1%, over 90 tests" in line for line in alone.certainty)


def test_narrow_effects_stand_apart_and_what_was_not_found_is_said(found: Findings) -> None:
    scan = scan_of(found)
    groups = [(one.title, [number for number, _ in one.findings]) for one in finding_groups(scan)]
    assert groups == [("Narrow effects", [1]), ("Across the dataset", [2])]
    turned = scan.model_copy(update={"findings": scan.findings[::-1]})
    assert [one.title for one in finding_groups(turned)] == ["Across the dataset", "Narrow effects"]
    told = dict(looked_for(scan))
    assert told["cannot be told"] == "false-claims" and told["found nothing"].endswith(", rude")
    assert told["explained"].startswith("2 effects") and "soup" in told["cluster p1"]
    nothing = scan.model_copy(update={"findings": (), "explained": 0})
    assert finding_groups(nothing) == [] and "explained" not in dict(looked_for(nothing))


def test_the_chart_has_each_effect_away_from_zero(made: Case, tmp_path: Path) -> None:
    page = write_report(made.folder, made.data, output=tmp_path / "report.html").path.read_text(encoding="utf-8")
    effects = embedded(page, "data")["effects"]
    assert [(one["size"], one["low"], one["high"], one["harmful"]) for one in effects] == [
        (1.2, 0.8, 1.7, True),
        (0.5, 0.3, 0.7, False),
    ]


def test_an_effect_elsewhere_and_its_sources_are_said_in_words(found: Findings) -> None:
    narrow, wide = scan_of(found).findings
    assert elsewhere_text(narrow) == "d = 0.20, the other way"
    assert elsewhere_text(narrow.model_copy(update={"elsewhere": 0.7})) == "d = 0.70"
    assert elsewhere_text(narrow.model_copy(update={"elsewhere": -0.01})) == "none"
    assert source_text(narrow) == HOSTILE[0] and source_text(wide) == f"{wide.sources[0].source[:60]} and 2 others"


def test_the_commands_are_quoted_and_none_that_hides_anything_is_shown(
    made: Case, found: Findings, tmp_path: Path
) -> None:
    one = scan_of(found).findings[0]
    folder = Path("my audits/it's; rm -rf $HOME `x`")
    command = finding_command(replace(found, folder=folder), one)
    data = found.info.dataset.name
    manifest = str(folder / "findings/1.filter.jsonl")
    assert shlex.split(command) == ["trl-attribution", "apply", manifest, data, "-o", "cleaned.jsonl"]
    weighed = shlex.split(finding_command(replace(found, folder=folder), one, "weight"))
    assert weighed == ["trl-attribution", "apply", manifest, data, "--action", "weight", "-o", "weighed.jsonl"]
    page = write_report(made.folder, made.data, output=tmp_path / "report.html").path.read_text(encoding="utf-8")
    assert page.count("--action weight") == 2
    for hidden in ("line\nbreak", "turned\u202e", "escape\x1b[31m"):
        assert finding_command(replace(found, folder=Path(hidden)), one) == ""
    memory = found.info.dataset.model_copy(update={"name": "the list in memory", "path": None})
    unnamed = replace(found, info=found.info.model_copy(update={"dataset": memory}))
    assert shlex.split(finding_command(unnamed, one))[3] == "DATASET"


def test_the_terminal_lists_the_findings_and_escapes_what_it_prints(found: Findings) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(story(found))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("Findings", "shorter answers", "Looked for, and nowhere beyond chance", "Unnamed cluster p1"):
        assert words in shown
    assert not set(shown) & set("\x1b\x00\x07\u202e\u2028")


def test_what_was_predicted_stands_beside_what_was_measured_on_the_page_and_the_terminal(
    made: Case, tmp_path: Path
) -> None:
    shutil.copytree(made.folder, tmp_path / "audit")
    known = TraitChange(trait="rude", topic=None, words=(), pairs=30, predicted=0.25, predicted_error=0.1)
    changes = (
        known,
        known.model_copy(update={"topic": 1, "words": tuple(HOSTILE[:2]), "prompts": 9, "measured": -0.5}),
    )
    line = Agreement(number=32, r2=0.81, slope=0.7, rank=0.64)
    told = Prediction(changes=changes, by_trait=line, prompts=64, left_out={"unchanged": 2}, unmeasured=1)
    scan = scan_of(read_findings(tmp_path / "audit"))
    assert "Predicted and measured" not in write_report(tmp_path / "audit").path.read_text(encoding="utf-8")
    scan.model_copy(update={"prediction": told}).save(tmp_path / "audit")
    page = write_report(tmp_path / "audit").path.read_text(encoding="utf-8")
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(story(read_findings(tmp_path / "audit")))
    terminal = console.file.getvalue()  # type: ignore[attr-defined]
    for shown in (page, terminal):
        for words in ("over traits: R2 0.81", "2 prompts not read: unchanged", "+0.250 ± 0.100", "-0.500 ± 0.000"):
            assert words in shown
    assert not set(terminal) & set("\x1b\x00\x07\u202e\u2028")
    assert "<script>window.__pwned" not in page


def test_findings_about_another_dataset_are_named(made: Case, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "audit")
    path = tmp_path / "audit" / "findings.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "dataset": {**values["dataset"], "fingerprint": "b" * 64}}))
    with pytest.raises(StoreError, match=r"findings\.json is about another dataset or model"):
        read_findings(tmp_path / "audit")
