"""M0 in 4 or 8 bits, as QLoRA trains on it: its own fingerprint, the same offline and in the run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from tests.tiny import VOCAB_SIZE
from trl_attribution import AttributionCallback, DataAuditor
from trl_attribution.errors import ModelError, ProbeError, SettingsError
from trl_attribution.models import load_model
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.models.quantization import quantization_config
from trl_attribution.probes import Probe
from trl_attribution.store import VectorStore

MakeModel = Callable[[str], PreTrainedModel]
ROWS = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "I cannot help."} for n in range(8)]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("4bit", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}),
        ("8bit", {"load_in_8bit": True, "load_in_4bit": False}),
        ('{"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"}', {"bnb_4bit_quant_type": "fp4"}),
    ],
)
def test_short_names_stand_for_the_configs_of_trl(asked: str, wanted: dict[str, Any]) -> None:
    config = quantization_config(asked, torch.bfloat16)
    assert {name: getattr(config, name) for name in wanted} == wanted
    if asked == "4bit":
        assert config.bnb_4bit_compute_dtype is torch.bfloat16


@pytest.mark.parametrize("asked", ["5bit", "", "{", '{"bits": 4}', '{"quant_method": "magic"}', '{"load_in_4bit": 3}'])
def test_an_unknown_quantization_is_refused(asked: str, model_folder: Path) -> None:
    with pytest.raises(SettingsError, match="quantization: .*choose 4bit or 8bit"):
        load_model(model_folder, quantization=asked)


def test_a_quantization_is_told_where_the_weights_differ_and_decides_nothing() -> None:
    plain, quantized = ModelFingerprint("a", "b", "c"), ModelFingerprint("a", "x", "c", "4 bits")
    assert plain.differences(quantized) == ["weights", "quantization"]
    assert plain.digest == ModelFingerprint("a", "b", "c", "4 bits").digest
    assert "quantization" not in plain.to_json()  # what is on disk stays as it is
    for one in (plain, quantized):
        assert ModelFingerprint.from_json(one.to_json()).differences(one) == []
        assert ModelFingerprint.from_json(one.to_json()).quantization == one.quantization


def test_a_model_in_pieces_is_not_quantized(model_folder: Path) -> None:
    with pytest.raises(SettingsError, match="quantization: not for a model in pieces"):
        load_model(model_folder, quantization="4bit", sharding="fsdp2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A Llama wide enough for blocks of 64 weights, saved in bfloat16 as most are."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("quantized")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantized_m0_is_one_model_in_every_dtype_and_another_than_the_plain_one(bits: str, checkpoint: Path) -> None:
    plain = load_model(checkpoint, dtype="float32")
    quantized = [load_model(checkpoint, dtype, quantization=bits) for dtype in ("float32", "bfloat16")]
    assert quantized[0].fingerprint == quantized[1].fingerprint
    assert plain.fingerprint.differences(quantized[0].fingerprint) == ["weights", "quantization"]
    assert bits[0] in quantized[0].fingerprint.quantization


def test_a_qlora_run_takes_the_probe_of_the_quantized_m0_and_gives_the_vectors_of_the_audit(
    checkpoint: Path, tmp_path: Path
) -> None:
    loaded = load_model(checkpoint, dtype="float32", quantization="4bit")
    probe = Probe("odd", (2,), torch.nn.functional.normalize(torch.randn(1, 128), dim=-1), 2, loaded.fingerprint)
    args = DPOConfig(
        str(tmp_path / "run"), max_steps=4, per_device_train_batch_size=2, report_to="none", use_cpu=True, bf16=False
    )
    trainer = DPOTrainer(
        str(checkpoint),
        args=args,
        train_dataset=Dataset.from_list(ROWS),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        peft_config=LoraConfig(target_modules="all-linear"),
    )
    trainer.add_callback(AttributionCallback(trainer, probes=[probe], output_dir=str(tmp_path / "in-run")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    offline = DataAuditor(
        str(checkpoint), probes=[probe], dtype="float32", vector_dtype="float32", quantization="4bit"
    ).audit(ROWS, tmp_path / "offline")
    in_run = json.loads((tmp_path / "in-run" / "audit.json").read_text())
    assert in_run["model"]["fingerprint"] == offline.info.model.fingerprint.to_json()
    of_run = VectorStore.open(tmp_path / "in-run" / "vectors").select(offline.index.pair_ids)
    of_audit = VectorStore.open(tmp_path / "offline" / "vectors").select(offline.index.pair_ids)
    cosines = torch.nn.functional.cosine_similarity(of_run.layer(2), of_audit.layer(2), dim=-1)
    assert float(cosines.min()) > 0.999
    assert offline.info.settings["quantization"] == "4bit"
    with pytest.raises(
        ProbeError, match=r"(?s)weights and quantization differ.*load_in_4bit.*model none.*--quantization"
    ):
        _ = DataAuditor(str(checkpoint), probes=[probe]).model


def test_a_missing_package_is_named(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="accelerate|optimum|quanto"):
        load_model(model_folder, quantization='{"quant_method": "quanto", "weights": "int8"}')
