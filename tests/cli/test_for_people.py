"""The command line as people see it: help, names that stay whole, answers before anything is loaded."""

from __future__ import annotations

import io
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from tests.cli.test_quick_answers import HEAVY, SCRIPT, python, user_seconds
from tests.commands import Commands
from tests.fuzzing import PAIRS, PROMPTS
from tests.manifest_cases import ids_of, manifest_for, simple_rows, write_jsonl
from trl_attribution.cli import app, output
from trl_attribution.report.findings import read_findings
from trl_attribution.report.terminal import examples_table, sources_table
from trl_attribution.scoring import SourceRow
from trl_attribution.utils.tables import table, tell
from trl_attribution.utils.version import __version__

LONG_NAME = "format-following-instructions"
MODULE = "import runpy, sys; sys.argv = ['x', '--version']; runpy.run_module('trl_attribution', run_name='__main__')"
SHOW = f"""
import sys
from trl_attribution.cli import app
try:
    app(["show", "audit"])
except SystemExit:
    print(sorted({HEAVY - {"scipy", "pyarrow"} | {"pandas"}!r} & set(sys.modules)), "scipy.stats" in sys.modules)
"""
MOST_SECONDS = 5.0
"""Of CPU, for an audit's answer on a terminal: about 2 on an idle machine, 8 with the heavy libraries."""


