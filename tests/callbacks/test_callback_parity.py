"""What is read while training is what an offline audit computes, however the trainer comes by its reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from tests.tiny import BLOCKS_TEMPLATE, vision_processor
from tests.training import (
    LAYERS,
    audited,
    chat_rows,
    config,
    least_cosine,
    make_trainer,
    offline,
    probe_on,
    text_rows,
    train,
)
from trl_attribution import DataAuditor, Manifest, VectorStore, pair_id
from trl_attribution.callbacks import AttributionCallback
from trl_attribution.errors import DataError
from trl_attribution.models import load_model

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
REENTRANT = dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})

# name -> arguments of DPOTrainer, settings of DPOConfig, where M0 is read
MODES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "plain": ({}, {}, "reference model"),
    "no checkpointing": ({}, {"gradient_checkpointing": False}, "reference model"),
    "re-entrant checkpointing": ({}, REENTRANT, "reference model"),
    "accumulation": ({}, {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}, "reference model"),
    "two epochs": ({}, {"num_train_epochs": 2}, "reference model"),
    "adapter": ({"peft_config": LORA}, {}, "disabled adapter"),
    "adapter, re-entrant checkpointing": ({"peft_config": LORA}, REENTRANT, "disabled adapter"),
    "adapter, accumulation": (
        {"peft_config": LORA},
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2},
        "disabled adapter",
    ),
    "prompt tuning": (
        {"peft_config": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)},
        {"gradient_checkpointing": False},
        "dedicated pass",
    ),
    "precomputed, callback added later": ({}, {"precompute_ref_log_probs": True}, "dedicated pass"),
    "moving reference": ({}, {"sync_ref_model": True, "ref_model_sync_steps": 1}, "dedicated pass"),
    "loss without sigmoid": ({}, {"loss_type": "ipo", "ld_alpha": 0.5}, "reference model"),
}


@pytest.mark.parametrize("mode", MODES)
def test_vectors_read_while_training_equal_those_of_the_offline_audit(
    mode: str, model_folder: Path, tmp_path: Path
) -> None:
    trainer, settings, source = MODES[mode]
    rows = text_rows()
    found = audited(model_folder, tmp_path, rows, trainer=trainer, **settings).finished
    assert found is not None
    assert found.audit.info.vectors.path == source
    assert found.audit.info.training is not None and found.audit.info.training.never_seen == 0
    assert least_cosine(found.audit.store, offline(model_folder, tmp_path, rows).store) >= 0.99999


def test_responses_that_end_with_the_end_of_text_have_the_ids_of_the_offline_audit(
    model_folder: Path, tmp_path: Path
) -> None:
    rows = text_rows()
    endings = [("<|im_end|>", ""), ("", "<|im_end|>"), ("<|im_end|>", "<|im_end|>"), ("<|im_end|><|im_end|>", "")]
    for row, (chosen, rejected) in zip(rows, endings, strict=False):
        row["chosen"] += chosen
        row["rejected"] += rejected
    found = audited(model_folder, tmp_path, rows).finished
    assert found is not None
    expected = offline(model_folder, tmp_path, rows)
    assert found.audit.index.pair_ids == expected.index.pair_ids
    assert found.audit.info.dataset.fingerprint == expected.info.dataset.fingerprint
    assert least_cosine(found.audit.store, expected.store) >= 0.99999
    plain = text_rows()
    assert expected.index.pair_ids[4:] == tuple(pair_id(row) for row in plain[4:])
    assert expected.index.pair_ids[:3] == tuple(pair_id(row) for row in plain[:3])
    assert expected.index.pair_ids[3] != pair_id(plain[3])


def test_the_manifest_of_a_run_finds_responses_that_end_with_the_end_of_text(
    model_folder: Path, tmp_path: Path
) -> None:
    rows = [{**row, "chosen": row["chosen"] + "<|im_end|>"} for row in text_rows()]
    running = make_trainer(model_folder, tmp_path, rows)
    probe = probe_on(model_folder)
    train(running, AttributionCallback(running, probes=[probe], layers=[3], output_dir=tmp_path / "audit", top_k=5))
    manifest = Manifest.load(tmp_path / "audit" / "manifest.flip.jsonl")
    turned = manifest.apply(rows)
    flipped = [place for place, (one, other) in enumerate(zip(rows, turned, strict=True)) if one != other]
    assert flipped == sorted(decision.row for decision in manifest.decisions)
    assert flipped
    assert manifest.apply(turned, undo=True) == rows


def test_a_run_through_a_processor_has_the_vectors_of_the_audit_through_it(model_folder: Path, tmp_path: Path) -> None:
    loaded = load_model(model_folder, dtype="float32")
    processor = vision_processor(loaded.tokenizer)
    found = audited(model_folder, tmp_path, chat_rows(), trainer={"processing_class": processor}).finished
    assert found is not None
    auditor = DataAuditor(replace(loaded, processor=processor), layers=LAYERS, vector_dtype="float32")
    expected = auditor.audit(chat_rows(), tmp_path / "offline")
    assert least_cosine(found.audit.store, expected.store) >= 0.99999


def test_a_run_whose_template_leaves_the_text_out_is_refused_before_its_first_step(
    model_folder: Path, tmp_path: Path
) -> None:
    tokenizer = load_model(model_folder, dtype="float32").tokenizer
    tokenizer.chat_template = BLOCKS_TEMPLATE
    running = make_trainer(model_folder, tmp_path, chat_rows(), trainer={"processing_class": tokenizer})
    with pytest.raises(DataError, match="leaves out what the user says as plain text"):
        train(running, AttributionCallback(running, layers=LAYERS, output_dir=tmp_path / "audit"))
    assert running.state.global_step == 0
    assert not (tmp_path / "audit" / "vectors").exists()


def test_rows_whose_text_the_template_leaves_out_are_counted_where_others_are_read(
    model_folder: Path, tmp_path: Path
) -> None:
    tokenizer = load_model(model_folder, dtype="float32").tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}{{ m.role }}: {{ m.content }}\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    rows = chat_rows(8)
    rows[3]["prompt"] = [{"role": "developer", "content": "Write a poem."}]
    running = make_trainer(model_folder, tmp_path, rows, trainer={"processing_class": tokenizer})
    callback = AttributionCallback(running, layers=LAYERS, output_dir=tmp_path / "audit")
    train(running, callback)
    assert callback.finished is not None
    assert callback.finished.audit.info.dataset.skipped == {"text_vanishes": 1}
    assert len(callback.finished.audit.store) == 7


def test_vectors_of_conversations_are_equal_too(model_folder: Path, tmp_path: Path) -> None:
    found = audited(model_folder, tmp_path, chat_rows()).finished
    assert found is not None
    assert least_cosine(found.audit.store, offline(model_folder, tmp_path, chat_rows()).store) >= 0.99999


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_vectors_of_truncated_pairs_are_equal_too(mode: str, model_folder: Path, tmp_path: Path) -> None:
    cut = dict(max_length=48, truncation_mode=mode)
    rows = text_rows()
    found = audited(model_folder, tmp_path, rows, **cut).finished
    expected = offline(model_folder, tmp_path, rows, **cut)
    assert found is not None
    assert expected.info.dataset.truncated_pairs > 0
    assert least_cosine(found.audit.store, expected.store) >= 0.99999


def test_vectors_in_bfloat16_are_close_to_those_of_the_offline_audit(model_folder: Path, tmp_path: Path) -> None:
    found = audited(model_folder, tmp_path, text_rows(), bf16=True).finished
    assert found is not None
    assert found.audit.store.settings.compute_dtype == "bfloat16"
    assert least_cosine(found.audit.store, offline(model_folder, tmp_path, text_rows(), "bfloat16").store) >= 0.99


@pytest.mark.slow
def test_vectors_of_a_compiled_model_are_equal_too(model_folder: Path, tmp_path: Path) -> None:
    settings = dict(torch_compile=True, torch_compile_backend="eager", gradient_checkpointing=False)
    found = audited(model_folder, tmp_path, text_rows(8), **settings).finished
    assert found is not None
    assert least_cosine(found.audit.store, offline(model_folder, tmp_path, text_rows(8)).store) >= 0.99999


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "qwen3"])
def test_vectors_of_other_architectures_are_equal_too(
    architecture: str, make_model: Callable[[str], Any], tokenizer: Any, tmp_path: Path
) -> None:
    make_model(architecture).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    found = audited(tmp_path / "model", tmp_path, text_rows(8)).finished
    assert found is not None
    assert least_cosine(found.audit.store, offline(tmp_path / "model", tmp_path, text_rows(8)).store) >= 0.99999


def test_the_precompute_pass_is_read_by_a_callback_given_at_construction(model_folder: Path, tmp_path: Path) -> None:
    rows = text_rows()
    callback = AttributionCallback(dataset=rows, layers=LAYERS, output_dir=tmp_path / "audit")
    trainer = make_trainer(
        model_folder, tmp_path, rows, trainer={"callbacks": [callback]}, precompute_ref_log_probs=True
    )
    train(trainer)
    assert callback.finished is not None
    assert callback.finished.audit.info.vectors.path == "precompute pass"
    assert least_cosine(callback.finished.audit.store, offline(model_folder, tmp_path, rows).store) >= 0.99999


def test_a_precompute_pass_that_trl_takes_from_its_cache_is_made_up_for(model_folder: Path, tmp_path: Path) -> None:
    rows = text_rows()
    dataset = Dataset.from_list(rows)
    dataset.save_to_disk(tmp_path / "data")
    for attempt in ("first", "second"):
        callback = AttributionCallback(dataset=rows, layers=LAYERS, output_dir=tmp_path / attempt)
        trainer = DPOTrainer(
            str(model_folder),
            args=config(tmp_path, precompute_ref_log_probs=True),
            train_dataset=Dataset.load_from_disk(str(tmp_path / "data")),
            callbacks=[callback],
        )
        train(trainer)
        assert callback.finished is not None
        source = {"first": "precompute pass", "second": "dedicated pass"}[attempt]
        assert callback.finished.audit.info.vectors.path == source
    first, second = (VectorStore.open(tmp_path / attempt / "vectors") for attempt in ("first", "second"))
    assert least_cosine(second, first) >= 0.99999


def test_a_callback_without_the_trainer_audits_the_policy_before_its_first_step(
    model_folder: Path, tmp_path: Path
) -> None:
    rows = text_rows()
    callback = AttributionCallback(dataset=rows, layers=LAYERS, output_dir=tmp_path / "audit")
    train(make_trainer(model_folder, tmp_path, rows, trainer={"callbacks": [callback]}))
    assert callback.finished is not None
    assert least_cosine(callback.finished.audit.store, offline(model_folder, tmp_path, rows).store) >= 0.99999


def test_a_trained_adapter_is_audited_with_its_frozen_copy(model_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), LORA)
    merged = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), LORA)
    merged.load_state_dict(adapted.state_dict())
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    trainer = make_trainer(
        adapted, tmp_path, text_rows(), trainer={"processing_class": _tokenizer(model_folder, tmp_path / "merged")}
    )
    callback = AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")
    train(trainer, callback)
    assert callback.finished is not None
    assert callback.finished.audit.info.vectors.path == "reference adapter"
    below = offline(model_folder, tmp_path / "below", text_rows(8)).info.model.digest
    assert callback.finished.audit.info.model.digest != below  # probes of the model without its adapter do not fit
    assert least_cosine(callback.finished.audit.store, offline(tmp_path / "merged", tmp_path, text_rows()).store) >= (
        0.99999
    )


def _tokenizer(folder: Path, also: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(also)
    return tokenizer


@pytest.mark.parametrize("settings", [{}, {"precompute_ref_log_probs": True}])
def test_a_reference_model_that_was_given_is_m0_whatever_the_policy_is(
    settings: dict[str, Any], model_folder: Path, tmp_path: Path, make_model: Callable[[str], Any], tokenizer: Any
) -> None:
    policy = make_model("llama")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    reference = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    arguments = {"ref_model": reference, "processing_class": tokenizer}
    found = audited(policy, tmp_path, text_rows(8), trainer=arguments, **settings).finished
    assert found is not None
    expected = offline(model_folder, tmp_path, text_rows(8))
    assert found.audit.info.model.digest == expected.info.model.digest
    assert least_cosine(found.audit.store, expected.store) >= 0.99999


def test_a_dedicated_pass_computes_in_the_dtype_that_it_says(model_folder: Path, tmp_path: Path) -> None:
    settings = dict(precompute_ref_log_probs=True, bf16=True)
    found = audited(model_folder, tmp_path, text_rows(8), trainer={"peft_config": LORA}, **settings).finished
    assert found is not None and found.audit.store.settings.compute_dtype == "bfloat16"
    exact = offline(model_folder, tmp_path / "exact", text_rows(8)).store
    assert 0.99 < least_cosine(found.audit.store, exact) < 0.999999


def test_the_fingerprint_of_m0_is_the_one_that_an_offline_audit_has(model_folder: Path, tmp_path: Path) -> None:
    for name, trainer in (("plain", {}), ("adapter", {"peft_config": LORA})):
        found = audited(model_folder, tmp_path / name, text_rows(8), trainer=trainer).finished
        assert found is not None
        assert found.audit.info.model.digest == offline(model_folder, tmp_path / name, text_rows(8)).info.model.digest


def test_all_scores_of_a_run_equal_those_of_the_offline_audit(model_folder: Path, tmp_path: Path) -> None:
    probe = probe_on(model_folder)
    trainer = make_trainer(model_folder, tmp_path, text_rows())
    callback = AttributionCallback(
        trainer, probes=[probe], top_k=5, vector_dtype="float32", output_dir=tmp_path / "audit"
    )
    train(trainer, callback)
    expected = DataAuditor(str(model_folder), probes=[probe], dtype="float32", vector_dtype="float32").audit(
        Dataset.from_list(text_rows()), tmp_path / "offline"
    )
    assert callback.finished is not None and callback.finished.audit.scores is not None
    assert expected.scores is not None
    (column,) = expected.scores.columns
    assert callback.finished.audit.scores.of(column) == pytest.approx(expected.scores.of(column), abs=1e-5)
    assert {one.pair_id for one in Manifest.load(tmp_path / "audit" / "manifest.flip.jsonl").decisions} <= {
        found.pair_id for found in expected.flag(top_k=5).flags
    }
