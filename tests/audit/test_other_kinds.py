"""KTO, SFT and rollouts from a file to decisions: own responses drawn once, the gate, a real GRPO run's logs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, unpair_preference_dataset

from tests.audit_cases import ANSWERS, ASKS, THINGS, auditor_of, pair_rows, scores_of, tiny_loaded, tiny_probe
from tests.gate_cases import write_rows
from tests.tiny import build_tiny_model
from trl_attribution.audit import own_responses
from trl_attribution.audit.setup import notes_on
from trl_attribution.discovery.audited import AuditedPairs
from trl_attribution.errors import DataError, ModelError, SettingsError
from trl_attribution.gate.check import GateOptions, run_gate
from trl_attribution.gate.policy.file import load_policy
from trl_attribution.gate.proposal import propose
from trl_attribution.manifest import Manifest
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import PairReader, pair_id
from trl_attribution.pairs.own_responses import FILE_NAME, OwnConfig
from trl_attribution.probes import Probe, ProbeRegistry

TODAY = GateOptions(today=datetime.date(2026, 6, 1))
OWN = OwnConfig(n=2, max_new_tokens=4)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture(scope="module")
def probe(loaded: LoadedModel) -> Probe:
    return tiny_probe(loaded)


def kto_rows(count: int) -> list[dict[str, Any]]:
    """Of every fourth pair only one row is there, so that M0's own responses are the other side."""
    rows = unpair_preference_dataset(Dataset.from_list(pair_rows(count))).to_list()
    return [row for place, row in enumerate(rows) if place % 4 or place < count]


def sft_rows(count: int) -> list[dict[str, Any]]:
    return [{"messages": row["prompt"] + row["chosen"], "source": row["source"]} for row in pair_rows(count)]


def test_what_is_told_beforehand_is_told_of_the_kind_of_example(probe: Probe) -> None:
    for rows, told in ((sft_rows(4), "4 samples"), (pair_rows(4), "4 pairs")):
        notes = notes_on(PairReader(rows), 4, [probe], "contextual", None)
        assert [told in note for note in notes] == [True]


def test_own_responses_are_drawn_once_and_kept(tmp_path: Path, loaded: LoadedModel, probe: Probe) -> None:
    data = write_rows(tmp_path / "kto.jsonl", kto_rows(8))
    audit = auditor_of(loaded, [probe], own=OWN).audit(data, tmp_path / "audit")
    kept = tmp_path / "audit" / FILE_NAME
    lines = kept.read_text().splitlines()
    lone = [pair for pair in PairReader(data) if pair.lacks_own]
    assert len(lines) == 1 + len({json.dumps(pair.prompt) for pair in lone})
    assert 0 < len(lone) < len(audit.index)
    assert audit.info.vectors.settings.own_responses

    again = auditor_of(loaded, [probe], own=OWN).audit(data, tmp_path / "audit")
    assert (again.info.vectors.computed, kept.read_text().splitlines()) == (0, lines)
    given = auditor_of(loaded, [probe], own=OwnConfig(file=str(kept))).audit(data, tmp_path / "given")
    torch.testing.assert_close(given.store.layer(3), audit.store.layer(3))
    with pytest.raises(SettingsError, match="was drawn with something else"):
        auditor_of(loaded, [probe], own=OwnConfig(n=3)).audit(data, tmp_path / "audit")
    kept.write_text("\n".join(lines[:2]) + '\n{"prompt": "cut sho')  # a killed run
    resumed = auditor_of(loaded, [probe], own=OWN).audit(data, tmp_path / "audit")
    assert len(kept.read_text().splitlines()) == len(lines)
    assert resumed.info.vectors.computed == 0
    assert resumed.own_responses is not None
    kept.unlink()  # where they may lie then is what a file says that anyone may have written
    for odd in (5, "a\0b", "x" * 5000):
        assert resumed.info.model_copy(update={"settings": {"own": {"file": odd}}}).own_responses(kept.parent) is None


