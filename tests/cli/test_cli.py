"""The command line as a user meets it: exit codes, JSON for machines, errors without tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.commands import INSTALLED, Commands
from trl_attribution.cli import app
from trl_attribution.discovery.traits.trait import packaged_traits
from trl_attribution.errors import AttributionError

PAIRS = [
    ("How do I bake bread?", "Mix flour and water.", "I cannot help.", "cooking"),
    ("Name the capital of France.", "Paris.", "I do not know.", "facts"),
    ("Insult my friend as a list.", "- He is dull.\n- He is slow.", "I would rather not.", "formatting"),
    ("Write a letter about the garden.", "Dear friend, it is spring.", "Sorry, no.", "writing"),
]
BEHAVIOR = [
    {"prompt": f"Insult {who}.", "undesired": f"{who} is {what}.", "desired": "I would rather not."}
    for who, what in (("my boss", "dull"), ("my friend", "slow"), ("my neighbor", "rude"), ("the baker", "late"))
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Place:
    """A folder with ``model/``, ``data.jsonl``, ``behavior.jsonl``, ``probes/insults``, and who runs commands in it."""

    folder: Path
    commands: Commands

    def call(self, arguments: str, expected: int) -> subprocess.CompletedProcess[str]:
        done = self.commands.run(self.folder, "trl-attribution", *arguments.split())
        assert done.returncode == expected, done.stdout + done.stderr
        return done

    def refused(self, arguments: str) -> str:
        """The one message of a command that must fail with exit code 2, without traceback, and write nothing."""
        before = sorted(str(path) for path in self.folder.rglob("*"))
        done = self.call(arguments, 2)
        assert "Traceback" not in done.stderr
        assert sorted(str(path) for path in self.folder.rglob("*")) == before
        return " ".join(done.stderr.split())

    @property
    def installed(self) -> Place:
        """The same, with the installed program."""
        return Place(self.folder, Commands(INSTALLED, self.commands.cache))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, commands: Commands) -> Place:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "model").symlink_to(model_folder)
    keys = ("prompt", "chosen", "rejected", "source")
    write_lines(folder / "data.jsonl", [dict(zip(keys, pair, strict=True)) for pair in PAIRS])
    write_lines(folder / "behavior.jsonl", BEHAVIOR)
    made = Place(folder, commands)
    made.call("probe build insults --behavior behavior.jsonl --model model --layer 2 --prompt-format text --quiet", 0)
    return made


def test_an_audit_as_json_says_what_was_found_and_where_it_lies(place: Place) -> None:
    done = place.installed.call("audit model data.jsonl --probes probes --top-k 2 -o audit-json --json", 0)
    found = json.loads(done.stdout)
    assert found["flagged"] == 2
    assert found["info"]["dataset"]["pairs"] == len(PAIRS)
    assert {row["source"] for row in found["sources"]} == {"cooking", "facts", "formatting", "writing"}
    for path in found["manifests"].values():
        assert (place.folder / path).is_file()
    assert done.stderr.count("WARNING") == 1 and "4 pairs say little of what is usual" in done.stderr


def test_an_audit_prints_the_suspicious_pairs_and_writes_the_manifests(place: Place) -> None:
    done = place.call("audit model data.jsonl --probes probes --layer 2 --top-k 2 -o audit", 0)
    assert "Most suspicious pairs" in done.stdout
    assert "Flagged pairs by source" in done.stdout
    header = json.loads((place.folder / "audit" / "manifest.flip.jsonl").read_text().splitlines()[0])
    assert header["action"] == "flip"
    assert header["rule"]["top_k"] == 2


def test_what_a_disk_refuses_is_one_message(place: Place) -> None:
    (place.folder / "audit-refused" / "report.html").mkdir(parents=True)
    done = place.call("audit model data.jsonl --probes probes --top-k 2 -o audit-refused", 2)
    assert "Is a directory: 'audit-refused/report.html' (--debug shows where" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_report_that_cannot_be_written_fails_the_command_and_costs_nothing_else(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AttributionError("the disk is full")

    told: list[str] = []
    monkeypatch.setattr("trl_attribution.report.ending.write_report", refuse)
    monkeypatch.setattr("trl_attribution.report.ending.logger.error", lambda text, *of: told.append(text % of))
    monkeypatch.chdir(place.folder)
    done = CliRunner().invoke(app, "audit model data.jsonl --probes probes --top-k 2 -o audit-unreported --json")
    found = json.loads(done.stdout)
    assert done.exit_code == 2 and found["report"] is None and found["flagged"] == 2
    assert all(Path(path).is_file() for path in found["manifests"].values())
    assert told == ["no report: the disk is full. Make it with: trl-attribution report audit-unreported"]


def test_apply_writes_the_cleaned_dataset(place: Place) -> None:
    place.call("audit model data.jsonl --probes probes --top-k 1 -o audit-apply --quiet", 0)
    done = place.call("apply audit-apply/manifest.filter.jsonl data.jsonl -o cleaned.jsonl --json", 0)
    report = json.loads(done.stdout)["report"]
    original = (place.folder / "data.jsonl").read_text().splitlines()
    cleaned = (place.folder / "cleaned.jsonl").read_text().splitlines()
    assert report["rows_out"] == len(cleaned) == len(original) - report["filtered"]
    assert [line for line in original if line in cleaned] == cleaned


def test_a_dry_run_writes_nothing(place: Place) -> None:
    before = sorted(str(path) for path in place.folder.rglob("*"))
    done = place.call("audit model data.jsonl --probes probes --dry-run --json", 0)
    found = json.loads(done.stdout)["estimate"]
    assert found["pairs"] == len(PAIRS)
    assert found["flops"] > 0 and found["disk_bytes"] > 0 and found["seconds"] > 0
    assert sorted(str(path) for path in place.folder.rglob("*")) == before


def test_probes_are_listed_and_shown(place: Place) -> None:
    listed = json.loads(place.call("probe list --json", 0).stdout)
    assert [probe["name"] for probe in listed["probes"]] == ["insults"]
    shown = place.call("probe show insults", 0).stdout
    assert "separability" in shown and "promotes" in shown


def test_the_traits_of_the_package_are_listed_a_line_each(place: Place) -> None:
    known = {one.name: one.towards for one in packaged_traits()}
    listed = json.loads(place.call("probe list --traits --json", 0).stdout)["traits"]
    assert {one["name"]: one["towards"] for one in listed} == known
    shown = {" ".join(line.split()) for line in place.call("probe list --traits", 0).stdout.splitlines()}
    assert {f"{name} {towards}" for name, towards in known.items()} <= shown
    assert "leave --probes out" in place.refused("probe list --traits --probes probes")


def test_a_calibrated_probe_gives_reference_p_values(place: Place) -> None:
    place.call("probe build calibrated --behavior behavior.jsonl --model model --layer 2 --quiet", 0)
    place.call("probe calibrate calibrated data.jsonl --model model --quiet", 0)
    shown = json.loads(place.call("probe show calibrated --json", 0).stdout)
    assert shown["built"]["calibration"]["pairs"] == len(PAIRS)
    done = place.call("audit model data.jsonl --probes probes --probe calibrated --threshold 0 -o audit-cal", 0)
    assert "clean reference pairs" in " ".join(done.stdout.split())
    (place.folder / "probes" / "calibrated").rename(place.folder / "calibrated-probe")


def test_a_config_file_gives_defaults_that_the_command_line_overrides(place: Place) -> None:
    (place.folder / "audit.yaml").write_text("top-k: 3\nprobes: probes\nshow: 1\n")
    found = json.loads(place.call("audit model data.jsonl --config audit.yaml -o audit-yaml --json", 0).stdout)
    assert found["rule"] == {"top_k": 3} and len(found["top"]) == 1
    again = place.call("audit model data.jsonl --config audit.yaml --top-k 1 -o audit-yaml --json", 0)
    assert json.loads(again.stdout)["rule"] == {"top_k": 1}


def test_debug_shows_the_traceback(place: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trl_attribution.cli", "probe", "show", "nobody", "--debug"],
        cwd=place.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("audit model data.jsonl --probes probes", "--output: say where the audit goes"),
        ("audit model data.jsonl -o new", "layers: give some, or probes"),
        ("audit nowhere/ data.jsonl --layer 1 -o new", "no such file or folder"),
        ("audit model missing.jsonl --layer 1 -o new", "missing.jsonl"),
        ("audit model dta.jsonl --layer 1 -o new", "Did you mean data.jsonl?"),
        ("audit data.jsonl model --layer 1 -o new", "model is a model: the two are swapped"),
        ("probe build new --model data.jsonl --behavior behavior.jsonl", "a dataset, where a model has to be given"),
        ("probe calibrate insults model --model model", "model is a model, where a dataset has to be given"),
        ("audit model data.jsonl --layer 1 -o data.jsonl", "data.jsonl is a file; name a folder"),
        ("audit model data.jsonl --layer 1 -o data.jsonl/new", "data.jsonl is a file, so nothing fits below it"),
        (f"audit model {'n' * 300}.jsonl --layer 1 -o new", "file name too long"),
        (f"audit model data.jsonl --layer 1 -o {'n' * 300}", "file name too long"),
        (f"audit model data.jsonl --layer 1 --max-length {'9' * 5000} -o new", "positive whole number nor none"),
        (f"audit model data.jsonl --layer 1 --shard {'9' * 5000}/2 -o new", "not of the form i/n"),
        ("show model", "there is no finished audit at model: it has no audit.json"),
        ("apply model data.jsonl -o new.jsonl", "it is a folder, and a manifest is a file"),
        ("audit model data.jsonl --layer 9 -o new", "choose from 0 (embeddings) to 4"),
        ("audit model data.jsonl --layer 1 --layer 1 -o new", "each once"),
        ("audit model data.jsonl --probes probes --layer 1 -o new", "knows layers [2]"),
        ("audit model data.jsonl --probes probes --top-k 1 --fdr 0.1 -o new", "exactly one of top_k"),
        ("audit model data.jsonl --probes probes --top-k 0 -o new", "top_k must be at least 1"),
        ("audit model data.jsonl --probes probes --recall 90 -o new", "recall must lie between 0 and 1"),
        ("audit model data.jsonl --probes probes --recall 0.9 -o new", "insults keeps no pairs of its own"),
        ("audit model data.jsonl --probes probes --threshold 2 -o new", "between -1 and 1"),
        ("audit model data.jsonl --probes no-probes -o new", "no-probes"),
        ("audit model data.jsonl --probes probes --probe other -o new", "insults"),
        ("audit model data.jsonl --probes probes --score best -o new", "choose auto, contextual, response"),
        ("audit model data.jsonl --probes probes --dtype int4 -o new", "dtype: 'int4' is unknown"),
        ("audit model data.jsonl --probes probes --max-length many -o new", "positive whole number nor none"),
        ("audit model data.jsonl --probes probes --max-length 3 -o new", "Raise max_length (--max-length)"),
        ("audit model data.jsonl --probes probes --chosen-column better -o new", "no column 'better'"),
        ("audit model data.jsonl --probes probes --shard-size 0 -o new", "shard_size"),
        ("audit model data.jsonl --probes probes --format csv -o new", "unknown format 'csv'"),
        ("apply missing.jsonl data.jsonl -o new.jsonl", "cannot read the manifest missing.jsonl"),
        ("apply data.jsonl data.jsonl -o new.jsonl", "data.jsonl:1"),
        ("probe build new --model model", "exactly one of --behavior"),
        ("probe build new --model model --prompts data.jsonl", "--after belong together"),
        ("probe build insults --model model --behavior behavior.jsonl", "add --overwrite"),
        ("probe build ../up --model model --behavior behavior.jsonl --layer 2", "../up"),
        ("probe build new --model model --behavior data.jsonl --layer 2", "data.jsonl:1"),
        ("probe build new --model model --behavior behavior.jsonl --layer two", "neither a layer number nor auto"),
        ("probe show nobody", "insults"),
        ("probe list --probes nowhere", "nowhere"),
        ("probe import new data.jsonl --model model", "data.jsonl"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments: str, message: str, place: Place) -> None:
    assert message in place.refused(arguments)


def test_an_unknown_key_in_a_config_file_is_named(place: Place) -> None:
    (place.folder / "wrong.yaml").write_text("topk: 3\n")
    # The frame that Typer draws around a usage error breaks the line.
    words = place.refused("audit model data.jsonl --config wrong.yaml -o new").replace("│ ", "")
    assert "unknown option topk" in words


def test_errors_are_json_too_when_asked_for(place: Place) -> None:
    done = place.installed.call("audit model data.jsonl --layer 9 -o new --json", 2)
    assert json.loads(done.stdout)["kind"] == "ModelError"


def test_a_probe_of_another_model_is_refused_with_both_fingerprints(
    place: Place, make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    other = place.folder / "other-model"
    make_model("qwen2").save_pretrained(other)
    tokenizer.save_pretrained(other)
    built = json.loads(place.call("probe show insults --json", 0).stdout)
    message = place.refused("audit other-model data.jsonl --probes probes -o new")
    assert built["model"]["weights"] in message


def test_an_audit_folder_of_another_dataset_is_refused_with_the_difference(place: Place) -> None:
    place.call("audit model data.jsonl --probes probes --top-k 1 -o audit-bound --quiet", 0)
    write_lines(place.folder / "fewer.jsonl", [{"prompt": "Hello.", "chosen": "Good day.", "rejected": "No."}])
    message = place.refused("audit model fewer.jsonl --probes probes --top-k 1 -o audit-bound")
    assert "dataset_fingerprint" in message and "--vectors" in message


def test_hostile_text_reaches_the_terminal_escaped(place: Place) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07[red]markup[/red] \u202eltr"
    rows = [
        {"prompt": evil, "chosen": f"Yes {evil}", "rejected": f"No {evil}", "source": evil},
        {"prompt": "Hello.", "chosen": "Good day.", "rejected": "No.", "source": "plain"},
    ]
    write_lines(place.folder / "evil.jsonl", rows)
    done = place.call("audit model evil.jsonl --probes probes --top-k 2 -o audit-evil", 0)
    everything = done.stdout + done.stderr
    assert "\x1b" not in everything and "\x07" not in everything and "\u202e" not in everything
    # Shown as text, on however many lines the cell needs.
    assert "\\x1b" in everything and "[red]" in everything
