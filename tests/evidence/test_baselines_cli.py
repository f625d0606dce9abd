"""``compare`` on the command line: one table or one document, kept scores, and errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.audit_cases import RUDE, auditor_of, pair_rows, tiny_probe, unchanged
from tests.tiny import build_tiny_model
from trl_attribution.cli import app
from trl_attribution.models import load_model
from trl_attribution.utils.atomic import write_lines


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A folder with ``data.jsonl``, ``behavior.jsonl`` and the finished audit ``audit/`` of the tiny Llama."""
    folder = tmp_path_factory.mktemp("compare")
    rows = [{**row, "bad": number % 5 == 0} for number, row in enumerate(pair_rows(15))]
    write_lines(folder / "data.jsonl", rows)
    write_lines(folder / "behavior.jsonl", RUDE)
    loaded = load_model(model_folder, dtype="float32")
    audit = auditor_of(loaded, [tiny_probe(loaded)]).audit(folder / "data.jsonl", folder / "audit")
    audit.flag(top_k=3).save_manifests()
    return folder


def run(folder: Path, arguments: str, expected: int = 0) -> str:
    """What the command prints, line breaks as spaces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, arguments.split(), catch_exceptions=False)
    assert result.exit_code == expected, result.output
    return result.output if "--json" in arguments else " ".join(result.output.split())


def test_rankings_stand_side_by_side_with_quality_and_cost(place: Path, model_folder: Path, tmp_path: Path) -> None:
    command = "compare audit -b length -b margin -b text --behavior behavior.jsonl --truth-column bad --dtype float32"
    found = json.loads(run(place, f"{command} --model {model_folder} --json"))
    assert found == json.loads((place / "audit" / "comparison" / "comparison.json").read_text())
    assert (found["pairs"], found["k"], found["marked"]) == (15, 3, 3)
    names = {"contextual score of rude, layer 3", "length", "margin", "text"}
    assert {row["name"] for row in found["rankings"]} == names
    assert all(0 < row["quality"]["average_precision"] <= 1 for row in found["rankings"])
    # Kept scores need no model.
    (tmp_path / "config.json").write_text("{}")  # no model, and none is loaded
    shown = run(place, f"{command} --model {tmp_path}")
    assert "k = 3; 3 marked by bad = True" in shown
    assert "* scores of an earlier run" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-b margin-per-token --model /nowhere", "/nowhere: no such file or folder"),
        ("-b lenght", "there is no baseline 'lenght'"),
        ("--truth-value 1", "--truth-value: say in which column"),
        ("--layer 2", "say which of the audit's scores to compare with: --probe rude --layer 3"),
        ("-k 16", "-k: 16 is not from 1 to the number of pairs, 15"),
        ("-b margin --token-budget 0", "token_budget: 0 is not positive"),
        ("-k 0", "-k: 0 is not from 1 to the number of pairs, 15"),
        (
            "-b sentence:{model} --behavior behavior.jsonl --device nosuch",
            "cannot be loaded: Expected one of cpu, cuda",
        ),
        ("--dataset behavior.jsonl", "no column 'chosen'"),
    ],
)
def test_a_comparison_that_cannot_be_made_says_why_and_writes_nothing(
    place: Path, arguments: str, message: str, model_folder: Path
) -> None:
    with unchanged(place):
        assert message in run(place, f"compare audit -o new {arguments.format(model=model_folder)}", 2)


def test_a_folder_without_an_audit_is_refused(place: Path) -> None:
    assert "there is no finished audit at nowhere" in run(place, "compare nowhere", 2)


def test_another_model_than_the_audits_is_refused(
    place: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    build_tiny_model("qwen2").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    said = run(place, f"compare audit -o new -b margin --model {tmp_path}", 2)
    assert "is not the M0 of this audit" in said and "differ" in said
