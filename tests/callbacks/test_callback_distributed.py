"""Runs on two processes: DDP, ZeRO-2 and 3, FSDP2. Their audits equal the one of a dataset by itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from tests import run_dpo
from tests.commands import Commands
from tests.tiny import build_tiny_model
from tests.training import ROWS, least_cosine, make_trainer, offline, probe_on, text_rows, train
from trl_attribution import ProbeRegistry, VectorStore
from trl_attribution.activations import ActivationConfig
from trl_attribution.audit.folder import Audit, AuditInfo
from trl_attribution.behaviors import Examples, SamplingConfig, changed_prompts, parse_rule, sample_responses
from trl_attribution.behaviors.responses import Responses, read_behaviors
from trl_attribution.behaviors.sampling import SampledPrompt
from trl_attribution.callbacks import AttributionCallback
from trl_attribution.evidence.readouts.drift import load_drift
from trl_attribution.models import load_model
from trl_attribution.pairs import Encoding
from trl_attribution.pairs.own_responses import OwnConfig
from trl_attribution.probes import BuildConfig, build_from_examples
from trl_attribution.scoring import ScoreTable

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CONFIGS = ROOT / "examples" / "accelerate_configs"
BUILDS = pytest.mark.skipif(shutil.which("g++") is None, reason="ZeRO-3 on CPU builds a DeepSpeed op with g++")


def accumulation(steps: int) -> dict[str, Any]:
    return {"gradient_accumulation_steps": steps, "per_device_train_batch_size": 4 // steps}


BEHAVIORS = "behaviors.jsonl"
# name -> settings of the run, which equals the audit whatever was refused in its processes before
RUNS: dict[str, dict[str, Any]] = {
    "ddp, uneven": {"rows": 21, "refused": [{"output": "taken"}, {"output": "of-rank-{RANK}"}]},
    "zero1": {},
    "zero2, accumulation": {"settings": accumulation(4)},
    "zero3": {"behaviors": BEHAVIORS},
    "zero3, dedicated pass": {"behaviors": BEHAVIORS, "settings": {"precompute_ref_log_probs": True}},
    "zero3, adapter, accumulation": {"adapter": True, "behaviors": BEHAVIORS, "settings": accumulation(4)},
    "zero3, adapter, dedicated pass after noise": {"adapter": True, "settings": {"neftune_noise_alpha": 5.0}},
    "zero3, precomputed": {"alone": True, "settings": {"precompute_ref_log_probs": True}},
    "fsdp2": {"behaviors": BEHAVIORS, "settings": {"gradient_checkpointing": False}},
    "fsdp2, dedicated pass": {
        "behaviors": BEHAVIORS,
        "settings": {"gradient_checkpointing": False, "precompute_ref_log_probs": True},
    },
    "ddp, adapter, dedicated pass after noise": {"adapter": True, "settings": {"neftune_noise_alpha": 5.0}},
    "fsdp2, adapter, dedicated pass after noise": {
        "adapter": True,
        "settings": {"gradient_checkpointing": False, "neftune_noise_alpha": 5.0},
    },
    "fsdp2, adapter": {"adapter": True, "behaviors": BEHAVIORS, "settings": {"gradient_checkpointing": False}},
}
# name -> what at least one rank says to each thing refused; every rank ends with an error
REFUSALS = {
    "ddp, uneven": ["holds no audit settings", "is not on storage that all processes see: rank 1 has not found"],
}

PROMPTS = [{"prompt": f"Say {word}.", "behavior": "numbers_said"} for word in ("tea", "rain", "ink", "moss", "oak")]
# In batches of two: three batches for two ranks.
SAMPLING: dict[str, Any] = dict(samples=3, max_new_tokens=8, seed=5, judge="regex:[A-K]", sampling_batch_size=2)
# Response scores need no mean of the contexts, so those in the logs are those of the audit.
ONLINE = {"score": "response", "flag_at": 0.45}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ProbeRegistry(folder / "probes").save(probe_on(folder))
    return folder


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return offline(model, tmp_path_factory.mktemp("expected"), text_rows())


def launch(programs: Commands, folder: Path, asked: dict[str, Any], config: str) -> subprocess.Popen[str]:
    """Start ``tests/run_dpo.py`` on two processes, under one of the launch configs."""
    rows = asked.pop("data", None) or ROWS[asked.get("kind", "dpo")](text_rows(asked.get("rows", 24)))
    Dataset.from_list(rows).save_to_disk(folder / "data")
    launcher = [programs.python, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    launcher += ["--num_processes", "2", "--main_process_port", "0"]
    settings = {"PYTHON_EXEC": programs.python, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        [*launcher, str(ROOT / "tests" / "run_dpo.py"), json.dumps(asked)],
        env={**os.environ, **programs.settings, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def completed(process: subprocess.Popen[str], seconds: int = 120) -> tuple[int, str]:
    """Exit status and output; a process that hangs is killed and fails the test."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"still running after {seconds} s:\n{output[-3000:]}")
    return process.returncode, output


