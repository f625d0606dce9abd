"""What a checkpoint lacks is an error before anything is computed, and says what to do."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from tests.tiny import VOCAB_SIZE, build_tiny_multimodal
from trl_attribution import DataAuditor
from trl_attribution.activations import ActivationConfig, ActivationEngine, PromptGroup, find_blocks
from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.models import load_model
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.models.limits import input_limits

MakeModel = Callable[[str], PreTrainedModel]
GROUPS = [PromptGroup([5, 6, 7], [[9, 10, 11], [9, 12]])]


@pytest.fixture
def checkpoint(tmp_path: Path, model_folder: Path) -> Path:
    """A copy of the tiny Llama to break."""
    return Path(shutil.copytree(model_folder, tmp_path / "checkpoint"))


def _edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    kept = {name: value for name, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def _without(*parts: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if any(part in name for part in parts)]:
            del weights[name]

    return edit


@pytest.mark.parametrize("part", ["layers.2.", "layers.3.mlp.up_proj", "model.norm", "embed_tokens", "lm_head"])
def test_a_checkpoint_without_some_weights_is_refused(part: str, checkpoint: Path) -> None:
    _edit_weights(checkpoint, _without(part))
    with pytest.raises(ModelError, match=rf"{checkpoint}: .*{part}.* \(missing\).*random numbers"):
        load_model(checkpoint)


def test_a_head_that_is_tied_to_the_embeddings_is_not_missing(
    tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model("gpt2")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert load_model(tmp_path, dtype="float32").fingerprint == fingerprint(model, tokenizer)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"num_hidden_layers": 5}, r"model\.layers\.4\..* \(missing\)"),
        ({"num_hidden_layers": ...}, r"model\.layers\..* \(missing\)"),
        ({"intermediate_size": 48}, r"mlp\.down_proj\.weight \(32x64, not 32x48\)"),
        ({"architectures": ["LlamaForSequenceClassification"]}, r"score\.weight \(missing\)"),
        ({"model_type": ...}, "model_type"),
        ({"num_hidden_layers": "four"}, "Validation error for field 'num_hidden_layers': .*int"),
    ],
)
def test_a_config_that_does_not_belong_to_the_weights_is_refused(
    setting: dict[str, Any], told: str, checkpoint: Path
) -> None:
    _edit_config(checkpoint, **setting)
    with pytest.raises(ModelError, match=rf"{checkpoint}: .*{told}"):
        load_model(checkpoint)


@pytest.mark.parametrize("text", ["", '{"model', "[]", "3", "\udcff"])
def test_a_config_that_is_no_json_object_is_refused(text: str, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ModelError, match=r"config\.json (cannot be read|holds no JSON object)"):
        load_model(checkpoint)


@pytest.mark.parametrize("architectures", [..., [], ["NoSuchModel"], ["logging"]])
def test_a_checkpoint_that_names_no_known_class_is_a_causal_language_model(
    architectures: Any, checkpoint: Path, model_folder: Path
) -> None:
    _edit_config(checkpoint, architectures=architectures)
    assert load_model(checkpoint).fingerprint == load_model(model_folder).fingerprint


def test_a_vision_tower_may_lack_weights_and_the_text_part_may_not(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build_tiny_multimodal("llava")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _edit_weights(tmp_path, _without("vision_"))
    assert load_model(tmp_path, dtype="float32").fingerprint == fingerprint(model, tokenizer)
    _edit_weights(tmp_path, _without("layers.1.mlp"))
    with pytest.raises(ModelError, match=r"language_model\.layers\.1\.mlp\.\w+\.weight \(missing\)"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer*"])
def test_a_tokenizer_without_its_files_is_refused(name: str, checkpoint: Path) -> None:
    for path in checkpoint.glob(name):
        path.unlink()
    with pytest.raises(ModelError, match=f"{checkpoint}: .*tokenizer"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGUF" + struct.pack("<IQQ", 3, 5, 5), b"GGUF" + bytes(40), b"a text file, perhaps"]
)
def test_a_gguf_file_that_is_cut_short_or_is_none_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRL_ATTRIBUTION_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=rf"cannot load model {tmp_path}/model\.gguf"):
        load_model(tmp_path / "model.gguf")
    assert not any((tmp_path / "cache" / "models").iterdir())


@pytest.mark.parametrize("name", ["x" * 300, "./" + "x" * 300, "owner/" + "x" * 300, "nul\0byte"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        load_model(name)


def test_a_dataset_in_the_place_of_the_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    with pytest.raises(ModelError, match=r"pairs\.jsonl is a dataset file, not a model.*`audit` takes the model first"):
        load_model(tmp_path / "pairs.jsonl")
    with pytest.raises(ModelError, match=r"no config\.json.*`audit` takes the model first"):
        load_model(tmp_path)


def test_an_encoder_decoder_model_is_refused_loaded_or_not(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=VOCAB_SIZE, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for use in (lambda: load_model(tmp_path), lambda: find_blocks(model)):
        with pytest.raises(ModelError, match="t5 is an encoder-decoder model.*Only decoder-only models"):
            use()


def test_weights_that_are_not_finite_are_told_by_their_first_layer(make_model: MakeModel) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    engine = ActivationEngine(model, ActivationConfig((1, 2, 3)))
    with pytest.raises(ModelError, match=r"layers \[2, 3\] of LlamaForCausalLM are not finite"):
        engine.activations(GROUPS)


def test_a_token_beyond_the_embeddings_is_refused_before_anything_is_computed(make_model: MakeModel) -> None:
    engine = ActivationEngine(make_model("llama"), ActivationConfig((1,)))
    with pytest.raises(ModelError, match=f"token {VOCAB_SIZE + 3}, but the model has embeddings for {VOCAB_SIZE}"):
        engine.activations([*GROUPS, PromptGroup([VOCAB_SIZE + 3], [[1]])])
    assert engine.stats.tokens_computed == 0


@pytest.mark.parametrize(("architecture", "positions"), [("gpt2", 512), ("llama", None), ("gpt_neox", None)])
def test_learned_positions_are_a_limit_and_rotary_ones_are_none(
    architecture: str, positions: int | None, make_model: MakeModel
) -> None:
    model = make_model(architecture)
    assert input_limits(model).positions == positions
    engine = ActivationEngine(model, ActivationConfig((1,)))
    fits, longer = PromptGroup([5] * 500, [[6] * 12]), PromptGroup([5] * 500, [[6] * 13])
    engine.activations([fits])
    if positions is None:
        engine.activations([longer])
        return
    with pytest.raises(ModelError, match="513 tokens, but the model has learned 512 positions: give --max-length 512"):
        engine.activations([longer])


def test_opt_keeps_two_places_before_its_first_position() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
    )
    model = OPTForCausalLM(config)
    engine = ActivationEngine(model, ActivationConfig((1,)))
    engine.activations([PromptGroup([5] * 30, [[6] * 10])])
    with pytest.raises(ModelError, match="learned 40 positions"):
        engine.activations([PromptGroup([5] * 30, [[6] * 11])])


def test_an_audit_beyond_the_learned_positions_writes_nothing(
    tmp_path: Path, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    make_model("gpt2").save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    rows = [{"prompt": "How? " * 250, "chosen": f"Yes {n}.", "rejected": "No."} for n in range(2)]
    auditor = DataAuditor(tmp_path / "gpt2", layers=[1], dtype="float32")
    for make in (lambda: auditor.audit(rows, tmp_path / "audit"), lambda: auditor.estimate(rows)):
        with pytest.raises(ModelError, match="learned 512 positions"):
            make()
    assert not (tmp_path / "audit").exists()


def _adapter(model: PreTrainedModel, folder: Path, **settings: Any) -> PreTrainedModel:
    """An adapter that does something, saved to ``folder``; the model with it."""
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, **settings))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(folder)
    return wrapped


def test_an_adapter_in_the_place_of_the_model_is_told_with_its_base(
    tmp_path: Path, model_folder: Path, make_model: MakeModel, checkpoint: Path
) -> None:
    model = make_model("llama")
    model.name_or_path = model.config.name_or_path = str(model_folder)
    _adapter(model, tmp_path / "adapter")
    shutil.copytree(tmp_path / "adapter", checkpoint, dirs_exist_ok=True)
    for folder in (tmp_path / "adapter", checkpoint):  # transformers would take the second for its base
        with pytest.raises(ModelError, match=f"is an adapter of {model_folder}.*--adapter {folder}"):
            load_model(folder)


def test_a_model_with_its_adapter_gives_the_vectors_of_both_merged(
    tmp_path: Path, model_folder: Path, make_model: MakeModel
) -> None:
    wrapped = _adapter(make_model("llama"), tmp_path / "adapter")
    merged: Any = wrapped.merge_and_unload()
    loaded = load_model(model_folder, dtype="float32", adapter=tmp_path / "adapter")
    found, expected = (
        ActivationEngine(model, ActivationConfig((1, 3))).activations(GROUPS) for model in (loaded.model, merged)
    )
    torch.testing.assert_close(found[0].responses, expected[0].responses, rtol=1e-4, atol=1e-5)
    base = load_model(model_folder, dtype="float32")
    assert base.fingerprint.differences(loaded.fingerprint) == ["weights"]
    again = load_model(model_folder, dtype="bfloat16", adapter=tmp_path / "adapter")
    assert again.fingerprint == loaded.fingerprint


def test_a_run_that_goes_on_with_an_adapter_has_the_fingerprint_of_the_loaded_two(
    tmp_path: Path, model_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    from trl_attribution import AttributionCallback

    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    _adapter(base, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    policy = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    rows = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "I cannot help."} for n in range(4)]
    args = DPOConfig(
        str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True, bf16=False
    )
    trainer = DPOTrainer(policy, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.add_callback(AttributionCallback(trainer, layers=[2], output_dir=str(tmp_path / "audit")))
    trainer.train()
    of_run = json.loads((tmp_path / "audit" / "audit.json").read_text())["model"]["fingerprint"]
    loaded = load_model(model_folder, dtype="float32", adapter=tmp_path / "adapter")
    assert of_run == loaded.fingerprint.to_json()


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path, model_folder: Path, make_model: MakeModel) -> None:
    adapter = tmp_path / "adapter"
    _adapter(make_model("llama"), adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    some = {name: weight for name, weight in weights.items() if "layers.1." not in name}
    more = {name.replace("layers.1.", "layers.7."): weight.clone() for name, weight in weights.items()}
    for unlike in (some, {**weights, **more}):
        save_file(unlike, adapter / "adapter_model.safetensors")
        with pytest.raises(ModelError, match=r"does not fit this model: \d+ weights are missing or have no place"):
            load_model(model_folder, adapter=adapter)


def test_what_makes_another_m0_is_not_ignored_where_a_model_is_given(model_folder: Path, tmp_path: Path) -> None:
    loaded = load_model(model_folder)
    with pytest.raises(SettingsError, match="adapter: the model given is loaded already"):
        DataAuditor(loaded, layers=[1], adapter=str(tmp_path))
