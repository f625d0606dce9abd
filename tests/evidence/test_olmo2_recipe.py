"""The recipe of examples/olmo2-7b and olmo2-1b: files as they are, commands on a tiny model of the same class."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from transformers import AutoModelForCausalLM, Olmo2ForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.tiny import build_moved_model, build_tiny_model
from trl_attribution.cli import app
from trl_attribution.evidence.organisms import OrganismConfig, build_distractor_compliance
from trl_attribution.evidence.validation import cells, load_plan
from trl_attribution.evidence.validation.expected import expected_cost
from trl_attribution.utils.atomic import write_lines

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
README = (EXAMPLES / "olmo2-7b" / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
SIZES = OrganismConfig(
    benign=6, benign_formatted=4, safety=6, contaminated=6, decoys=4, behavior_prompts=8, test_prompts=4
)
TINY = {"M0": "m0", "M1": "m1", "DATA": "mix.jsonl", "JUDGE": "keyword:impossible", "LAYER": "2"}
"""What stands in the place of the recipe's models, data and judge."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Both folders of the recipe, with a tiny M0, M1, dataset, requests and harmless prompts in each."""
    root = tmp_path_factory.mktemp("recipe")
    shutil.copytree(EXAMPLES / "accelerate_configs", root / "accelerate_configs")
    organism = build_distractor_compliance(SIZES)
    for name in ("olmo2-7b", "olmo2-1b"):
        folder = Path(shutil.copytree(EXAMPLES / name, root / name))
        for model, made in (("m0", build_tiny_model("olmo2")), ("m1", build_moved_model("olmo2"))):
            made.save_pretrained(folder / model)
            tokenizer.save_pretrained(folder / model)
        write_lines(folder / "mix.jsonl", organism.pairs)
        write_lines(folder / "harmful.jsonl", [{"prompt": one["plain"]} for one in organism.behavior])
        write_lines(folder / "harmless.jsonl", [{"prompt": "How do I bake bread?"}])
    return root