def run(programs: Commands, model: Path, folder: Path, config: str, **asked: Any) -> list[str]:
    """What the ranks of a run that succeeds were told when something was refused."""
    status, output = completed(launch(programs, folder, {"model": str(model), "folder": str(folder), **asked}, config))
    assert status == 0, output[-5000:]
    lines = [line for path in folder.glob("refused-*.txt") for line in path.read_text().splitlines()]
    return [line for line in lines if line.startswith("step 0: ")]


def training_of(folder: Path) -> dict[str, Any]:
    training = AuditInfo.load(folder / "audit").training
    assert training is not None
    return training.model_dump()


@pytest.mark.parametrize("name", [pytest.param(name, marks=[BUILDS] if "zero3" in name else []) for name in RUNS])
def test_vectors_of_a_distributed_run_equal_those_of_the_offline_audit(
    name: str, model: Path, expected: Audit, tmp_path: Path, commands: Commands
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "settings.json").write_text("{}")
    (tmp_path / BEHAVIORS).write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    callback = {**ONLINE, **(SAMPLING if "behaviors" in RUNS[name] else {})}
    config = name.partition(",")[0]
    refused = run(commands, model, tmp_path, config, probes=str(model / "probes"), callback=callback, **RUNS[name])
    rows = RUNS[name].get("rows", 24)
    found = training_of(tmp_path)
    assert (found["ranks"], found["captured"], found["never_seen"]) == (2, rows, 0)
    store = VectorStore.open(tmp_path / "audit" / "vectors")
    other = expected.store if rows == 24 else offline(model, tmp_path, text_rows(rows)).store
    assert least_cosine(store, other) >= 0.99999
    assert AuditInfo.load(tmp_path / "audit").model.digest == expected.info.model.digest
    assert (tmp_path / "audit" / "manifest.flip.jsonl").exists()
    assert not (tmp_path / "audit" / "parts").exists()
    if "dedicated" not in name:
        assert found["rows"] - found["repeats"] == rows  # the sampler gives both ranks as many and repeats some for it
        if "precomputed" not in name:
            _check_metrics(tmp_path)
    if "behaviors" in RUNS[name]:
        _check_change(tmp_path, model)
    assert len(refused) == 2 * len(RUNS[name].get("refused", []))
    assert all(message in "".join(refused) for message in REFUSALS.get(name, []))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("kto", {}), ("sft", {"adapter": True})],
    ids=["kto", "sft, adapter"],
)
def test_kto_and_sft_on_two_processes_equal_the_offline_audit_too(
    kind: str, settings: dict[str, Any], model: Path, tmp_path: Path, commands: Commands
) -> None:
    callback = {"own_samples": 2, "own_max_new_tokens": 4}
    run(commands, model, tmp_path, "ddp", kind=kind, rows=11, callback=callback, **settings)
    rows, own = ROWS[kind](text_rows(11)), OwnConfig(n=2, max_new_tokens=4)
    expected = offline(model, tmp_path, rows, kind=kind, own=own)
    assert least_cosine(VectorStore.open(tmp_path / "audit" / "vectors"), expected.store) >= 0.99999
    assert training_of(tmp_path)["ranks"] == 2


@BUILDS
def test_a_reward_model_in_pieces_is_audited_as_the_model_below_its_head(
    model: Path, expected: Audit, tmp_path: Path, commands: Commands
) -> None:
    run(commands, model, tmp_path, "zero3", kind="reward")
    assert least_cosine(VectorStore.open(tmp_path / "audit" / "vectors"), expected.store) >= 0.99999
    assert AuditInfo.load(tmp_path / "audit").model.digest == expected.info.model.digest


@BUILDS
def test_ranks_that_share_m0_take_its_own_responses_from_a_file(
    model: Path, tmp_path: Path, commands: Commands
) -> None:
    rows, own = ROWS["sft"](text_rows(8)), tmp_path / "own.jsonl"
    asked: dict[str, Any] = {"model": str(model), "folder": str(tmp_path), "kind": "sft", "rows": 8}
    status, output = completed(launch(commands, tmp_path, asked, "zero3"))
    assert status != 0 and "where processes share one model it cannot be asked" in output
    own.write_text("".join(json.dumps({"prompt": row["prompt"], "responses": ["Hm."]}) + "\n" for row in rows))
    run(commands, model, tmp_path, "zero3", kind="sft", rows=8, callback={"own_responses": str(own)})
    expected = offline(model, tmp_path, rows, kind="sft", own=OwnConfig(file=str(own)))
    assert least_cosine(VectorStore.open(tmp_path / "audit" / "vectors"), expected.store) >= 0.99999


