"""Models load from folders and GGUF files, with a fingerprint that tells M0 from every other model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from trl_attribution.behaviors import SamplingConfig, sample_responses
from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.models import embedded_gguf, load_model
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.models.identity import ModelFingerprint

MakeModel = Callable[[str], PreTrainedModel]


def test_a_saved_model_has_the_fingerprint_of_the_one_in_memory(
    model_folder: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    loaded = load_model(model_folder, dtype="float32")
    assert loaded.fingerprint == fingerprint(make_model("llama"), tokenizer)
    assert not loaded.model.training


@pytest.mark.parametrize(
    ("architecture", "digest"),
    [
        ("llama", "4115cb1078cdb6b8167a8f9727f426b6"),
        ("gpt2", "f0d4cceb25d70b965bee37c5cae5890f"),
        ("gemma3", "db5ddcbbe00bd69030c5204a88aafd9b"),
    ],
)
def test_fingerprints_stay_what_probes_on_disk_say(architecture: str, digest: str, make_model: MakeModel) -> None:
    model = make_model(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.arange(parameter.numel()) % 97).reshape(parameter.shape) / 128)
    assert fingerprint(model, None).digest == digest


def test_the_fingerprint_does_not_depend_on_the_dtype_of_the_load(model_folder: Path) -> None:
    assert load_model(model_folder, "float32").fingerprint == load_model(model_folder, "bfloat16").fingerprint


def test_the_dtype_that_a_nested_config_notes_does_not_count_but_its_other_settings_do(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model("llama")
    found = []
    for part in ({"dtype": "float32", "depth": 2}, {"dtype": "bfloat16", "depth": 2}, {"dtype": "float32", "depth": 3}):
        model.config.vision_config = {**part, "parts": [part]}
        found.append(fingerprint(model, tokenizer).config)
    assert found[0] == found[1] != found[2]


def test_a_reward_model_is_an_m0_of_its_own_loaded_as_its_trainer_does(
    tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = LlamaForSequenceClassification(make_model("llama").config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, dtype="float32")
    assert loaded.fingerprint == load_model(tmp_path, dtype="float32").fingerprint == fingerprint(model, tokenizer)
    with pytest.raises(ModelError, match="LlamaForSequenceClassification cannot write"):
        sample_responses(loaded, ["Hello."], SamplingConfig(1))


def test_training_changes_the_weights_part(make_model: MakeModel, tokenizer: PreTrainedTokenizerFast) -> None:
    before, after = make_model("llama"), make_model("llama")
    optimizer = torch.optim.AdamW(after.parameters(), lr=1e-3)
    ids = torch.tensor([[5, 6, 7, 8]])
    after(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert fingerprint(before, tokenizer).differences(fingerprint(after, tokenizer)) == ["weights"]


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear", "trainable_token_indices": [3, 4]},
    ],
)
def test_fresh_adapters_do_not_count(
    settings: dict[str, Any], make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = fingerprint(make_model("llama"), tokenizer)
    wrapped = get_peft_model(make_model("llama"), LoraConfig(task_type="CAUSAL_LM", **settings))
    wrapped.add_adapter("ref", LoraConfig(task_type="CAUSAL_LM", **settings))
    assert fingerprint(wrapped, tokenizer) == plain
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert fingerprint(wrapped, tokenizer) == plain


def test_a_change_of_the_base_under_adapters_counts(make_model: MakeModel, tokenizer: PreTrainedTokenizerFast) -> None:
    wrapped = get_peft_model(make_model("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    before = fingerprint(wrapped, tokenizer)
    torch.nn.init.zeros_(wrapped.get_base_model().model.layers[2].mlp.down_proj.base_layer.weight)
    assert before.differences(fingerprint(wrapped, tokenizer)) == ["weights"]


def test_wrappers_of_the_whole_model_do_not_count(make_model: MakeModel, tokenizer: PreTrainedTokenizerFast) -> None:
    plain = fingerprint(make_model("llama"), tokenizer)
    assert fingerprint(torch.compile(make_model("llama")), tokenizer) == plain
    assert fingerprint(torch.nn.DataParallel(make_model("llama")), tokenizer) == plain
    with pytest.raises(ModelError, match="Linear is no transformers model"):
        fingerprint(torch.nn.Linear(2, 2), tokenizer)


def test_another_chat_template_changes_its_part(make_model: MakeModel, tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model("llama")
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    other.chat_template = "{{ messages }}"
    assert fingerprint(model, tokenizer).differences(fingerprint(model, other)) == ["chat_template"]


def test_another_config_changes_its_part(make_model: MakeModel, tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model("llama")
    before = fingerprint(model, tokenizer)
    model.config.rms_norm_eps = 1e-3
    assert before.differences(fingerprint(model, tokenizer)) == ["config"]


def test_a_fingerprint_survives_json() -> None:
    original = ModelFingerprint("a", "b", "c")
    assert ModelFingerprint.from_json(original.to_json()) == original


@pytest.mark.parametrize("name", ["./no/such/folder", "no such/model!", "missing.gguf"])
def test_an_unknown_model_is_named(name: str) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        load_model(name)


def test_a_hub_id_that_is_not_cached_is_a_clear_error_while_offline() -> None:
    with pytest.raises(ModelError, match=r"cannot load model nobody/nothing.*cache"):
        load_model("nobody/nothing")


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)


def test_pickled_weights_are_not_loaded(
    tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model("llama")
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(tmp_path)


def test_a_broken_weights_file_is_a_clear_error(
    tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    make_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load model"):
        load_model(tmp_path)


def test_a_broken_tokenizer_is_a_clear_error(
    tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    make_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE"}}')
    with pytest.raises(ModelError, match=f"cannot load model {tmp_path}: .*tokenizer files"):
        load_model(tmp_path)


def test_a_cache_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("TRL_ATTRIBUTION_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"model\.gguf: .*Not a directory.* Set TRL_ATTRIBUTION_CACHE to a folder"):
        load_model(tmp_path / "model.gguf")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_gguf_file_that_may_not_be_read_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch(mode=0o000)
    with pytest.raises(ModelError, match=r"cannot load model .*Permission denied"):
        load_model(tmp_path / "model.gguf")


def test_the_home_folder_of_nobody_is_a_clear_error() -> None:
    with pytest.raises(ModelError, match="~no-such-user/model: ~no-such-user has no home folder"):
        load_model("~no-such-user/model")


@pytest.mark.parametrize(("setting", "value"), [("dtype", "int3"), ("device", "quantum")])
def test_an_unknown_dtype_or_device_is_refused(setting: str, value: str, model_folder: Path) -> None:
    with pytest.raises(SettingsError, match=f"{setting}: '{value}'"):
        load_model(model_folder, **{setting: value})


@pytest.mark.slow
def test_the_embedded_model_answers_sensibly() -> None:
    loaded = load_model(embedded_gguf())
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = loaded.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        out = loaded.model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
