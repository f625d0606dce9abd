"""Behaviors sampled before and after a run, the probes they give, and the drift between M0 and M1."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tests.training import LAYERS, make_trainer, probe_on, text_rows, train
from trl_attribution import ProbeRegistry
from trl_attribution.activations import ActivationConfig, ActivationEngine, PromptGroup
from trl_attribution.behaviors import Examples, SamplingConfig, changed_prompts, matches, sample_responses
from trl_attribution.behaviors.chat_completions import EndpointConfig
from trl_attribution.behaviors.responses import Responses, read_behaviors
from trl_attribution.behaviors.sampling import SampledPrompt
from trl_attribution.callbacks import AttributionCallback
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.readouts.drift import drift, load_drift, mean_activations
from trl_attribution.models import load_model
from trl_attribution.pairs import Encoding, PairReader, Reading, encode_pairs
from trl_attribution.probes import BuildConfig, build_from_examples
from trl_attribution.scoring import ScoreTable

PROMPTS = [{"prompt": f"Say something about {word}.", "behavior": "shouts"} for word in ("tea", "rain", "ink", "moss")]
SAMPLING = SamplingConfig(n=3, max_new_tokens=12, seed=5)
SETTINGS: dict[str, Any] = dict(samples=3, max_new_tokens=12, seed=5, judge="regex:[A-K]", layers=LAYERS)
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)


@pytest.fixture
def behaviors(tmp_path: Path) -> Path:
    path = tmp_path / "behaviors.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return path


def run(model: Any, folder: Path, behaviors: Path, **settings: Any) -> tuple[Any, AttributionCallback]:
    callback_settings = {name: settings.pop(name) for name in list(settings) if name in ("judge", "resume")}
    trainer = make_trainer(model, folder, text_rows(), num_train_epochs=2, **settings)
    callback = AttributionCallback(
        trainer, behaviors=behaviors, output_dir=folder / "audit", **{**SETTINGS, **callback_settings}
    )
    train(trainer, callback)
    assert callback.finished is not None
    return trainer, callback


@pytest.mark.parametrize("mode", ["reference model", "adapter", "precomputed"])
def test_rates_are_those_of_the_models_own_responses(
    mode: str, model_folder: Path, tmp_path: Path, behaviors: Path
) -> None:
    settings: dict[str, Any] = {
        "reference model": {},
        "adapter": {"trainer": {"peft_config": LORA}},
        "precomputed": {"precompute_ref_log_probs": True},
    }[mode]
    trainer, callback = run(model_folder, tmp_path, behaviors, **settings)
    m0 = load_model(model_folder, dtype="float32")
    asked = [row["prompt"] for row in PROMPTS]
    before = sample_responses(m0, asked, SAMPLING)
    assert Responses.load(tmp_path / "audit/behaviors/before.json").by_behavior["shouts"].texts == tuple(before)
    trained = trainer.model.merge_and_unload() if mode == "adapter" else trainer.model
    trained.save_pretrained(tmp_path / "m1")
    m0.tokenizer.save_pretrained(tmp_path / "m1")
    after = sample_responses(load_model(tmp_path / "m1", dtype="float32"), asked, SAMPLING)
    kept = Responses.load(tmp_path / "audit/behaviors/after.json").by_behavior["shouts"].texts
    if mode == "adapter":  # merged weights round otherwise, and a sample may tip
        assert sum(map(len, kept)) == sum(map(len, after))
    else:
        assert kept == tuple(after)
    judge = matches("[A-K]")
    assert callback.finished is not None
    (change,) = callback.finished.findings.changes
    assert change.before.shown == sum(
        judge(prompt, text) for prompt, texts in zip(asked, before, strict=True) for text in texts
    )
    assert change.after.shown == sum(
        judge(prompt, text) for prompt, texts in zip(asked, kept, strict=True) for text in texts
    )


def test_the_behavior_that_changed_becomes_a_probe_on_m0_and_is_scored(
    model_folder: Path, tmp_path: Path, behaviors: Path
) -> None:
    run(model_folder, tmp_path, behaviors)
    probe = ProbeRegistry(tmp_path / "audit" / "probes").load("shouts-changed")
    (behavior,) = read_behaviors(behaviors)
    before, after = (
        Responses.load(tmp_path / "audit/behaviors" / name).by_behavior["shouts"].texts
        for name in ("before.json", "after.json")
    )
    sampled = [
        SampledPrompt(prompt, m0, m1) for prompt, m0, m1 in zip(behavior.prompts.prompts, before, after, strict=True)
    ]
    examples = Examples("by hand", changed_prompts(sampled, matches("[A-K]"), False).examples)
    config = BuildConfig(ActivationConfig(layers=tuple(LAYERS)), layer=probe.layer, encoding=Encoding())
    expected = build_from_examples("by-hand", examples, load_model(model_folder, dtype="float32"), config, {})
    torch.testing.assert_close(probe.vector, expected.vector, atol=1e-5, rtol=1e-4)
    assert {column.probe for column, _ in ScoreTable.open(tmp_path / "audit" / "scores.parquet")} == {"shouts-changed"}
    page = (tmp_path / "audit" / "report.html").read_text()
    assert "shouts-changed" in page and text_rows()[0]["chosen"] in page
    assert (tmp_path / "audit" / "manifest.filter.jsonl").exists()


def test_drift_is_the_distance_between_both_models_on_the_same_tokens(
    model_folder: Path, tmp_path: Path, behaviors: Path
) -> None:
    trainer, callback = run(model_folder, tmp_path, behaviors)
    m0 = load_model(model_folder, dtype="float32")
    pairs = encode_pairs(list(PairReader(text_rows(), Reading(format="trl"))), m0.tokenizer, Encoding())
    groups = [PromptGroup(pair.chosen.prompt_ids, [pair.chosen.response_ids]) for pair in pairs]  # type: ignore[union-attr]
    layers = (1, 2, 3, 4)
    first, second = (
        mean_activations(ActivationEngine(model, ActivationConfig(layers)), groups)
        for model in (m0.model, trainer.model)
    )
    expected = drift(first, second, layers)
    assert callback.finished is not None
    found = {one.layer: one for one in load_drift(tmp_path / "audit").layers}
    assert set(found) == {1, 2, 3, 4}
    for one in expected:
        assert found[one.layer].norm == pytest.approx(one.norm, rel=1e-4)
        assert found[one.layer].direction_consistency == pytest.approx(one.direction_consistency, rel=1e-3)
        assert one.norm > 0


def test_sampling_and_drift_do_not_disturb_training(model_folder: Path, tmp_path: Path, behaviors: Path) -> None:
    for settings in ({}, {"precompute_ref_log_probs": True}):
        alone = make_trainer(model_folder, tmp_path, text_rows(), num_train_epochs=2, **settings)
        train(alone)
        trainer, _ = run(model_folder, tmp_path / f"with{len(settings)}", behaviors, **settings)
        for mine, theirs in zip(trainer.model.parameters(), alone.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)
        assert trainer.model.training == alone.model.training


def test_a_model_that_cannot_be_loaded_again_is_refused_before_the_first_step(
    model_folder: Path, tmp_path: Path, behaviors: Path, tokenizer: Any
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model.config.name_or_path = str(tmp_path / "gone")
    trainer = make_trainer(
        model, tmp_path, text_rows(8), trainer={"processing_class": tokenizer}, precompute_ref_log_probs=True
    )
    callback = AttributionCallback(trainer, behaviors=behaviors, output_dir=tmp_path / "audit", **SETTINGS)
    with pytest.raises(SettingsError, match="M0 is needed again after training"):
        train(trainer, callback)
    assert trainer.state.global_step == 0


def test_a_dead_judge_costs_neither_the_model_nor_the_responses_nor_the_vectors(
    model_folder: Path, tmp_path: Path, behaviors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EndpointConfig, "patience", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trainer, callback = run(model_folder, tmp_path, behaviors, judge=f"endpoint:http://127.0.0.1:{port}/v1#nobody")
    assert trainer.state.global_step == 12
    assert callback.finished is not None
    assert callback.finished.findings.changes == []
    assert any("behaviors:" in note for note in callback.finished.findings.notes)
    assert Responses.load(tmp_path / "audit/behaviors/after.json").by_behavior["shouts"].texts
    assert len(callback.finished.audit.store) == 24


def test_a_judge_of_ones_own_is_asked(model_folder: Path, tmp_path: Path, behaviors: Path) -> None:
    asked: list[str] = []

    def judge(prompt: Any, response: str) -> bool:
        asked.append(response)
        return len(response) > 20

    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    settings = {name: value for name, value in SETTINGS.items() if name != "judge"}
    callback = AttributionCallback(trainer, behaviors=behaviors, judge=judge, output_dir=tmp_path / "audit", **settings)
    train(trainer, callback)
    assert callback.finished is not None and asked
    assert callback.finished.findings.changes[0].before.judged == 12


def test_a_judge_that_breaks_costs_nothing_but_its_verdicts(
    model_folder: Path, tmp_path: Path, behaviors: Path
) -> None:
    def judge(prompt: Any, response: str) -> bool:
        raise RuntimeError("no such thing")

    _, callback = run(model_folder, tmp_path, behaviors, judge=judge)
    assert callback.finished is not None
    assert any("RuntimeError: no such thing" in note for note in callback.finished.findings.notes)
    assert callback.finished.findings.drifts


def test_a_probe_named_as_what_changed_would_be_is_refused_before_the_first_step(
    model_folder: Path, tmp_path: Path, behaviors: Path
) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    callback = AttributionCallback(
        trainer,
        behaviors=behaviors,
        probes=[probe_on(model_folder, "shouts-changed")],
        output_dir=tmp_path / "audit",
        **SETTINGS,
    )
    with pytest.raises(SettingsError, match="a probe of that name is given"):
        train(trainer, callback)
    assert trainer.state.global_step == 0


def test_a_bad_judge_is_refused_before_the_first_step(model_folder: Path, tmp_path: Path, behaviors: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    callback = AttributionCallback(
        trainer, behaviors=behaviors, output_dir=tmp_path / "audit", **{**SETTINGS, "judge": "regex:["}
    )
    with pytest.raises(Exception, match="not a regular expression"):
        train(trainer, callback)
    assert trainer.state.global_step == 0
    assert not (tmp_path / "audit").exists()
