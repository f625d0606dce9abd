"""Models with a vision tower are loaded as TRL loads them, and known by the part that text goes through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from tests.naive import context, mean_activation
from tests.tiny import LAYERS, MULTIMODAL, build_tiny_multimodal
from trl_attribution import AttributionCallback, DataAuditor, VectorStore
from trl_attribution.activations import ActivationConfig, ActivationEngine, PromptGroup, find_blocks
from trl_attribution.errors import ModelError
from trl_attribution.models import load_model
from trl_attribution.models.fingerprint import fingerprint

# Those whose text part transformers also loads by itself from the same checkpoint.
BOTH_WAYS = ("qwen3_5", "llama4", "mllama")
GROUPS = [PromptGroup([5, 6, 7, 8], [[9, 10, 11], [9, 12]]), PromptGroup([20, 21], [[22, 23, 24, 25], [30]])]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A checkpoint of each class in a folder of its name."""
    root = tmp_path_factory.mktemp("multimodal")
    for architecture in MULTIMODAL:
        build_tiny_multimodal(architecture).save_pretrained(root / architecture)
        tokenizer.save_pretrained(root / architecture)
    return root


@pytest.mark.parametrize("architecture", MULTIMODAL)
def test_a_checkpoint_is_loaded_with_the_class_that_trl_trains(architecture: str, folders: Path) -> None:
    from trl.trainer.utils import create_model_from_path

    of_trl = create_model_from_path(str(folders / architecture))
    loaded = load_model(folders / architecture, dtype="float32")
    assert type(loaded.model) is type(of_trl)
    assert loaded.fingerprint == fingerprint(of_trl, loaded.tokenizer)
    assert loaded.fingerprint == load_model(folders / architecture, dtype="bfloat16").fingerprint


@pytest.mark.parametrize("architecture", MULTIMODAL)
def test_the_vectors_are_the_naive_ones_of_the_text(architecture: str, folders: Path) -> None:
    model = load_model(folders / architecture, dtype="float32").model
    layers = (0, 1, LAYERS - 1) if architecture != "mllama" else (0, 1, 2)
    for path in ("auto", "plain"):
        engine = ActivationEngine(model, ActivationConfig(layers, path=path))  # type: ignore[arg-type]
        for group, found in zip(GROUPS, engine.activations(GROUPS), strict=True):
            expected = torch.stack([mean_activation(model, group.prompt_ids, one, layers) for one in group.responses])
            torch.testing.assert_close(found.responses, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.context, context(model, group.prompt_ids, layers), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", MULTIMODAL)
def test_the_decoder_is_found_beside_a_vision_tower_as_deep(architecture: str) -> None:
    model = build_tiny_multimodal(architecture)
    deep = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 4
    ]
    found = find_blocks(model)
    assert len(deep) > 1
    assert "language_model" in found.path
    assert len(found) == LAYERS


@pytest.mark.parametrize("architecture", BOTH_WAYS)
def test_the_text_part_loaded_by_itself_has_the_same_fingerprint(
    architecture: str, folders: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    loaded = load_model(folders / architecture, dtype="float32")
    alone = AutoModelForCausalLM.from_pretrained(folders / architecture, dtype=torch.float32)
    assert type(alone) is not type(loaded.model)
    assert fingerprint(alone, tokenizer) == loaded.fingerprint


def test_text_weights_of_gemma_saved_by_themselves_have_the_same_fingerprint(
    folders: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    whole = build_tiny_multimodal("gemma3")
    alone = transformers.Gemma3ForCausalLM(whole.config.text_config)
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    assert fingerprint(alone, tokenizer) == fingerprint(whole, tokenizer)


def _changed(model: PreTrainedModel, name: str) -> PreTrainedModel:
    torch.nn.init.zeros_(model.get_parameter(name))
    return model


def test_training_the_text_part_counts_and_the_vision_tower_does_not(tokenizer: PreTrainedTokenizerFast) -> None:
    before = fingerprint(build_tiny_multimodal("llava"), tokenizer)
    tower = "model.vision_tower.encoder.layers.1.mlp.fc1.weight"
    assert fingerprint(_changed(build_tiny_multimodal("llava"), tower), tokenizer) == before
    for own in ("model.language_model.layers.1.mlp.up_proj.weight", "lm_head.weight"):
        after = fingerprint(_changed(build_tiny_multimodal("llava"), own), tokenizer)
        assert before.differences(after) == ["weights"]


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "qwen3_5", "mllama", "llava"])
def test_a_run_has_the_fingerprint_and_the_vectors_of_the_audit(
    architecture: str, folders: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "I cannot help."} for n in range(4)]
    args = DPOConfig(
        str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True, bf16=False
    )
    trainer = DPOTrainer(
        str(folders / architecture),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.add_callback(
        AttributionCallback(trainer, layers=[2], output_dir=str(tmp_path / "in-run"), vector_dtype="float32")
    )
    trainer.train()
    offline = DataAuditor(folders / architecture, layers=[2], dtype="float32", vector_dtype="float32").audit(
        rows, tmp_path / "offline"
    )
    in_run = json.loads((tmp_path / "in-run" / "audit.json").read_text())
    assert in_run["model"]["fingerprint"] == offline.info.model.fingerprint.to_json()
    ids = offline.index.pair_ids
    found, expected = (VectorStore.open(tmp_path / one / "vectors").select(ids) for one in ("in-run", "offline"))
    torch.testing.assert_close(found.layer(2), expected.layer(2), rtol=1e-3, atol=1e-4)


def test_a_block_that_no_text_goes_through_is_named() -> None:
    model = build_tiny_multimodal("mllama")  # block 3 attends to images alone, so layer 4 is layer 3
    with pytest.raises(ModelError, match=r"layers \[4\] .* do not run on text.*Choose another layer"):
        ActivationEngine(model, ActivationConfig((4,))).activations(GROUPS)
