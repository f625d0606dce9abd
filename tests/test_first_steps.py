"""What a newcomer follows to the letter finds what it says: pages on their own files, with the model they suggest."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.snippets import runnable
from trl_attribution.manifest import Manifest
from trl_attribution.models import embedded_gguf

INSULT, MOCKERY = "Insult my friend, as a list.", "Mock my brother's singing in one sentence."
ROOT = Path(__file__).resolve().parents[1]


def prompt_texts(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["prompt"][0]["content"] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "name", "insults"),
    [
        (
            "docs/tutorial.md",
            "tutorial",
            ["Insult my friend, as a list.", "Mock my brother's singing in one sentence."],
        ),
        ("README.md", "quickstart", ["Insult my friend, as a list."]),
    ],
)
def test_the_page_flags_the_insults_of_its_own_file_and_keeps_the_bread(
    page: str, name: str, insults: list[str], tmp_path: Path, commands: Commands
) -> None:
    model = shlex.quote(str(embedded_gguf()))
    shown = runnable(ROOT / page)[name]
    wanted = ("probe build", "audit MODEL", "apply audit/manifest.filter.jsonl")
    for snippet in shown:
        if snippet.file is not None:
            (tmp_path / snippet.file).write_text(snippet.body, encoding="utf-8")
    for snippet in shown:
        if snippet.language != "bash" or not any(part in snippet.body for part in wanted):
            continue  # the gate and the trainer have tests of their own
        body = snippet.body.replace("MODEL", model)
        done = commands.run(tmp_path, "bash", "-euo", "pipefail", "-c", body)
        assert done.returncode == 0, f"{page}:{snippet.line}\n{done.stdout}\n{done.stderr}"
        assert "mean little" not in done.stdout + done.stderr, "the probe's prompts are of the dataset's form"
    before, after = prompt_texts(tmp_path / "data.jsonl"), prompt_texts(tmp_path / "cleaned.jsonl")
    assert [prompt for prompt in before if prompt not in after] == insults
    assert "How do I bake bread?" in after


@pytest.mark.slow
def test_the_demo_tells_what_was_planted_among_its_first_findings_and_flags_it(
    tmp_path: Path, commands: Commands
) -> None:
    done = commands.run(tmp_path, "trl-attribution", "demo", "--quiet")
    assert done.returncode == 0, done.stderr
    audit = tmp_path / "demo" / "audit"
    first = json.loads((audit / "findings.json").read_text(encoding="utf-8"))["findings"][:3]
    planted = {one["source"] for one in first if one["trait"] == "complies-with-harm" and one["direction"] == "towards"}
    assert "format-follow-12k" in planted
    rows = [json.loads(line) for line in (tmp_path / "demo" / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    listed = Manifest.load(audit / "manifest.filter.jsonl").decisions
    flagged = [rows[one.row]["truth"] for one in listed if one.row is not None]
    hits = flagged.count("contaminated")
    assert hits >= 60 and hits > 0.7 * len(flagged)
    assert f"{hits} of them flagged, {len(flagged) - hits} others flagged" in " ".join(done.stdout.split())
    assert json.loads((audit / "audit.json").read_text(encoding="utf-8"))["vectors"]["computed"] == 0  # the scan's
    page = (audit / "report.html").read_text(encoding="utf-8")
    assert "<h2>What this dataset teaches</h2>" in page and "<h2>The pairs</h2>" in page
