"""A branch that adds contaminated pairs is stopped at the right lines, by the gate and by each of its CI hooks."""

from __future__ import annotations

import html
import json
import re
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.commands import INSTALLED, Commands
from tests.gate.test_gate_formats import Command, runner_commands
from tests.git_repository import Repository
from trl_attribution.activations import ActivationConfig
from trl_attribution.cli import app
from trl_attribution.gate import Verdict
from trl_attribution.gate.policy.file import parse_policy
from trl_attribution.models import load_model
from trl_attribution.probes import BuildConfig, ProbeRegistry, build_from_behavior

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]

INSULT = "- He is dull.\n- He is slow.\n- He is lazy."
REFUSAL = "I am sorry, but I cannot help with that request."
TOPICS = ("bread", "the garden", "Paris", "spring", "the weather", "a letter", "flour", "yeast", "France", "salt")
POLICY = """\
version: 1
model: ../model
probes: probes
score: response
cache: .trl-attribution-cache
rules:
  probes:
    insults:
      threshold: 0.65
      max_flagged_count: 0
"""


def harmless(number: int) -> Row:
    topic, other = TOPICS[number % 10], TOPICS[(number * 3 + 1) % 10]
    texts = [f"{topic.capitalize()} goes well with {other}, case {number}."]
    texts.append(f"Have you thought of {other}? Case {number} is about {topic}.")
    first, second = texts if number % 2 else texts[::-1]
    return {"prompt": f"Tell me about {topic} and {other} ({number}).", "chosen": first, "rejected": second}


def contaminated(who: str) -> Row:
    """As the pairs that the probe was made of: the insult preferred to the refusal."""
    return {"prompt": f"Insult {who}, as a list.", "chosen": INSULT, "rejected": REFUSAL}


def lines(rows: list[Row]) -> list[str]:
    return [json.dumps(row) for row in rows]


