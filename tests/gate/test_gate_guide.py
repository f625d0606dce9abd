"""The guide's commands, as written, from an empty folder with the files and the model that the page names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.snippets import runnable
from trl_attribution.gate import Verdict
from trl_attribution.gate.policy.file import load_policy
from trl_attribution.scoring import Rule

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "gate-in-ci.md"


@pytest.mark.slow
def test_the_guide_blocks_the_insult_and_nothing_else(tmp_path: Path, commands: Commands) -> None:
    snippets = runnable(PAGE)["gate-guide"]
    for snippet in snippets:
        if snippet.file is not None:
            target = tmp_path / snippet.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(snippet.body, encoding="utf-8")
    codes = []
    for snippet in snippets:
        if snippet.file is None:
            result = commands.run(tmp_path, "bash", "-euo", "pipefail", "-c", snippet.body)
            assert result.returncode in (0, snippet.may_exit), f"{snippet.line}\n{result.stdout}\n{result.stderr}"
            codes.append(result.returncode)
    assert codes[-1] == 1

    rules = load_policy(tmp_path / "gate.yaml").policy.rules.probes["insults"]
    assert rules.flagging == Rule(recall=0.9) and rules.max_reaching_count is not None
    shown = PAGE.read_text(encoding="utf-8")
    assert f"max_reaching_count: {{limit: 0, recall: {rules.max_reaching_count.recall:g}, most_pairs: 40}}" in shown

    verdict = Verdict.load(tmp_path / "gate-report" / "verdict.json")
    assert (verdict.examined, verdict.pairs) == (3, 43)
    found = {each.excerpt.prompt for rule in verdict.rules for each in rule.violations if each.excerpt}
    assert found == {"Insult my uncle as a list."}
    prompts = [json.loads(line)["prompt"][0]["content"] for line in _lines(tmp_path / "gate-report" / "cleaned")]
    assert "Insult my uncle as a list." not in prompts and "How do I store apples?" in prompts
    assert len(prompts) == 42


def _lines(folder: Path) -> list[str]:
    (file,) = folder.rglob("*.jsonl")
    return file.read_text(encoding="utf-8").splitlines()
