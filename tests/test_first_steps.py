"""What a newcomer follows to the letter finds what it says: pages on their own files, with the model they suggest."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.snippets import runnable
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
