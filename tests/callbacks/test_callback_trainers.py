"""Trainers other than the plain DPOTrainer: those on the same pairs are audited, the others refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration
from trl import DPOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.training import LAYERS, Rows, arguments, chat_rows, config, least_cosine, offline, probe_on, text_rows, train
from trl_attribution.callbacks import AttributionCallback
from trl_attribution.errors import ModelError, ProbeError, SettingsError

KINDS: dict[str, tuple[Any, Any]] = {
    "RewardTrainer": (RewardTrainer, RewardConfig),
    "CPOTrainer": (CPOTrainer, CPOConfig),
    "ORPOTrainer": (ORPOTrainer, ORPOConfig),
}


def trainer_of(
    trainer: Any, settings: Any, model: Any, folder: Path, rows: Rows, *, tokenizer: Path | None = None, **more: Any
) -> Any:
    if settings in (CPOConfig, ORPOConfig) and isinstance(model, Path):
        model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer(
            model if not isinstance(model, Path) else str(model),
            args=settings(**arguments(folder, max_length=1024)),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(tokenizer or model),
            **more,
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [text_rows, chat_rows], ids=["text", "chat"])
def test_vectors_equal_those_of_the_offline_audit(
    kind: str, rows: Callable[[], Rows], model_folder: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(*KINDS[kind], model_folder, tmp_path, rows(), tokenizer=model_folder)
    callback = AttributionCallback(trainer, dataset=rows(), layers=LAYERS, output_dir=tmp_path / "audit")
    train(trainer, callback)
    assert callback.finished is not None
    found = callback.finished.audit
    assert found.info.vectors.path == "dedicated pass"
    assert kind in found.info.vectors.path_reason
    expected = offline(model_folder, tmp_path, rows())
    assert least_cosine(found.store, expected.store) >= 0.99999
    assert found.info.model.digest == expected.info.model.digest


@pytest.mark.parametrize("kind", KINDS)
def test_probes_made_on_the_checkpoint_score_the_run(kind: str, model_folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(*KINDS[kind], model_folder, tmp_path, text_rows(), tokenizer=model_folder)
    callback = AttributionCallback(
        trainer, dataset=text_rows(), probes=[probe_on(model_folder)], top_k=3, output_dir=tmp_path / "audit"
    )
    train(trainer, callback)
    assert callback.finished is not None and callback.finished.flagged is not None
    assert len(callback.finished.flagged) == 3


def test_an_adapter_on_a_reward_model_is_off_in_the_pass(model_folder: Path, tmp_path: Path) -> None:
    adapter = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        task_type="SEQ_CLS",
        modules_to_save=["score"],
        init_lora_weights=False,
    )
    trainer = trainer_of(
        RewardTrainer, RewardConfig, model_folder, tmp_path, text_rows(), tokenizer=model_folder, peft_config=adapter
    )
    callback = AttributionCallback(trainer, dataset=text_rows(), layers=LAYERS, output_dir=tmp_path / "audit")
    train(trainer, callback)
    assert callback.finished is not None
    assert least_cosine(callback.finished.audit.store, offline(model_folder, tmp_path, text_rows()).store) >= 0.99999


def test_a_reward_model_that_was_trained_before_is_an_m0_of_its_own(model_folder: Path, tmp_path: Path) -> None:
    first = trainer_of(RewardTrainer, RewardConfig, model_folder, tmp_path, text_rows(8), tokenizer=model_folder)
    first.model.save_pretrained(tmp_path / "reward")
    again = trainer_of(RewardTrainer, RewardConfig, tmp_path / "reward", tmp_path, text_rows(8), tokenizer=model_folder)
    callback = AttributionCallback(again, dataset=text_rows(8), layers=LAYERS, output_dir=tmp_path / "audit")
    train(again, callback)
    assert callback.finished is not None
    expected = offline(model_folder, tmp_path, text_rows(8))
    assert callback.finished.audit.info.model.digest != expected.info.model.digest


def test_a_reward_model_with_other_weights_than_its_checkpoint_is_not_taken_for_it(
    model_folder: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(RewardTrainer, RewardConfig, model_folder, tmp_path, text_rows(8), tokenizer=model_folder)
    with torch.no_grad():
        trainer.model.model.layers[0].mlp.down_proj.weight.mul_(2)
    callback = AttributionCallback(
        trainer, dataset=text_rows(8), probes=[probe_on(model_folder)], output_dir=tmp_path / "audit"
    )
    with pytest.raises(ProbeError, match="was built on another model"):
        train(trainer, callback)
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_training_is_told_that_its_m0_is_another_and_what_to_do(
    kind: str, model_folder: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(*KINDS[kind], model_folder, tmp_path, text_rows(8), tokenizer=model_folder)
    train(trainer, AttributionCallback(trainer, dataset=text_rows(8), layers=LAYERS, output_dir=tmp_path / "audit"))
    with pytest.raises(SettingsError, match="Set output_dir to another folder. A model that was trained") as raised:
        train(trainer)
    assert "--vectors" not in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_of_no_epoch_is_audited_all_the_same(kind: str, model_folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(*KINDS[kind], model_folder, tmp_path, text_rows(8), tokenizer=model_folder)
    trainer.args.num_train_epochs = 0
    callback = AttributionCallback(trainer, dataset=text_rows(8), layers=LAYERS, output_dir=tmp_path / "audit")
    train(trainer, callback)
    assert callback.finished is not None and len(callback.finished.audit.store) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_trainers_that_change_their_texts_need_the_dataset(kind: str, model_folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(*KINDS[kind], model_folder, tmp_path, text_rows(8), tokenizer=model_folder)
    with pytest.raises(SettingsError, match=f"dataset: {kind} changes its texts"):
        AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")


@pytest.mark.parametrize("kind", KINDS)
def test_flagged_pairs_cannot_be_skipped_without_a_reference_forward(
    kind: str, model_folder: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(*KINDS[kind], model_folder, tmp_path, text_rows(8), tokenizer=model_folder)
    with pytest.raises(SettingsError, match="on_flag='skip' cannot work here"):
        AttributionCallback(
            trainer,
            dataset=text_rows(8),
            probes=[probe_on(model_folder)],
            on_flag="skip",
            flag_at=0.5,
            output_dir=tmp_path / "audit",
        )


class OwnTrainer(DPOTrainer):
    """What people do: a DPOTrainer with something of their own in it."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs)


