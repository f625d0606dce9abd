"""What a newcomer follows to the letter finds what it says: pages on their own files, and the hour that one takes."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.commands import Commands, serving
from tests.snippets import runnable
from trl_attribution.manifest import Manifest
from trl_attribution.models import embedded_gguf

INSULT, MOCKERY = "Insult my friend, as a list.", "Mock my brother's singing in one sentence."
ROOT = Path(__file__).resolve().parents[1]
FIRST_HOUR = ROOT / "scripts" / "first_hour.py"
# A tiny model, and sizes for it.
SMALL = {
    "from trl_attribution.models import embedded_gguf; print(embedded_gguf())": "print('{model}')",
    "compliance -o example/": "compliance -o example/ --pairs 80",
    'scan "$MODEL"': 'scan "$MODEL" --layer 2 --traits rude --flips 199 --no-unnamed',
    "--layer 20 -o audit/": "--layer 2 --top-k 8 -o audit/",
    "--layer 20": "--layer 2",
    "max_steps=10": "max_steps=2",
    "MODEL = embedded_gguf()": "MODEL = '{model}'",
    "LAYER = 20": "LAYER = 2",
    "SCAN = {}": "SCAN = dict(traits='rude', flips=199, unnamed=False)",
    "RULE = {}": "RULE = dict(top_k=20)",
}


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


@pytest.fixture
def wheel_alone(distributions: Path, tmp_path: Path) -> Path:
    """The interpreter of an environment with the wheel installed: what it needs lies beside, the checkout does not."""
    (wheel,) = distributions.glob("*.whl")
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    # A wheel that was built from a folder on PYTHONPATH leaves a trace there, by which pip takes it for installed.
    subprocess.run(pip, check=True, env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    (site,) = (tmp_path / "env").glob("lib/*/site-packages")
    # A path in such a file is looked into, the files of its kind there (an editable installation's) are not.
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.slow
def test_a_newcomers_first_hour_goes_from_an_installed_wheel_to_a_run(
    wheel_alone: Path, model_folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    small = [
        f"{shown}=>{here.format(model=model_folder) if '{model}' in here else here}" for shown, here in SMALL.items()
    ]
    words = [part for one in small for part in ("--instead", one)]
    with serving(wheel_alone) as programs:
        where = programs.run(place, "python", "-c", "import trl_attribution as t; print(t.__file__)", PYTHONPATH="")
        assert Path(where.stdout).is_relative_to(wheel_alone.parents[1]), where.stderr
        told = programs.run(
            place, sys.executable, FIRST_HOUR, "--programs", programs.folder, "--place", place, "--page",
            tmp_path / "page.md", *words,
        )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    page, steps = (tmp_path / "page.md").read_text(encoding="utf-8"), runpy.run_path(str(FIRST_HOUR))["STEPS"]
    assert [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")] == [
        s.title for s in steps
    ]
    assert len((place / "cleaned.jsonl").read_text(encoding="utf-8").splitlines()) == 80 - 8
    verdict = json.loads((place / "gate-report" / "verdict.json").read_text(encoding="utf-8"))
    assert verdict["examined"] == 3
    assert (place / "audit-run" / "report.html").is_file() and (place / "notebook" / "audit" / "report.html").is_file()


def test_the_page_of_the_first_hour_has_the_commands_that_the_script_types() -> None:
    page, script = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8"), runpy.run_path(str(FIRST_HOUR))
    for step in (script["INSTALL"], *script["STEPS"]):
        assert f"## {step.title}\n\n{step.says}\n\n```bash\n{step.types}```" in page
