"""The examples run as they are shown, on a tiny model."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from trl import ModelConfig, ScriptArguments, TrlParser

from tests.commands import INSTALLED, Commands
from tests.training import LAYERS, least_cosine, offline, probe_on, text_rows
from trl_attribution import Manifest, ProbeRegistry, VectorStore
from trl_attribution.audit.info import AuditInfo
from trl_attribution.callbacks import AttributionTracker, AuditArguments, CallbackConfig
from trl_attribution.errors import SettingsError
from trl_attribution.models import load_model
from trl_attribution.pairs import Encoding, PairReader, encode_pairs
from trl_attribution.scoring import DEFAULT_RULE

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
plain_collate = runpy.run_path(str(EXAMPLES / "plain_accelerate_dpo.py"))["collate"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in text_rows()), encoding="utf-8")
    return path


def run(programs: Commands, folder: Path, *command: str | Path) -> str:
    result = programs.run(folder, *command, ACCELERATE_USE_CPU="true", PYTHON_EXEC=programs.python)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def test_the_pass_of_open_instruct_over_its_data_is_audited(model_folder: Path, data: Path, tmp_path: Path) -> None:
    audited = runpy.run_path(str(EXAMPLES / "open_instruct_dpo.py"))["audited"]
    loaded = load_model(model_folder, dtype="float32")
    pairs = encode_pairs(list(PairReader(data)), loaded.tokenizer, Encoding(64))

    def concatenated_inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = ("input_ids", "attention_mask", "labels")
        return {
            f"concatenated_{name}": torch.cat([batch[f"chosen_{name}"], batch[f"rejected_{name}"]]) for name in names
        }

    def forward_fn(model: Any, batch: dict[str, torch.Tensor], **_settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        whole = concatenated_inputs(batch)
        ids, mask = whole["concatenated_input_ids"], whole["concatenated_attention_mask"]
        chosen, rejected = model(input_ids=ids, attention_mask=mask).logits.mean((1, 2)).chunk(2)
        return chosen, rejected

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(pairs), 4):
            some = pairs[start : start + 4]
            whole = plain_collate(some, pad=0)
            halves = {"input_ids": whole["input_ids"], "attention_mask": whole["attention_mask"]}
            halves["labels"] = torch.where(whole["completion_mask"] == 1, whole["input_ids"], -100)
            yield {
                f"{side}_{name}": part
                for name, tensor in halves.items()
                for side, part in zip(("chosen", "rejected"), tensor.chunk(2), strict=True)
            }

    tracker = AttributionTracker(
        loaded.model,
        loaded.tokenizer,
        data,
        max_length=64,
        layers=LAYERS,
        vector_dtype="float32",
        output_dir=tmp_path / "audit",
    )
    run = audited(forward_fn, concatenated_inputs, tracker)
    with tracker, torch.no_grad():
        found = [run(loaded.model, batch, average_log_prob=False) for batch in batches()]
    assert len(found) == len(pairs) // 4 and tracker.finished is not None
    assert tracker.finished.audit.info.vectors.path == "reference model"
    expected = offline(model_folder, tmp_path, text_rows(), max_length=64)
    assert least_cosine(tracker.finished.audit.store, expected.store) >= 0.99999


@pytest.mark.slow
def test_the_dpo_example_trains_and_audits_with_its_config(
    model_folder: Path, data: Path, tmp_path: Path, commands: Commands
) -> None:
    ProbeRegistry(tmp_path / "demo" / "probes").save(probe_on(model_folder))
    script, config = EXAMPLES / "dpo_with_attribution.py", EXAMPLES / "dpo_with_attribution.yaml"
    shown = run(
        commands, tmp_path, "python", script, "--config", config, "--dataset_name", data, "--model_name_or_path",
        model_folder, "--max_steps", "-1", "--num_train_epochs", "1", "--audit_vector_dtype", "float32",
        "--audit_score", "response",
    )  # fmt: skip
    audit = tmp_path / yaml.safe_load(config.read_text(encoding="utf-8"))["audit_output_dir"]
    rule = Manifest.load(audit / "manifest.filter.jsonl").header.rule
    assert {name: rule[name] for name in ("recall", "fdr")} == DEFAULT_RULE.as_dict()
    expected = offline(model_folder, tmp_path, text_rows(), max_length=256)
    assert least_cosine(VectorStore.open(audit / "vectors"), expected.store, [3]) >= 0.99999
    assert "attribution/flagged_fraction" in shown
    assert "24 read while training (reference model)" in shown


def test_the_loop_example_trains_and_audits(model_folder: Path, data: Path, tmp_path: Path, commands: Commands) -> None:
    ProbeRegistry(tmp_path / "probes").save(probe_on(model_folder))
    shown = run(
        commands, tmp_path, "python", EXAMPLES / "plain_accelerate_dpo.py", "--model", model_folder, "--data", data,
        "--probes", "probes", "--log-every", "3", "--save-every", "3", "--flag-at", "0.5",
    )  # fmt: skip
    assert "24 pairs audited in run/audit" in shown
    assert shown.count("attribution/flagged_fraction") == 2
    assert (tmp_path / "run" / "checkpoint").is_dir()
    assert (tmp_path / "run" / "audit" / "manifest.flip.jsonl").is_file()


@pytest.mark.slow
def test_the_loop_example_audits_every_pair_once_on_two_processes(
    model_folder: Path, data: Path, tmp_path: Path
) -> None:
    installed = Commands(INSTALLED, tmp_path / ".cache")
    run(
        installed, tmp_path, "accelerate", "launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", EXAMPLES / "plain_accelerate_dpo.py",
        "--model", model_folder, "--data", data, "--layers", *map(str, LAYERS), "--batch-size", "5",
    )  # fmt: skip
    expected = offline(model_folder, tmp_path, text_rows())
    assert least_cosine(VectorStore.open(tmp_path / "run" / "audit" / "vectors"), expected.store) >= 0.99999


def test_every_setting_is_an_argument_with_its_default_and_help() -> None:
    arguments = {one.name: one for one in fields(AuditArguments)}  # type: ignore[arg-type]
    settings = fields(CallbackConfig)
    assert set(arguments) == {f"audit_{one.name}" for one in settings}
    assert all(arguments[f"audit_{one.name}"].metadata["help"] == one.metadata["help"] for one in settings)
    assert AuditArguments().to_config() == CallbackConfig()


def test_arguments_become_settings() -> None:
    parser = TrlParser((ScriptArguments, ModelConfig, AuditArguments))
    given = ["--audit_layers", "20", "10", "--audit_threshold", "0.25", "--audit_output_dir", "here"]
    *_, audit = parser.parse_args_and_config(given)
    assert audit.to_config() == CallbackConfig(layers=[20, 10], threshold=0.25, output_dir="here")


def test_arguments_that_contradict_each_other_are_refused() -> None:
    parser = TrlParser((ScriptArguments, AuditArguments))
    *_, audit = parser.parse_args_and_config(["--audit_top_k", "3", "--audit_fdr", "0.1"])
    with pytest.raises(SettingsError, match="given: top_k, fdr"):
        audit.to_config()


def test_the_notebook_scans_decides_and_cleans(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "audit_a_dataset.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in code) and len(cells) <= 24
    given = {"SCAN": {"traits": "rude", "flips": 199, "unnamed": False}, "RULE": {"top_k": 20}}
    place: dict[str, Any] = {"MODEL": model_folder, "LAYER": 2, **given}
    for cell in code:
        if "parameters" not in cell["metadata"].get("tags", ()):
            exec("".join(cell["source"]), place)
    flagged, cleaned = place["flagged"], place["cleaned"]
    dropped = {decision.row for decision in place["manifest"].decisions}
    assert 0 < len(dropped) <= len(flagged) == 20
    assert len(cleaned) == len(place["dataset"]) - len(dropped)
    left = {path.name for path in place["audit"].folder.iterdir()}
    assert {"report.html", "manifest.filter.jsonl", "findings.json"} <= left
    assert "Flagged(20 of 440" in repr(flagged)


def test_the_rl_example_is_stopped_for_a_reward_that_is_hacked_and_for_no_other(
    tmp_path: Path, commands: Commands
) -> None:
    shown = {
        reward: run(
            commands, tmp_path, "python", EXAMPLES / "watch_an_rl_run.py", "--on-flag", "stop", "--reward", reward,
            "--output", reward,
        )
        for reward in ("friendly", "honest")
    }  # fmt: skip
    steps = {
        reward: [[float(word) for word in line.split()] for line in text.splitlines() if re.match(r" +\d", line)]
        for reward, text in shown.items()
    }
    assert "ended after step 12 of 12" in shown["honest"]
    assert 2 <= len(steps["friendly"]) < 8
    praise, walks = ([step[place] for step in steps["friendly"]] for place in (2, 3))
    assert min(praise) > 0 and sum(praise) > 2 * abs(sum(walks))
    honest = [step[2] for step in steps["honest"]]
    assert abs(sum(honest)) / len(honest) < sum(praise) / len(praise) / 3
    stopped = AuditInfo.load(tmp_path / "friendly" / "audit").training
    assert stopped is not None and stopped.stopped_at_step == len(steps["friendly"])
    assert (tmp_path / "friendly" / "audit" / "report.html").exists()