@pytest.mark.parametrize("config", ["ddp", pytest.param("zero3", marks=BUILDS), "fsdp2"])
def test_weights_and_skipping_are_those_of_one_process(
    config: str, model: Path, tmp_path: Path, commands: Commands
) -> None:
    """Gradient by gradient, as far as logs tell: each loss and norm is that of the weights which earlier steps left."""
    rows = [{**row, "weight": 0.25 * (number % 6)} for number, row in enumerate(text_rows())]
    callback = {**ONLINE, "weights": "weight", "on_flag": "skip"}
    settings = {"optim": "sgd", "learning_rate": 0.5, "logging_steps": 1, "gradient_checkpointing": False}
    alone = make_trainer(model, tmp_path, rows, **settings)
    train(alone, AttributionCallback(alone, probes=[probe_on(model)], output_dir=tmp_path / "one", **callback))
    two = {**settings, "per_device_train_batch_size": 2}
    run(commands, model, tmp_path, config, probes=str(model / "probes"), callback=callback, settings=two, data=rows)
    logs = [alone.state.log_history, json.loads((tmp_path / "log.json").read_text())]
    for name in ("loss", "grad_norm"):
        expected, found = ([entry[name] for entry in log if "loss" in entry] for log in logs)
        assert found == pytest.approx(expected, rel=1e-4) and len(found) == 6
    one = AuditInfo.load(tmp_path / "one").training
    assert one is not None and 0 < one.skipped_rows == training_of(tmp_path)["skipped_rows"] < 24


def _check_change(folder: Path, model: Path) -> None:
    """What ranks that share M0 and M1 sample and read of them is what one process does that has M0 whole."""
    m0 = load_model(model, dtype="float32")
    asked = [row["prompt"] for row in PROMPTS]
    sampling = SamplingConfig(SAMPLING["samples"], SAMPLING["max_new_tokens"], batch_size=2, seed=SAMPLING["seed"])
    before, after = (
        Responses.load(folder / "audit" / "behaviors" / name).by_behavior["numbers_said"].texts
        for name in ("before.json", "after.json")
    )
    assert before == tuple(sample_responses(m0, asked, sampling))
    assert len(after) == len(asked) and before != after
    (behavior,) = read_behaviors(folder / BEHAVIORS)
    sampled = [SampledPrompt(*one) for one in zip(behavior.prompts.prompts, before, after, strict=True)]
    examples = Examples("by hand", changed_prompts(sampled, parse_rule(SAMPLING["judge"]), False).examples)
    probe = ProbeRegistry(folder / "audit" / "probes").load("numbers_said-changed")
    config = BuildConfig(ActivationConfig(layers=tuple(run_dpo.LAYERS)), layer=probe.layer, encoding=Encoding())
    by_hand = build_from_examples("by-hand", examples, m0, config, {})
    torch.testing.assert_close(probe.vector, by_hand.vector, atol=1e-5, rtol=1e-4)
    assert probe.promoted_tokens == by_hand.promoted_tokens
    assert all(layer.norm > 0 for layer in load_drift(folder / "audit").layers)


def _check_metrics(folder: Path) -> None:
    """A log's metrics lie among the scores that the audit ends with, and its share is one of the 16 pairs in it."""
    (log,) = (entry for entry in json.loads((folder / "log.json").read_text()) if "attribution/numbers/mean" in entry)
    tables = {column.probe: table for column, table in ScoreTable.open(folder / "audit" / "scores.parquet")}
    scores = tables["numbers"].column("score").to_pylist()
    assert min(scores) < log["attribution/numbers/mean"] < log["attribution/numbers/max"] <= max(scores) + 1e-5
    flagged = 16 * log["attribution/flagged_fraction"]
    assert flagged == pytest.approx(round(flagged)) and 0 < flagged < 16


def test_a_rank_that_dies_takes_the_run_with_it_and_another_number_of_processes_resumes_it(
    model: Path, expected: Audit, tmp_path: Path, commands: Commands
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    asked: dict[str, Any] = {"model": str(model), "folder": str(tmp_path), "settings": settings}
    start = time.monotonic()
    status, output = completed(launch(commands, tmp_path, {**asked, "die_at": 2, "die_on": 1}, "ddp"), seconds=90)
    assert time.monotonic() - start < 90
    assert status != 0 and "rank 1 was told to die" in output
    assert not (tmp_path / "audit" / "audit.json").exists()
    assert sorted(part.name for part in (tmp_path / "audit" / "parts").glob("0*")) == ["00000", "00001"]

    run_dpo.main({**asked, "resume": True})
    assert least_cosine(VectorStore.open(tmp_path / "audit" / "vectors"), expected.store) >= 0.99999
    found = training_of(tmp_path)
    assert (found["ranks"], found["never_seen"]) == (1, 0)
    assert 0 < found["captured"] <= 24
