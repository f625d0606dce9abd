"""The options of ``probe`` and ``apply`` reach what they are about."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.manifest_cases import ids_of, manifest_for, read_back, simple_rows, write_jsonl
from tests.tiny import build_tiny_model
from trl_attribution.cli import app

BEHAVIOR = [
    {"prompt": f"Insult {who}.", "undesired": f"{who} is dull.", "desired": "I would rather not."}
    for who in ("my boss", "my friend", "the baker")
]
LABELLED = [
    {"ask": f"Write {n}.", "better": first, "worse": second, "label": label}
    for n in range(3)
    for first, second, label in (("You fool.", "Dear friend.", 1), ("Dear friend.", "You fool.", 0))
]


@pytest.fixture
def place(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with ``model/``, ``behavior.jsonl`` and ``data.jsonl``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model_folder)
    write_jsonl(tmp_path / "behavior.jsonl", BEHAVIOR)
    write_jsonl(tmp_path / "data.jsonl", simple_rows())
    return tmp_path


def run(arguments: str | list[str], expected: int = 0) -> str:
    words = arguments.split() if isinstance(arguments, str) else arguments
    done = CliRunner().invoke(app, words)
    assert done.exit_code == expected, done.output
    return " ".join(done.output.split())


def built(name: str) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(Path("probes", name, "probe.json").read_text())["built"]
    return description


def test_labelled_pairs_are_read_as_the_options_say(place: Path) -> None:
    write_jsonl(place / "labelled.jsonl", [*LABELLED, {"ask": "Write.", "better": "", "worse": "No.", "label": 1}])
    command = (
        "probe build rude --model model --labels labelled.jsonl --layer 2 "
        "--prompt-column ask --chosen-column better --rejected-column worse"
    )
    assert "labelled.jsonl:7" in run(command, expected=2)
    run(command + " --on-bad-row skip")
    assert built("rude")["counts"] == {"pairs": 6, "label_1": 3, "label_0": 3}


def test_greedy_sampling_takes_one_response_a_prompt_unless_told_otherwise(
    place: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    build_tiny_model("qwen2").save_pretrained(place / "after")
    tokenizer.save_pretrained(place / "after")
    command = (
        "probe build changed --model model --after after --prompts behavior.jsonl --layer 2 "
        "--judge regex:.* --max-new-tokens 4 --temperature 0"
    )
    assert "--samples 1" in run(command + " --samples 4", expected=2)
    # Every response shows this behavior, so that M0 always does.
    assert "m0_always_shows: 3" in run(command, expected=2)


@pytest.fixture
def after(place: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """``after/``, a model with other weights than ``model/``."""
    build_tiny_model("qwen2").save_pretrained(place / "after")
    tokenizer.save_pretrained(place / "after")
    return place / "after"


BUILD = (
    "probe build changed --model model --after after --prompts behavior.jsonl --layer 2 "
    "--max-new-tokens 4 --dtype float32 --responses kept"
)


def test_the_prompts_own_judge_is_taken_unless_one_is_given_and_two_are_refused(place: Path, after: Path) -> None:
    rows = [json.loads(line) for line in (place / "behavior.jsonl").read_text().splitlines()]

    def judged_by(*rules: object) -> None:
        marked = [{**row, "judge": rules[number % len(rules)]} for number, row in enumerate(rows)]
        (place / "behavior.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marked))

    judged_by("regex:.*")
    assert "m0_always_shows: 3" in run(BUILD, expected=2)
    assert "m1_never_shows: 3" in run(f"{BUILD} --judge regex:^$x", expected=2)
    judged_by("regex:.*", "refuses")
    assert "the prompts name several judges" in run(BUILD, expected=2)
    judged_by(["refuses"])
    assert "field `judge` is no text" in run(BUILD, expected=2)


def test_kept_responses_are_judged_again_without_being_sampled_again(place: Path, after: Path) -> None:
    assert "m0_always_shows: 3" in run(f"{BUILD} --judge regex:.*", expected=2)
    m1 = json.loads((place / "kept" / "after.json").read_text())["behaviors"]["responses"]["texts"]
    m0 = json.loads((place / "kept" / "before.json").read_text())["behaviors"]["responses"]["texts"]
    assert [len(texts) for texts in (*m0, *m1)] == [4] * 6
    # A text that only M1 gave: were the models asked anew under another seed, it would hardly turn up.
    (own, *_) = sorted({text for texts in m1 for text in texts} - {text for texts in m0 for text in texts})
    run([*BUILD.split(), "--judge", f"regex:^{re.escape(own)}$"])
    assert built("changed")["judge"] == f"regex:^{re.escape(own)}$"
    assert built("changed")["counts"]["prompts"] == 1
    assert "sampling: stored" in run(f"{BUILD} --seed 1 --overwrite", expected=2)


def test_a_judge_that_gives_up_leaves_the_sampled_responses(place: Path, after: Path) -> None:
    command = f"{BUILD} --judge endpoint:http://127.0.0.1:9/v1#m --judge-timeout 1 --judge-calls 100"
    message = run(command, expected=2)
    assert "127.0.0.1:9/v1/chat/completions: no verdict after" in message
    assert sorted(path.name for path in (place / "kept").iterdir()) == ["after.json", "before.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--judge regexp:x", "there is no rule"),
        ("--judge model:./nowhere", "cannot be loaded"),
        ("--judge endpoint:http://host/v1", "needs the name of a model"),
        ("--judge endpoint:http://host/v1#m --judge-key-env NO_SUCH_KEY", "NO_SUCH_KEY for the key is not set"),
        ("--judge endpoint:http://host/v1#m --judge-calls 0", "max_calls must be at least 1"),
    ],
)
def test_a_judge_that_cannot_work_is_refused_before_a_model_is_loaded(options: str, message: str, place: Path) -> None:
    (place / "hollow").mkdir()
    (place / "hollow" / "config.json").write_text("{}")
    command = f"probe build b --model hollow --after hollow --prompts behavior.jsonl {options}"
    assert message in run(command, expected=2)


@pytest.mark.parametrize("command", ["build b --behavior behavior.jsonl", "import b vector.pt"])
def test_auto_beside_a_layer_is_refused_before_the_model_is_loaded(command: str, place: Path) -> None:
    (place / "hollow").mkdir()
    (place / "hollow" / "config.json").write_text("{}")
    (place / "vector.pt").touch()
    message = run(f"probe {command} --model hollow --layer 2 --layer auto", expected=2)
    assert "give auto alone" in message


def test_a_calibration_is_made_as_asked_and_says_how(place: Path) -> None:
    run("probe build insults --behavior behavior.jsonl --model model --layer 2")
    run(
        "probe calibrate insults data.jsonl --model model --score response --max-length 64 --truncation-mode keep_end "
        "--path plain --token-budget 256 --blocks-path model.layers"
    )
    calibration = built("insults")["calibration"]
    assert calibration["kind"] == "response"
    assert (calibration["max_length"], calibration["truncation_mode"]) == (64, "keep_end")


def test_a_calibration_looks_for_the_blocks_where_it_is_told(place: Path) -> None:
    run("probe build insults --behavior behavior.jsonl --model model --layer 2")
    message = run("probe calibrate insults data.jsonl --model model --blocks-path model.nothing", expected=2)
    assert "no list of modules at 'model.nothing'" in message


def test_an_empty_split_applies_a_manifest_of_a_split_to_a_file_without_splits(place: Path) -> None:
    rows = simple_rows()
    audited = manifest_for(rows, ids_of(rows)[:2], "filter")
    reading = {**audited.header.reading, "split": "preferences"}
    replace(audited, header=replace(audited.header, reading=reading)).save(place / "filter.jsonl")
    command = ["apply", "filter.jsonl", "data.jsonl", "-o", "cleaned.jsonl"]
    assert "no split 'preferences'" in run(command, expected=2)
    run([*command, "--split", ""])
    assert read_back(place / "cleaned.jsonl") == rows[2:]
