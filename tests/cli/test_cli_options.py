"""Options mean in a file what they mean on the command line, and none is taken and then passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.manifest_cases import ids_of, manifest_for, simple_rows, write_jsonl
from trl_attribution.cli import app
from trl_attribution.cli.output import Output
from trl_attribution.manifest import Manifest

ROWS = simple_rows()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder: a dataset, a manifest about it, decisions, prompts, samples, a policy and a hollow model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")  # it cannot be loaded
    (tmp_path / "vector.gguf").touch()
    write_jsonl(tmp_path / "data.jsonl", ROWS)
    made = manifest_for(ROWS, ids_of(ROWS)[:3], "filter")
    made.save(tmp_path / "manifest.jsonl")
    header = {"format": "trl-attribution decisions", "version": 1}
    write_jsonl(tmp_path / "decisions.jsonl", [{**header, "dataset_fingerprint": made.header.dataset_fingerprint}])
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "Hello", "judge": "refuses"}])
    write_jsonl(tmp_path / "samples.jsonl", [{"prompt": "Hello", "completion": "Hi"}])
    (tmp_path / "gate.yaml").write_text("version: 1\nrules: {hygiene: {duplicates: 0}}\n")
    (tmp_path / "probes" / "taken").mkdir(parents=True)
    (tmp_path / "probes" / "taken" / "probe.json").write_text("{}")
    return tmp_path


def run(arguments: str, expected: int = 0) -> str:
    done = CliRunner().invoke(app, arguments.split(), env={"COLUMNS": "300"})
    assert done.exit_code == expected, done.output
    return done.output if "--json" in arguments else " ".join(done.output.split())


def test_a_file_calls_options_what_the_command_line_calls_them(place: Path) -> None:
    (place / "show.yaml").write_text("json: true\nshow: 1\n")
    found = json.loads(CliRunner().invoke(app, ["manifest", "show", "manifest.jsonl", "--config", "show.yaml"]).output)
    assert len(found["decisions"]) == 1


def test_one_value_in_a_file_may_stand_for_a_list(place: Path) -> None:
    (place / "cut.yaml").write_text("sources-from: data.jsonl\noutput: cut.jsonl\nonly: part 0\n")
    run("manifest restrict manifest.jsonl --config cut.yaml")
    assert [decision.row for decision in Manifest.load("cut.jsonl").decisions] == [0, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: [a.jsonl, b.jsonl]", "bad.yaml: output: expected a single value, not a list"),
        ("output: {name: a}", "bad.yaml: output: expected a single value, not a dict"),
        ("as_json: true", "bad.yaml: unknown option as_json; choose from"),
        ("config: more.yaml", "bad.yaml: unknown option config"),
        ("[output]", "bad.yaml: expected a mapping of option names to values"),
    ],
)
def test_a_file_that_says_something_else_is_refused(place: Path, text: str, message: str) -> None:
    (place / "bad.yaml").write_text(text)
    assert message in run("manifest cap manifest.jsonl --config bad.yaml", 2)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ("apply manifest.jsonl data.jsonl -o manifest.jsonl", "manifest.jsonl"),
        ("apply manifest.jsonl data.jsonl --decisions decisions.jsonl -o decisions.jsonl", "decisions.jsonl"),
        ("manifest subtract manifest.jsonl manifest.jsonl -o manifest.jsonl", "manifest.jsonl"),
        ("gate baseline data.jsonl -o data.jsonl", "data.jsonl"),
        ("gate baseline data.jsonl -o gate.yaml", "gate.yaml"),
        ("gate baseline data.jsonl --known-bad manifest.jsonl -o manifest.jsonl", "manifest.jsonl"),
        ("organism express model --trigger prompts.jsonl -o prompts.jsonl", "prompts.jsonl"),
        ("organism pair samples.jsonl --model model -o samples.jsonl", "samples.jsonl"),
        ("probe steer taken --model model --behavior prompts.jsonl -o prompts.jsonl", "prompts.jsonl"),
    ],
)
def test_an_output_never_takes_the_place_of_an_input(place: Path, arguments: str, kept: str) -> None:
    before = (place / kept).read_bytes()
    assert f"--output: {kept} is one of the inputs; choose another file" in run(arguments, 2)
    assert (place / kept).read_bytes() == before


@pytest.mark.parametrize(
    ("verb", "kept"),
    [
        ("merge manifest.jsonl manifest.jsonl", "data.jsonl"),
        ("merge manifest.jsonl --decisions decisions.jsonl", "decisions.jsonl"),
        ("restrict manifest.jsonl --sources-from data.jsonl --only x", "data.jsonl"),
    ],
)
def test_a_manifest_takes_the_place_of_nothing_but_a_manifest(place: Path, verb: str, kept: str) -> None:
    before = (place / kept).read_bytes()
    assert f"--output: {kept} is there already and is no manifest; choose" in run(f"manifest {verb} -o {kept}", 2)
    assert (place / kept).read_bytes() == before


@pytest.mark.parametrize(
    "verb",
    ["organism express model --trigger prompts.jsonl", "probe steer taken --model model --behavior prompts.jsonl"],
)
def test_a_folder_in_the_place_of_a_file_is_refused_before_the_model_is_loaded(place: Path, verb: str) -> None:
    assert "--output: probes is a folder; name a file in it" in run(f"{verb} -o probes", 2)


def test_conversations_are_not_sampled_for_a_file_that_cannot_hold_them(place: Path) -> None:
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    write_jsonl(place / "chat.jsonl", [{"messages": turns}])
    said = run("organism pair chat.jsonl --model model -o pairs.csv", 2)
    assert "pairs.csv: CSV cannot hold conversations" in said


def test_the_demo_does_not_write_over_a_dataset_of_ones_own(place: Path) -> None:
    before = (place / "data.jsonl").read_bytes()
    assert "is a dataset of your own. Name a new folder." in run("demo -o .", 2)
    assert (place / "data.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("audit model data.jsonl -o audit --layer 2 --probe rude", "--probe: without --probes nothing is scored"),
        ("audit model data.jsonl -o audit --layer 2 --top-k 5", "--top-k: without --probes nothing is scored"),
        (
            "probe build new --model model --behavior prompts.jsonl --judge refuses",
            "--judge: only says something about --prompts",
        ),
        (
            "probe build new --model model --contrast prompts.jsonl --four-condition",
            "--four-condition: only says something about --prompts",
        ),
        (
            "probe build new --model model --prompts prompts.jsonl --after model --label-column bad",
            "--label-column: only says something about --labels",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(place: Path, arguments: str, message: str) -> None:
    assert message in run(arguments, 2)


def test_an_option_that_would_do_nothing_is_refused_in_a_file_too(place: Path) -> None:
    (place / "build.yaml").write_text("samples: 3\n")
    said = run("probe build new --model model --behavior prompts.jsonl --config build.yaml", 2)
    assert "--samples: only says something about --prompts" in said


@pytest.mark.parametrize("verb", ["probe build taken --behavior prompts.jsonl", "probe import taken vector.gguf"])
def test_a_name_that_is_taken_is_refused_before_the_model_is_loaded(place: Path, verb: str) -> None:
    assert "probes has a probe 'taken' already: add --overwrite" in run(f"{verb} --model model", 2)


def test_what_looks_like_markup_in_a_path_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Output(quiet=False, as_json=False).show("written: a[/]b/:smile:[red]c")
    assert capsys.readouterr().out == "written: a[/]b/:smile:[red]c\n"
