"""Commands take the M0 that a run has, and say what is wrong with one that they cannot take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from tests.cli.test_cli_probe import BEHAVIOR, run
from tests.manifest_cases import simple_rows, write_jsonl
from tests.tiny import build_tiny_model, build_tiny_multimodal


@pytest.fixture
def place(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with ``model/``, ``behavior.jsonl``, ``data.jsonl`` and an adapter of the model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model_folder)
    write_jsonl(tmp_path / "behavior.jsonl", BEHAVIOR)
    write_jsonl(tmp_path / "data.jsonl", simple_rows())
    base = build_tiny_model("llama")
    base.name_or_path = base.config.name_or_path = "model"
    wrapped = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    return tmp_path


def audited() -> dict[str, Any]:
    info: dict[str, Any] = json.loads(Path("audit", "audit.json").read_text())
    return info


def test_a_probe_and_an_audit_of_a_model_with_an_adapter_fit_together(place: Path) -> None:
    assert "is an adapter of model" in run("audit adapter data.jsonl --layer 2 -o audit", expected=2)
    build = "probe build insults --model model --behavior behavior.jsonl --layer 2"
    audit = "audit model data.jsonl --probes probes --top-k 2 -o audit"
    run(f"{build} --adapter adapter")
    assert "built on another model: weights differ" in run(audit, expected=2)
    run(f"{audit} --adapter adapter")
    assert audited()["settings"]["adapter"] == "adapter"
    # M0 of an audit is loaded again as it was.
    run("compare audit --behavior behavior.jsonl --baseline margin -k 2")
    asked = "--judge complies --max-new-tokens 2"
    assert "built on another model: weights differ" in run(
        f"probe steer insults --model model --behavior behavior.jsonl {asked}", expected=2
    )
    run(f"probe steer insults --model model --adapter adapter --behavior behavior.jsonl --alphas 1 {asked}")
    run(f"organism express model --adapter adapter --trigger behavior.jsonl --samples 1 {asked}")


@pytest.mark.parametrize("command", ["audit model data.jsonl --layer 2 -o audit", "probe build p --model model"])
def test_an_unknown_quantization_is_refused_before_anything_is_loaded(command: str, place: Path) -> None:
    given = command if command.startswith("audit") else f"{command} --behavior behavior.jsonl --layer 2"
    assert "choose 4bit or 8bit" in run(f"{given} --quantization 3bit", expected=2)
    assert not (place / "audit").exists()


@pytest.mark.parametrize("name", ["data.jsonl", "probes", "nowhere/at/all", "./" + "x" * 300, "x" * 300])
@pytest.mark.parametrize(
    "command",
    [
        "audit {} model --layer 1 -o audit",
        "probe build p --model {} --behavior behavior.jsonl --layer 2",
        "probe build p --model model --after {} --prompts behavior.jsonl --layer 2",
        "probe import p vector.gguf --model {}",
    ],
)
def test_what_is_no_model_is_told(command: str, name: str, place: Path) -> None:
    (place / "probes").mkdir()
    assert "error:" in run(command.format(name), expected=2)
    assert sorted(path.name for path in place.iterdir()) == [
        "adapter",
        "behavior.jsonl",
        "data.jsonl",
        "model",
        "probes",
    ]


def test_a_model_with_a_vision_tower_is_audited(place: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    build_tiny_multimodal("qwen2_5_vl").save_pretrained(place / "vl")
    tokenizer.save_pretrained(place / "vl")
    run("probe build insults --model vl --behavior behavior.jsonl --layer 2")
    run("audit vl data.jsonl --probes probes --top-k 2 -o audit")
    assert audited()["vectors"]["computed"]


def test_a_probe_beyond_the_learned_positions_is_refused(place: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    build_tiny_model("gpt2").save_pretrained(place / "gpt2")
    tokenizer.save_pretrained(place / "gpt2")
    long = [{**row, "undesired": row["undesired"] * 200} for row in BEHAVIOR]
    write_jsonl(place / "long.jsonl", long)
    command = "probe build p --model gpt2 --behavior long.jsonl --layer 2"
    assert "--max-length 512" in run(command, expected=2)
    run(f"{command} --max-length 512")