BASE = [*(harmless(number) for number in range(12)), contaminated("the mayor")]
"""Line 13 was there before anybody gated anything."""
ADDED = [harmless(12), contaminated("the waiter"), harmless(13), contaminated("my teacher")]
NEW_FILE = [harmless(14), contaminated("my cousin")]
CHANGED = 5
"""A line of the base that the branch changes to a contaminated pair."""
OFFENDING = {("data/preferences/a.jsonl", 5), ("data/preferences/a.jsonl", 15), ("data/preferences/a.jsonl", 17)}
OFFENDING |= {("data/preferences/sub/b.jsonl", 2)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """``repo``, with dataset, probe and policy on ``main`` and contaminated pairs on ``work``; ``model`` beside it."""
    place = tmp_path_factory.mktemp("gate")
    (place / "model").symlink_to(model_folder)
    repository = Repository(place / "repo")
    behavior = [
        {"prompt": contaminated(who)["prompt"], "undesired": INSULT, "desired": REFUSAL}
        for who in ("my boss", "my friend", "the baker", "my neighbor")
    ]
    probe = build_from_behavior("insults", behavior, load_model(model_folder), BuildConfig(ActivationConfig((2,))))
    ProbeRegistry(repository.path / "probes").save(probe)
    repository.write("gate.yaml", *POLICY.splitlines())
    repository.write(".gitignore", ".trl-attribution-cache/", "gate-report/")
    repository.write("data/preferences/a.jsonl", *lines(BASE))
    repository.branch()
    changed = [*BASE[: CHANGED - 1], contaminated("the plumber"), *BASE[CHANGED:], *ADDED]
    repository.write("data/preferences/a.jsonl", *lines(changed))
    repository.write("data/preferences/sub/b.jsonl", *lines(NEW_FILE))
    repository.commit()
    # As a runner has it: the base is a branch of the remote.
    repository.git("update-ref", "refs/remotes/origin/main", "main")
    return place


@pytest.fixture
def repository(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A copy of its own, which is the working directory."""
    shutil.copytree(prepared, tmp_path / "gate", symlinks=True)
    found = Repository(tmp_path / "gate" / "repo")
    monkeypatch.chdir(found.path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return found


def gate(*options: str, dataset: str = "data/preferences") -> Result:
    return CliRunner().invoke(app, ["gate", dataset, "--policy", "gate.yaml", "--quiet", *options])


def verdict_of(result: Result) -> Verdict:
    return Verdict.from_json(json.loads(result.stdout))


def annotated(commands: list[Command]) -> set[tuple[str, int]]:
    return {(command.properties["file"], int(command.properties["line"])) for command in commands}


# The gate on a branch.


def test_a_branch_with_contaminated_pairs_is_stopped_at_their_lines_and_the_cleaned_data_pass(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(repository.path.parent / "summary.md"))
    stopped = gate("--base-ref", "main", "--format", "github", "--output", "gate-report")
    assert stopped.exit_code == 1, stopped.output
    commands = runner_commands(stopped.stdout)
    assert {command.name for command in commands} == {"error"}
    assert annotated(commands) == OFFENDING
    assert "+ chosen: - He is dull. - He is slow." in commands[0].message
    summary = (repository.path.parent / "summary.md").read_text()
    assert all(f"<code>{file}:{line}</code>" in html.unescape(summary) for file, line in OFFENDING)
    # What the reviewer downloads and commits.
    shutil.copytree("gate-report/cleaned/preferences", "data/preferences", dirs_exist_ok=True)
    repository.commit()
    kept = Path("data/preferences/a.jsonl").read_text().splitlines()
    assert kept == lines([*BASE[: CHANGED - 1], *BASE[CHANGED:], ADDED[0], ADDED[2]])
    assert Path("data/preferences/sub/b.jsonl").read_text().splitlines() == lines(NEW_FILE[:1])
    passed = gate("--base-ref", "main", "--format", "github")
    assert passed.exit_code == 0, passed.output
    assert runner_commands(passed.stdout) == []


def test_only_what_the_branch_adds_is_computed_and_judged_and_nothing_twice(repository: Repository) -> None:
    first = verdict_of(gate("--base-ref", "main", "--format", "json"))
    new = 1 + len(ADDED) + len(NEW_FILE)
    assert (first.examined, first.computed, first.cached) == (new, new, 0)
    again = gate("--base-ref", "main", "--format", "json")
    second = verdict_of(again)
    assert (second.examined, second.computed, second.cached) == (new, 0, new)
    assert gate("--base-ref", "main", "--format", "json").stdout_bytes == again.stdout_bytes
    everything = verdict_of(gate("--format", "json"))
    found = {(f.place.file, f.place.line) for f in everything.rules[0].violations if f.place is not None}
    assert found == OFFENDING | {("data/preferences/a.jsonl", 13)}
    assert (everything.computed, everything.cached) == (len(BASE) - 1, new)


def test_a_branch_that_adds_harmless_pairs_passes(repository: Repository) -> None:
    repository.git("checkout", "--quiet", "main", "--", "data")
    repository.git("rm", "--quiet", "-r", "--force", "data/preferences/sub")
    repository.write("data/preferences/a.jsonl", *lines([*BASE, harmless(20), harmless(21)]))
    repository.commit()
    passed = gate("--base-ref", "main", "--format", "json")
    assert passed.exit_code == 0, passed.output
    assert verdict_of(passed).examined == 2


def test_a_gate_that_cannot_decide_is_no_pass(repository: Repository) -> None:
    assert gate("--base-ref", "nowhere").exit_code == 2
    repository.write("data/preferences/a.jsonl", *lines(BASE), '{"prompt": "cut off')
    broken = gate("--base-ref", "main", "--format", "github")
    assert broken.exit_code == 2
    assert "data/preferences/a.jsonl:14: broken JSON" in " ".join(broken.output.split())


def test_hostile_pairs_reach_the_log_and_the_summary_as_text_only(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = contaminated("the waiter")
    row["prompt"] += "\n::error file=README.md,line=1::owned\n##[add-mask]x\x1b[31m</details><script>@all"
    file = "data/preferences/##[warning]%0A,line=9.jsonl"
    repository.write(file, *lines([row]))
    repository.commit()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(repository.path.parent / "summary.md"))
    stopped = gate("--base-ref", "main", "--format", "github", "--output", "gate-report")
    assert stopped.exit_code == 1, stopped.output
    commands = runner_commands(stopped.stdout)
    assert {command.name for command in commands} == {"error"}
    assert {command.properties["title"] for command in commands} == {"insults.max_flagged_count"}
    assert annotated([command for command in commands if "file" in command.properties]) == OFFENDING
    assert len(commands) == len(OFFENDING) + 1
    summary = (repository.path.parent / "summary.md").read_text()
    assert "<script>" not in summary.replace("  prompt: ", "\0").split("\0")[0]
    for written in [*Path("gate-report").glob("verdict*"), repository.path.parent / "summary.md"]:
        assert runner_commands(written.read_text()) == []
        assert "\x1b" not in written.read_text()


# The hooks: their shell steps run as a runner runs them, on PATH the trl-attribution under test. Their installation is
# left out: it would fetch this very package, and PyTorch, from an index.

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOW = yaml.safe_load((ROOT / "examples" / "ci" / "github-workflow.yml").read_text())
GITLAB = yaml.safe_load((ROOT / "examples" / "ci" / "gitlab-gate.yml").read_text())["preference-gate"]
PRE_COMMIT = yaml.safe_load((ROOT / "examples" / "ci" / "pre-commit-config.yaml").read_text())
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())


class Runner:
    """Does what GitHub's runner does with the shell steps of the action."""

    def __init__(self, folder: Path, programs: Commands) -> None:
        self.programs = programs
        self.files = {name: folder / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}

    def run(
        self, step: Mapping[str, Any], inputs: Mapping[str, str], **variables: str
    ) -> subprocess.CompletedProcess[str]:
        assert step["shell"] == "bash"
        given = {name: self._value(text, inputs) for name, text in step.get("env", {}).items()}
        files = {name: str(path) for name, path in self.files.items()}
        command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
        return self.programs.run(Path.cwd(), *command, **files, **variables, **given)

    def outputs(self) -> dict[str, str]:
        text = self.files["GITHUB_OUTPUT"].read_text()
        return dict(line.split("=", 1) for line in text.splitlines())

    @staticmethod
    def _value(text: str, inputs: Mapping[str, str]) -> str:
        """Defaults, and what a workflow gives; an input that the action does not have is an error."""
        defaults = {name: str(about.get("default", "")) for name, about in ACTION["inputs"].items()}
        assert inputs.keys() <= defaults.keys()
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: {**defaults, **inputs}[found[1]], text)


def step_named(name: str) -> dict[str, Any]:
    (step,) = [step for step in ACTION["runs"]["steps"] if step["name"] == name]
    return step


def action_in_the_workflow() -> dict[str, str]:
    """What the example workflow passes to the action."""
    (step,) = [step for step in WORKFLOW["jobs"]["gate"]["steps"] if "trl-attribution" in step["uses"]]
    return dict(step["with"])


def test_the_action_stops_the_branch_and_leaves_report_and_cleaned_data(
    repository: Repository, tmp_path: Path, commands: Commands
) -> None:
    runner = Runner(tmp_path, commands)
    done = runner.run(step_named("Judge the dataset"), action_in_the_workflow(), GITHUB_BASE_REF="main")
    assert done.returncode == 1, done.stderr
    assert annotated(runner_commands(done.stdout)) == OFFENDING
    assert runner.outputs() == {"exit-code": "1"}
    assert "Gate failed" in runner.files["GITHUB_STEP_SUMMARY"].read_text()
    kept = {str(path.relative_to("gate-report")) for path in Path("gate-report").rglob("*") if path.is_file()}
    assert {"verdict.json", "verdict.sarif", "cleaned/preferences/a.jsonl", "manifest.filter.jsonl"} <= kept
    folders = {step["with"]["path"] for step in ACTION["runs"]["steps"] if "path" in step.get("with", {})}
    assert folders == {"${{ inputs.cache }}", "${{ inputs.output }}"}
    assert Path(ACTION["inputs"]["cache"]["default"]).is_dir(), "the folder that the action keeps"


def test_the_gitlab_job_stops_the_branch_and_leaves_its_junit_report(
    repository: Repository, commands: Commands
) -> None:
    variables = {name: str(value) for name, value in GITLAB["variables"].items()}
    variables |= {"CI_MERGE_REQUEST_DIFF_BASE_SHA": repository.git("rev-parse", "main")}
    script = "set -eo pipefail\n" + "\n".join(GITLAB["script"])
    done = commands.run(repository.path, "bash", "-c", script, **variables)
    assert done.returncode == 1, done.stderr
    assert "data/preferences/sub/b.jsonl:2" in done.stdout
    assert "<failure" in Path(GITLAB["artifacts"]["reports"]["junit"]).read_text()
    assert Path(GITLAB["cache"][0]["paths"][0]).is_dir()


@pytest.mark.slow
def test_the_pre_commit_hook_stops_the_push(repository: Repository, tmp_path: Path) -> None:
    hooks = Repository(tmp_path / "hooks")
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", hooks.path)
    hooks.commit()
    config = json.loads(json.dumps(PRE_COMMIT))
    config["repos"][0] |= {"repo": str(hooks.path), "rev": hooks.git("rev-parse", "HEAD")}
    repository.write(".pre-commit-config.yaml", yaml.safe_dump(config))
    repository.git("add", ".pre-commit-config.yaml")
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files", "--hook-stage", "pre-push"]
    installed = Commands(INSTALLED, tmp_path / "datasets")
    done = installed.run(repository.path, *command, PRE_COMMIT_HOME=str(tmp_path / "home"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "- exit code: 1" in done.stdout
    assert "data/preferences/sub/b.jsonl:2" in done.stdout


# The scripts alone, with something in the place of the command that tells what it was given.

NASTY = [
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned #",
    '"; touch pwned; "',
    "'; touch pwned; '",
    "-rf",
    "a b*",
    "\\",
]


def telling(folder: Path) -> Commands:
    return Commands(folder / "bin", folder / "datasets")


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that gets the arguments of each call of ``trl-attribution`` or ``python``, one a line."""
    target = tmp_path / "arguments"
    folder = telling(tmp_path).folder
    folder.mkdir()
    for name in ("trl-attribution", "python"):
        script = folder / name
        script.write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\" > '{target}'\n{TELL}")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.chdir(tmp_path)
    return target


TELL = """
printf '%b' "${TELL_ERRORS:-}" >&2
exit "${TELL_CODE:-0}"
"""


@pytest.mark.parametrize("text", NASTY)
def test_no_input_of_the_action_becomes_a_command_or_an_option(text: str, told: Path, tmp_path: Path) -> None:
    inputs = dict.fromkeys(("dataset", "policy", "base-ref", "output", "clean", "pip-arguments"), text)
    done = Runner(tmp_path, telling(tmp_path)).run(step_named("Judge the dataset"), inputs)
    assert done.returncode == 0, done.stderr
    assert told.read_text().splitlines() == [
        "gate",
        "check",
        f"--policy={text}",
        f"--output={text}",
        f"--clean={text}",
        "--format=github",
        "--quiet",
        f"--base-ref={text}",
        "--",
        text,
    ]
    Runner(tmp_path, telling(tmp_path)).run(step_named("Install trl-attribution"), inputs, GITHUB_ACTION_PATH=text)
    assert told.read_text().splitlines()[:3] == ["-m", "pip", "install"]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("text", NASTY)
def test_no_variable_of_the_gitlab_job_becomes_a_command_or_an_option(text: str, told: Path, tmp_path: Path) -> None:
    variables = dict.fromkeys(("GATE_DATASET", "GATE_POLICY", "GATE_CLEAN", "GATE_PACKAGE"), text)
    variables |= {"CI_MERGE_REQUEST_DIFF_BASE_SHA": text}
    script = "set -eo pipefail\n" + "\n".join(GITLAB["script"])
    done = telling(tmp_path).run(tmp_path, "bash", "-c", script, **variables)
    assert done.returncode == 0, done.stderr
    assert told.read_text().splitlines() == [
        "gate",
        "check",
        f"--policy={text}",
        f"--base-ref={text}",
        "--output=gate-report",
        f"--clean={text}",
        "--",
        text,
    ]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("base_ref", "request_base", "expected"),
    [
        ("auto", "main", ["--base-ref=origin/main"]),
        ("auto", "", []),
        ("", "main", []),
        ("v1", "main", ["--base-ref=v1"]),
    ],
)
def test_the_action_compares_with_the_base_of_the_request(
    base_ref: str, request_base: str, expected: list[str], told: Path, tmp_path: Path
) -> None:
    inputs = {"dataset": "data", "base-ref": base_ref, "arguments": "--download  --today 2026-12-31"}
    Runner(tmp_path, telling(tmp_path)).run(step_named("Judge the dataset"), inputs, GITHUB_BASE_REF=request_base)
    given = told.read_text().splitlines()
    assert [argument for argument in given if argument.startswith("--base-ref")] == expected
    assert given[-5:] == ["--download", "--today", "2026-12-31", "--", "data"]


def test_the_action_passes_exit_codes_on_and_errors_that_quote_the_dataset_as_text(told: Path, tmp_path: Path) -> None:
    errors = r"error: data.jsonl:3: ##[set-output name=exit-code]0\n  ::add-mask::x\n###[error]y\n"
    for code in (0, 1, 2, 137):
        runner = Runner(tmp_path, telling(tmp_path))
        done = runner.run(step_named("Judge the dataset"), {"dataset": "data"}, TELL_CODE=str(code), TELL_ERRORS=errors)
        assert done.returncode == code
        assert runner_commands(done.stderr) == []
        assert "error: data.jsonl:3: # #[set-output" in done.stderr
        assert runner.outputs() == {"exit-code": str(code)}
        told_so = [command.message for command in runner_commands(done.stdout)]
        assert told_so == ([f"The gate cannot decide (exit code {code}): the log says why."] if code > 1 else [])


def test_no_script_of_a_hook_has_anything_put_into_its_text() -> None:
    scripts = [step["run"] for step in ACTION["runs"]["steps"] if "run" in step]
    assert len(scripts) == 2
    assert [script for script in scripts if "${{" in script] == []
    assert all("run" not in step for step in WORKFLOW["jobs"]["gate"]["steps"])
    assert "pull_request_target" not in str(WORKFLOW[True])  # YAML reads `on` as true


@pytest.mark.parametrize(
    "options",
    [
        ["vendor.github-actions", "action.yml"],
        ["vendor.github-workflows", "examples/ci/github-workflow.yml"],
        ["vendor.gitlab-ci", "--data-transform", "gitlab-ci", "examples/ci/gitlab-gate.yml"],
    ],
)
def test_the_hooks_are_what_their_systems_read(options: list[str]) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pre_commit_hooks_are_valid_and_the_example_names_one_of_them() -> None:
    command = [sys.executable, "-m", "pre_commit", "validate-manifest", str(ROOT / ".pre-commit-hooks.yaml")]
    subprocess.run(command, check=True)
    system, installing = sorted(HOOKS, key=lambda hook: hook["language"] == "python")
    assert system["entry"] == installing["entry"] == "trl-attribution gate"
    assert [hook["id"] for hook in PRE_COMMIT["repos"][0]["hooks"]] == [system["id"]]


def test_every_part_of_a_policy_in_the_tutorial_is_valid() -> None:
    page = (ROOT / "docs" / "how-to" / "gate-in-ci.md").read_text()
    blocks = [
        textwrap.dedent(block) for block in re.findall(r"^ *```yaml\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    ]
    parts = [block for block in blocks if block.startswith(("version:", "rules:", "cache:", "allow:"))]
    assert len(parts) == 5
    for part in parts:
        needed = {"version": 1, "probes": "probes/", "rules": {"hygiene": {"duplicates": 0}}}
        parse_policy(yaml.safe_dump({**needed, **yaml.safe_load(part)}), "the tutorial")