def asked(*words: str) -> str:
    done = CliRunner().invoke(app, words, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.output


def drawn(table: object, width: int, *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def sources(name: str) -> list[SourceRow]:
    return [SourceRow(name, 1110, 20, 0.018, 4.23, 2.2e-13, 9e-13, 0.1)]


def test_the_program_says_its_version_and_helps_without_boxes(tmp_path: Path) -> None:
    assert asked("--version") == f"trl-attribution {__version__}\n"
    shown = asked("audit", "-h")
    assert shown == asked("audit", "--help") and "─" not in shown
    assert "--quiet  " in shown and "--top-k N" in shown and "<bool>" not in shown
    done = python(MODULE, folder=tmp_path)
    assert done.stdout == f"trl-attribution {__version__}\n"


def test_every_verb_has_a_line_of_its_own_in_the_help() -> None:
    shown = asked("-h")
    assert "..." not in shown.partition("Commands:")[2]


def test_words_are_completed_by_the_shell() -> None:
    environment = {"_ROOT_COMPLETE": "complete_bash", "COMP_WORDS": "root probe bu", "COMP_CWORD": "2"}
    assert "build" in CliRunner().invoke(app, [], prog_name="root", env=environment).output


def test_a_registry_is_called_probes_by_every_verb() -> None:
    for verb in ("audit", "probe build", "probe list", "probe steer", "discover", "gate init", "show", "report"):
        shown = asked(*verb.split(), "-h")
        assert "--probes PATH" in shown and "--registry" not in shown, verb


def test_the_earlier_name_of_probes_is_still_taken(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "settings.yaml").write_text(f"registry: {tmp_path}/kept\n")
    for words in (["--registry", f"{tmp_path}/kept"], ["--config", f"{tmp_path}/settings.yaml"]):
        done = CliRunner().invoke(app, ["probe", "list", *words])
        assert (done.exit_code, f"the probe registry {tmp_path}/kept holds no probes" in done.output) == (2, True)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_name_and_no_number_is_broken_over_lines(width: int, terminal: bool) -> None:
    shown = drawn(sources_table(sources(LONG_NAME)), width, terminal=terminal)
    words = shown.split()
    assert LONG_NAME in words and "2.2e-13" in words and "+0.100" in words
    assert max(map(len, shown.splitlines())) <= width


def test_boxes_are_drawn_on_a_terminal_alone() -> None:
    pairs = examples_table("Pairs", ("#", "where", "text"), [("1", f"{LONG_NAME}\nrow 3", "Hello\n+ yes\n- no")])
    assert "┃" in drawn(pairs, 100, terminal=True)
    piped = drawn(pairs, 100, terminal=False)
    assert piped.split("\n")[1:5] == [f"# 1  {LONG_NAME}, row 3", "  Hello", "  + yes", "  - no"]
    assert "─" not in drawn(sources_table(sources("web")), 100, terminal=False)


def test_texts_that_are_wider_than_the_output_keep_their_place() -> None:
    pairs = examples_table("Pairs", ("#", "text"), [("1", "Hello\n+ " + "a word " * 20)])
    lines = drawn(pairs, 80, terminal=False).splitlines()
    assert len(lines) > 4 and all(line.startswith("  ") for line in lines[2:])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_command_to_copy_stays_in_one_piece(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    command = Text("trl-attribution apply " + "folder/" * 20 + "manifest.jsonl data.jsonl", no_wrap=True)
    tell(Console(width=80, force_terminal=terminal, color_system=None), command)
    assert capsys.readouterr().out == f"{command.plain}\n"


def test_every_row_says_of_the_same_cells_what_they_count() -> None:
    rows = [[letter * 32, "1 of 2"] for letter in ("a", "3")]
    shown = drawn(table("", ("pair", ">flagged"), rows), 30, terminal=False)
    assert shown.count("pair ") == 2 == shown.count("flagged 1 of 2")


def test_a_source_with_all_that_is_flagged_is_told_in_words() -> None:
    alone = replace(sources("web")[0], enrichment=math.inf)
    assert "only here" in drawn(sources_table([alone]), 200, terminal=False)


def test_lines_of_a_pipe_have_no_spaces_at_their_end(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=120, force_terminal=False)
    tell(console, sources_table(sources("web")), "a[0]")
    assert all(line == line.rstrip() for line in capsys.readouterr().out.splitlines())


def test_more_pairs_than_there_are_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", PAIRS)
    for name in ("model", "probes"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    done = python(
        SCRIPT,
        *["audit", "model", "data.jsonl", "--probes", "probes", "-o", "audit", "--top-k", "500"],
        folder=tmp_path,
    )
    assert "top_k 500 asks for more pairs than there are (4): choose fewer" in done.stderr
    assert done.stdout == "[2, []]\n"


def test_a_baseline_in_the_way_is_not_got_round_by_another_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "data.jsonl", PAIRS)
    (tmp_path / "probes").mkdir()
    (tmp_path / "gate-baseline.safetensors").touch()
    words = ["gate", "init", "--probes", "probes", "--from", "data.jsonl", "--output", "other.yaml"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 2 and "gate-baseline.safetensors is there already. Name another folder" in done.output


def test_apply_replaces_nothing_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = simple_rows()
    write_jsonl(tmp_path / "data.jsonl", rows)
    manifest_for(rows, ids_of(rows)[:3], "filter").save("manifest.jsonl")
    command = ["apply", "manifest.jsonl", "data.jsonl", "-o", "cleaned.jsonl"]
    assert "cleaned.jsonl" in asked(*command)
    (tmp_path / "cleaned.jsonl").write_text("mine")
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2 and "cleaned.jsonl is there already" in refused.output
    assert (tmp_path / "cleaned.jsonl").read_text() == "mine"
    asked(*command, "--overwrite")
    assert len((tmp_path / "cleaned.jsonl").read_text().splitlines()) == len(rows) - 3


def test_an_audit_is_shown_without_the_heavy_libraries(tmp_path: Path, model_folder: Path, commands: Commands) -> None:
    write_jsonl(tmp_path / "data.jsonl", PAIRS)
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    (tmp_path / "model").symlink_to(model_folder)
    for command in (
        "probe build insults --behavior prompts.jsonl --model model --layer 1 --quiet --prompt-format text",
        "audit model data.jsonl --probes probes --top-k 2 -o audit --quiet",
    ):
        done = commands.run(tmp_path, "trl-attribution", *command.split())
        assert done.returncode == 0, done.stderr
    before = user_seconds()
    done = python(SHOW, folder=tmp_path)
    assert user_seconds() - before < MOST_SECONDS
    assert done.stdout.endswith("[] False\n"), done.stdout + done.stderr
    assert PAIRS[0]["prompt"] in done.stdout or PAIRS[2]["prompt"] in done.stdout
    write_jsonl(tmp_path / "other.jsonl", [{**PAIRS[0], "prompt": "Another one."}])
    other = asked("show", f"{tmp_path}/audit", "--dataset", f"{tmp_path}/other.jsonl")
    assert "pairs below: is it the dataset that was audited?" in " ".join(other.split())
    # From another folder than the one in which the audit was given a relative path.
    found = read_findings(tmp_path / "audit")
    assert found.info.dataset.name == "data.jsonl" and found.audited_file == tmp_path / "data.jsonl"
    assert found.info.dataset.argument == str(tmp_path / "data.jsonl")


@pytest.mark.parametrize(("line", "speaks"), [("debug: true", True), ("debug: false", False), ("top_k: 2", False)])
def test_libraries_speak_where_a_file_of_options_says_debug(
    line: str, speaks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_QUIET", {"a_library": {"A_LIBRARY_IS_QUIET": "1"}})
    monkeypatch.delenv("A_LIBRARY_IS_QUIET", raising=False)
    (tmp_path / "options.yaml").write_text(f"quiet: true\n{line}\n")
    monkeypatch.setattr(sys, "argv", ["trl-attribution", "audit", "--config", str(tmp_path / "options.yaml")])
    output.quieten_what_loads()
    assert os.environ.pop("A_LIBRARY_IS_QUIET", None) == (None if speaks else "1")


def test_a_log_gets_a_line_of_progress_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 59.0, 100.0, 150.0, 160.0, 170.0, 230.0])
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    with output.Output().progress() as report:
        for done in (0, 590, 1000, 1500):
            report("vectors", done, 4000)
        report("scores", 0, 4000)
        report("scores", 100, 4000)
        report("unknown", 5, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Computing vectors: 1,000 of 4,000, 10.0/s, 5.0 min left"]


def test_quiet_and_json_have_no_progress_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "PROGRESS_SECONDS", 0.0)
    for settings in ({"quiet": True}, {"as_json": True}):
        with output.Output(**settings).progress() as report:
            report("vectors", 0, 2)
            report("vectors", 1, 2)
    assert capsys.readouterr().err == ""