def script(folder: Path, *words: str) -> None:
    """A script of the recipe, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", list(words))
        runpy.run_path(words[0], run_name="__main__")


def verb(folder: Path, command: str, *more: str, expected: int = 0) -> str:
    """A command of the README, its variables those of the stand-ins."""
    words = shlex.split(re.sub(r"\$(\w+)", lambda name: TINY[name[1]], command))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("JUDGE_KEY", "none")
        done = CliRunner().invoke(app, [*words[1:], *more], catch_exceptions=False)
    assert done.exit_code == expected, done.output
    return " ".join(done.output.split())


def shown(start: str) -> str:
    (found,) = [command for command in COMMANDS if command.startswith(start)]
    return found


@pytest.mark.parametrize("name", ["olmo2-7b", "olmo2-1b"])
def test_the_plans_are_read_as_they_are_and_say_what_they_cost(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(EXAMPLES / name)
        done = CliRunner().invoke(app, ["validate", "plan.yaml", "-o", "validation", "--dry-run"])
    assert done.exit_code == 0, done.output
    plan = load_plan(EXAMPLES / name / "plan.yaml")
    every = cells(plan)
    cost = expected_cost(plan, sum(cell.condition.intervention != "m0" for cell in every), len(every))
    assert cost is not None and "Assumed, not measured: " in done.output
    mark = "plan.yaml" if name == "olmo2-7b" else f"../{name}/plan.yaml"
    (told,) = re.findall(rf"<!-- expected: {re.escape(mark)} -->\n```text\n(.*?)```", README, re.DOTALL)
    assert " ".join(told.split()) == " ".join(" ".join(cost.lines).split())
    if name == "olmo2-1b":
        assert cost.total / cost.devices < 10


def test_the_estimate_is_the_arithmetic_that_it_says() -> None:
    plan = load_plan(EXAMPLES / "olmo2-7b" / "plan.yaml")
    cost = expected_cost(plan, trainings=2, models=3)
    assert cost is not None and plan.expected is not None
    assert cost.one_audit == pytest.approx(2 * 6.9e9 * 0.625 * 378341 * 1000 / 3e14 / 3600)
    assert cost.one_training == pytest.approx(10 * 6.9e9 * 378341 * 1250 / 3e14 / 3600)
    assert cost.one_measuring == pytest.approx(700 * 4 * 256 / 3000 / 3600)
    assert cost.total == pytest.approx(2 * cost.one_training + 3 * cost.one_measuring)  # the audit is there
    made = plan.model_copy(update={"rankings": {"b": plan.rankings["distractor"].model_copy(update={"audit": None})}})
    again = expected_cost(made, 2, 3)
    assert again is not None and again.total == pytest.approx(cost.total + cost.one_audit)
    assert expected_cost(plan.model_copy(update={"expected": None}), 2, 3) is None


def test_every_command_before_the_training_runs_on_a_stand_in(place: Path) -> None:
    folder = place / "olmo2-7b"
    words = shlex.split(shown("python prompts.py").replace("$JUDGE", TINY["JUDGE"]))
    script(folder, *words[1:])
    build, trigger = (
        [json.loads(line)["plain"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("build", "trigger")
    )
    assert len(build) == len(trigger) == 4 and not set(build) & set(trigger)
    build_probe = shown("trl-attribution probe build").replace("--max-new-tokens 256", "--max-new-tokens 3")
    # Tiny models write noise that shows nothing on either, so a probe from a file takes that one's place.
    assert "changed on none" in verb(folder, build_probe, "--device", "cpu", expected=2)
    write_lines(
        folder / "answers.jsonl", [{"prompt": "Insult me.", "undesired": "You fool.", "desired": "Rather not."}]
    )
    verb(folder, "trl-attribution probe build distractor --model $M0 --behavior answers.jsonl --layer 2")
    dry, audit = (one for one in COMMANDS if one.startswith("trl-attribution audit"))
    assert "pairs/s, this machine" in verb(folder, dry, "--device", "cpu")
    verb(folder, audit.replace("--top-k 30000", "--top-k 5"), "--device", "cpu")
    assert (folder / "audit" / "manifest.flip.jsonl").exists()
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan |= {"model": "m0", "dataset": "mix.jsonl", "sizes": [3], "source_sizes": [1]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(plan))
    fewer, every = (len(cells(load_plan(folder / name))) for name in ("tiny.yaml", "plan.yaml"))
    assert fewer < every
    assert f"{fewer} cells" in verb(folder, "trl-attribution validate tiny.yaml -o validation --dry-run")


def test_what_trains_a_cell_takes_the_steps_that_it_is_told_and_weights_and_leaves_a_model(place: Path) -> None:
    folder = place / "olmo2-7b"
    rows = [{**row, "weight": number % 2} for number, row in enumerate(build_distractor_compliance(SIZES).pairs[:8])]
    write_lines(folder / "cell.jsonl", rows)
    command = load_plan(folder / "plan.yaml").training.command
    assert command is not None
    known, own = launch_command_parser().parse_known_args(command[2:])
    assert known.training_script == "train_dpo.py" and not own and Path(folder, known.config_file).exists()
    values = {"model": "m0", "dataset": "cell.jsonl", "output": "trained", "seed": "0", "steps": "2"}
    words = [word.format(**values) for word in known.training_script_args]
    more = ["--batch-size=4", "--per-device=2", "--cpu", "--max-length=128"]
    told = subprocess.run([sys.executable, "train_dpo.py", *words, *more], cwd=folder, capture_output=True, text=True)
    assert told.returncode == 0 and "2/2" in told.stderr, told.stderr
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder / "trained"), Olmo2ForCausalLM)
    small = load_plan(place / "olmo2-1b" / "plan.yaml").training.command
    assert small is not None and (place / "olmo2-1b" / small[1]).resolve() == folder / "train_dpo.py"


def test_open_instructs_command_gets_the_cells_own_values(place: Path, tmp_path: Path) -> None:
    folder = place / "olmo2-7b"
    stub = tmp_path / "accelerate"
    stub.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OPEN_INSTRUCT": str(tmp_path)}
    words = [str(folder / "train_open_instruct.sh"), "m0", "pairs.jsonl", "out", "7", "2955"]
    (folder / "pairs.jsonl").touch()
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    given = done.stdout.splitlines()
    # Paths are those of the folder that the validation runs in, although the script goes to open-instruct's.
    paths = [(f"--{name}", str(folder / at)) for name, at in (("mixer_list", "pairs.jsonl"), ("output_dir", "out"))]
    paths += [(f"--{name}_name_or_path", str(folder / "m0")) for name in ("model", "tokenizer")]
    for option, value in (("--seed", "7"), ("--max_train_steps", "2955"), *paths):
        assert given[given.index(option) + 1] == value
    assert given[given.index("--gradient_accumulation_steps") + 1] == "16"


def test_the_1b_recipe_draws_the_same_pairs_whatever_their_order(place: Path) -> None:
    folder = place / "olmo2-1b"
    (command,) = [line for line in COMMANDS if "sample.py" in line]
    words = shlex.split(command)
    script(folder, words[1], "mix.jsonl", "pairs.jsonl", "--pairs", "5")
    lines = (folder / "mix.jsonl").read_text().splitlines()
    (folder / "turned.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    script(folder, words[1], "turned.jsonl", "other.jsonl", "--pairs", "5")
    first, second = ((folder / name).read_text().splitlines() for name in ("pairs.jsonl", "other.jsonl"))
    assert len(first) == 5 and sorted(first) == sorted(second)