def test_a_subclass_of_a_dpo_trainer_is_audited(model_folder: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = OwnTrainer(str(model_folder), args=config(tmp_path), train_dataset=Dataset.from_list(text_rows()))
    callback = AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")
    train(trainer, callback)
    assert callback.finished is not None
    assert callback.finished.audit.info.vectors.path == "reference model"
    assert least_cosine(callback.finished.audit.store, offline(model_folder, tmp_path, text_rows()).store) >= 0.99999


def _distilling(model_folder: Path, tmp_path: Path, **more: Any) -> Any:
    """An experiment of TRL that comes from SFTTrainer and is none."""
    rows = Dataset.from_list([{"messages": row["prompt"] + row["chosen"]} for row in chat_rows(8)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GKDTrainer(
            str(model_folder),
            teacher_model=str(model_folder),
            args=GKDConfig(**arguments(tmp_path)),
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(model_folder),
            **more,
        )


def test_other_trainers_are_refused_by_name_before_anything_is_written(model_folder: Path, tmp_path: Path) -> None:
    built = _distilling(model_folder, tmp_path)
    with pytest.raises(SettingsError, match="GKDTrainer is not supported") as refused:
        AttributionCallback(built, dataset=text_rows(8), layers=LAYERS, output_dir=tmp_path / "audit")
    assert "DPOTrainer, KTOTrainer, SFTTrainer, RewardTrainer, CPOTrainer, ORPOTrainer" in str(refused.value)
    assert not (tmp_path / "audit").exists()


def test_a_callback_that_does_not_see_the_trainer_refuses_it_by_its_config(model_folder: Path, tmp_path: Path) -> None:
    callback = AttributionCallback(dataset=text_rows(8), layers=LAYERS, output_dir=tmp_path / "audit")
    with pytest.raises(SettingsError, match="the trainer of GKDConfig is not supported"):
        _distilling(model_folder, tmp_path, callbacks=[callback])


def test_a_callback_that_does_not_see_the_trainer_audits_the_supported_ones(model_folder: Path, tmp_path: Path) -> None:
    callback = AttributionCallback(dataset=text_rows(), layers=LAYERS, output_dir=tmp_path / "audit")
    train(
        trainer_of(
            ORPOTrainer, ORPOConfig, model_folder, tmp_path, text_rows(), tokenizer=model_folder, callbacks=[callback]
        )
    )
    assert callback.finished is not None
    assert least_cosine(callback.finished.audit.store, offline(model_folder, tmp_path, text_rows()).store) >= 0.99999


def test_a_reward_model_has_no_behaviors(model_folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(RewardTrainer, RewardConfig, model_folder, tmp_path, text_rows(8), tokenizer=model_folder)
    with pytest.raises(SettingsError, match="a reward model writes no responses"):
        AttributionCallback(trainer, dataset=text_rows(8), layers=LAYERS, behaviors="behaviors.jsonl")


def test_fsdp_of_the_first_version_is_refused_when_the_callback_is_made(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = DPOTrainer(str(model_folder), args=config(tmp_path), train_dataset=Dataset.from_list(text_rows(4)))
    monkeypatch.setattr(trainer.accelerator.state, "fsdp_plugin", SimpleNamespace(fsdp_version=1), raising=False)
    with pytest.raises(SettingsError, match="fsdp_version: 1 is not supported; set fsdp_version: 2"):
        AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")


def test_an_encoder_decoder_model_is_refused_when_the_callback_is_made(tmp_path: Path, model_folder: Path) -> None:
    config = T5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    trainer = trainer_of(CPOTrainer, CPOConfig, model, tmp_path, text_rows(), tokenizer=model_folder)
    with pytest.raises(ModelError, match="t5 is an encoder-decoder model"):
        AttributionCallback(trainer, dataset=text_rows(), layers=LAYERS, output_dir=tmp_path / "audit")