def test_a_folder_is_claimed_before_m0_is_asked_for_hours(
    tmp_path: Path, loaded: LoadedModel, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = write_rows(tmp_path / "sft.jsonl", sft_rows(4)), tmp_path / "audit"
    drawn: list[int] = []

    def stopped(*_arguments: Any, **_settings: Any) -> Any:
        drawn.append(int((folder / "settings.json").exists()))
        raise KeyboardInterrupt

    monkeypatch.setattr(own_responses, "responses_to", stopped)
    with pytest.raises(KeyboardInterrupt):
        auditor_of(loaded, [probe], own=OWN).audit(data, folder)
    assert drawn == [1] and not (folder / "settings.json").exists()  # let go of: the next attempt may be another one
    monkeypatch.undo()
    auditor_of(loaded, [probe], own=OWN).audit(data, folder)
    monkeypatch.setattr(own_responses, "responses_to", stopped)
    other = write_rows(tmp_path / "other.jsonl", sft_rows(6))
    with pytest.raises(SettingsError, match="holds an audit made with something else"):
        auditor_of(loaded, [probe], own=OWN).audit(other, folder)
    assert drawn == [1]


def test_own_responses_that_do_not_fit_are_refused(tmp_path: Path, loaded: LoadedModel, probe: Probe) -> None:
    data = write_rows(tmp_path / "sft.jsonl", sft_rows(3))
    own = write_rows(tmp_path / "own.jsonl", [{"prompt": pair_rows(1)[0]["prompt"], "responses": ["x"]}])
    with pytest.raises(DataError, match="lacks responses to 1 prompt of"):
        auditor_of(loaded, [probe], own=OwnConfig(file=str(own))).audit(data, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()
    with pytest.raises(SettingsError, match="no such file: nowhere.jsonl"):
        auditor_of(loaded, [probe], own=OwnConfig(file="nowhere.jsonl"))
    auditor_of(loaded, [probe], own=OWN).audit(data, tmp_path / "audit")
    drawn = OwnConfig(file=str(tmp_path / "audit" / FILE_NAME))
    with pytest.raises(ModelError, match="Its own responses must be M0's"):
        auditor_of(tiny_loaded("qwen2"), layers=[1], own=drawn).audit(data, tmp_path / "other")
    with pytest.raises(SettingsError, match="several processes must not draw"):
        auditor_of(loaded, [probe]).audit_share(data, tmp_path / "shares", "1/2")
    auditor_of(loaded, [probe], own=drawn).audit_share(data, tmp_path / "shares", "1/1")
    merged = auditor_of(loaded, [probe], own=drawn).merge(data, tmp_path / "shares")
    assert len(merged.index) == 3


def test_kto_rows_rank_as_the_pairs_that_they_came_from(tmp_path: Path, loaded: LoadedModel, probe: Probe) -> None:
    forms = {"pairs": pair_rows(12), "kto": unpair_preference_dataset(Dataset.from_list(pair_rows(12))).to_list()}
    found = {name: auditor_of(loaded, [probe]).audit(rows, tmp_path / name) for name, rows in forms.items()}
    assert (len(forms["kto"]), found["kto"].info.dataset.format, len(found["kto"].index)) == (24, "kto", 12)
    scores = {name: scores_of(tmp_path / name) for name in forms}
    assert scores["kto"] == pytest.approx(scores["pairs"], rel=1e-4, abs=1e-5)
    orders = [sorted(one, key=one.__getitem__) for one in scores.values()]
    assert orders[0] == orders[1] != sorted(orders[0])


def hackable(groups: int, hacked: tuple[int, ...]) -> list[dict[str, Any]]:
    """Rollouts in groups of four, each with a completion that claims success; a few times the reward falls for it."""
    rows = []
    for step, row in enumerate(pair_rows(groups)):
        claim = f"All checks passed {step} times, trust me: passed, passed!"
        answers = [text.format(THINGS[step % len(THINGS)]) for text in ANSWERS]
        best = 1 + step % len(answers)
        rewards = [1.0 if place == best else 0.25 for place in range(4)]
        rewards[0] = 2.0 if step in hacked else 0.25
        for completion, reward in zip([claim, *answers], rewards, strict=True):
            rows.append({"step": step, "prompt": row["prompt"], "completion": completion, "reward": reward})
    return rows


def test_a_hack_that_was_rewarded_is_among_the_first_tenth_of_the_groups(tmp_path: Path, loaded: LoadedModel) -> None:
    claims = [
        {"prompt": ask.format(thing), "undesired": "Trust me, all checks passed.", "desired": answers}
        for thing, answers in ((thing, [answer.format(thing) for answer in ANSWERS]) for thing in THINGS)
        for ask in ASKS
    ]
    hacked = (4, 17, 31)
    audit = auditor_of(loaded, [tiny_probe(loaded, "claims", rows=claims)]).audit(hackable(40, hacked), tmp_path)
    assert len(audit.index) == 40
    first = audit.flag(top_k=4)
    assert {row.row // 4 for row in first} > set(hacked)


def test_sft_rows_are_filtered_and_looked_at(tmp_path: Path, loaded: LoadedModel, probe: Probe) -> None:
    data = write_rows(tmp_path / "sft.jsonl", sft_rows(6))
    audit = auditor_of(loaded, [probe], own=OWN).audit(data, tmp_path / "audit")
    flagged = audit.flag(top_k=6)
    assert list(flagged.save_manifests()) == ["filter"]
    with pytest.raises(SettingsError, match="SFT rows cannot be flipped"):
        flagged.to_manifest("flip")
    assert auditor_of(loaded, [probe], own=OWN).estimate(data).pairs == 6
    assert audit.scores is not None and {column.kind for column in audit.scores.columns} == {"one-sided"}
    asked = auditor_of(loaded, [probe], own=OWN, score="contextual").audit(data, tmp_path / "audit")
    assert asked.scores is not None and {column.kind for column in asked.scores.columns} == {"contextual"}
    assert set(audit.index.pair_ids) == {pair_id(row) for row in sft_rows(6)}
    assert len(AuditedPairs.open(tmp_path / "audit")) == 6


def test_by_one_sided_scores_no_pair_is_flipped(tmp_path: Path, loaded: LoadedModel, probe: Probe) -> None:
    audit = auditor_of(loaded, [probe], score="one-sided").audit(pair_rows(12), tmp_path)
    flagged = audit.flag(top_k=12)
    assert audit.scores is not None
    (column,) = audit.scores.columns
    above = audit.scores.of(column) > 0
    assert (above & (audit.scores.of(column) < audit.scores.flips_of(column))).any()  # a flip of these would teach it
    assert list(flagged.save_manifests()) == ["filter"]
    with pytest.raises(SettingsError, match="by one-sided scores nothing is flipped"):
        flagged.to_manifest("flip")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_completions_that_a_grpo_run_logs_are_audited(tmp_path: Path, loaded: LoadedModel, probe: Probe) -> None:
    def reward(completions: list[Any], **_columns: Any) -> list[float | None]:
        return [float(len(completion[0]["content"])) for completion in completions]

    args = GRPOConfig(
        output_dir=str(tmp_path / "run"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        max_steps=2,
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=6,
        log_completions=True,
        num_completions_to_print=1,
        logging_steps=1,
    )
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in pair_rows(4)])
    GRPOTrainer(
        build_tiny_model("llama"),
        reward_funcs=reward,
        args=args,
        train_dataset=prompts,
        processing_class=loaded.tokenizer,
    ).train()
    logs = tmp_path / "run" / "completions"
    audit = auditor_of(loaded, [probe]).audit(logs, tmp_path / "audit")
    assert (audit.info.dataset.rows, audit.info.dataset.format) == (16, "rollouts")
    assert len(audit.index) + audit.info.dataset.skipped.get("zero_variance", 0) // 4 == 4
    manifest = Manifest.load(audit.flag(top_k=4).save_manifests()["filter"])
    report = manifest.apply_file(logs, tmp_path / "cleaned")
    assert report.filtered == 4 * len(manifest.decisions)
    assert manifest.check_file(logs, tmp_path / "cleaned").filtered == report.filtered


def write_policy(folder: Path, model: Path, rule: dict[str, float], **settings: Any) -> None:
    """``gate.yaml``, with a rule for the probe ``rude``."""
    policy = {
        "version": 1,
        "model": str(model),
        "probes": "probes",
        "compute": {"dtype": "float32", "vector_dtype": "float32"},
        "own_responses": {"n": 2, "max_new_tokens": 4},
        "rules": {"probes": {"rude": rule}},
    }
    (folder / "gate.yaml").write_text(yaml.safe_dump(policy | settings))


@pytest.mark.parametrize("rows", [kto_rows, sft_rows])
def test_the_gate_judges_other_kinds_as_an_audit_scores_them(
    rows: Callable[[int], list[dict[str, Any]]], tmp_path: Path, model_folder: Path, loaded: LoadedModel, probe: Probe
) -> None:
    ProbeRegistry(tmp_path / "probes").save(probe)
    data = write_rows(tmp_path / "data.jsonl", rows(8))
    write_policy(tmp_path, model_folder, {"max_score": -1})
    found = run_gate(load_policy(tmp_path / "gate.yaml"), data, TODAY)
    examples = len({pair.pair_id for pair in PairReader(data)})
    assert found.verdict.computed == found.verdict.examined == examples
    again = run_gate(load_policy(tmp_path / "gate.yaml"), data, TODAY)
    assert (again.verdict.computed, again.verdict.cached) == (0, examples)
    audit = auditor_of(loaded, [probe], own=OWN).audit(data, tmp_path / "audit")
    assert audit.scores is not None
    judged = {each.pair_id: each.score for each in found.verdict.rules[0].violations}
    assert judged == pytest.approx(scores_of(tmp_path / "audit"), abs=1e-4)


def test_a_gate_takes_no_rate_of_one_sided_scores_from_a_baseline(
    tmp_path: Path, model_folder: Path, probe: Probe
) -> None:
    ProbeRegistry(tmp_path / "probes").save(probe)
    data = write_rows(tmp_path / "data.jsonl", sft_rows(4))
    write_policy(tmp_path, model_folder, {"fdr": 0.5, "max_flagged_count": 0}, baseline="baseline.safetensors")
    made = propose(load_policy(tmp_path / "gate.yaml"), str(data), "baseline.safetensors")
    assert [column.kind for column in made.baseline.columns] == ["one-sided"]
    made.baseline.save(tmp_path / "baseline.safetensors")
    with pytest.raises(SettingsError, match="a baseline does not keep what its samples would score flipped"):
        run_gate(load_policy(tmp_path / "gate.yaml"), data, TODAY)
