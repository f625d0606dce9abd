"""What is read while training is M0's, whatever the settings make of the reference forward, or it is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, TrainerCallback
from trl import DPOTrainer
from trl.experimental.bema_for_ref_model import BEMACallback
from trl.experimental.bema_for_ref_model import DPOTrainer as BEMATrainer
from trl.trainer.callbacks import SyncRefModelCallback

from tests.training import (
    LAYERS,
    audited,
    config,
    least_cosine,
    make_trainer,
    offline,
    probe_on,
    text_rows,
    train,
)
from trl_attribution import VectorStore
from trl_attribution.callbacks import AttributionCallback, AttributionTracker
from trl_attribution.callbacks.proof import Proof
from trl_attribution.callbacks.session import Finished
from trl_attribution.errors import SettingsError

ROWS = text_rows(12)


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options)


class AtStepEnd(TrainerCallback):
    """Does something after each step."""

    def __init__(self, act: Callable[[int], Any]) -> None:
        self._act = act

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._act(state.global_step)


def checkpoint(folder: Path, model: Any, tokenizer: Any, **noise: float) -> Path:
    for name, value in noise.items():
        assert hasattr(model.config, name)
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def scale(model: torch.nn.Module, factor: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)


def finished(callback: AttributionCallback) -> Finished:
    assert callback.finished is not None
    return callback.finished


def equals_m0(found: Finished, model: Path, folder: Path, source: str = "dedicated pass") -> bool:
    """Vectors and fingerprint are those of the checkpoint, and M0 was read where it should."""
    expected = offline(model, folder, ROWS)
    assert found.audit.info.vectors.path == source
    assert found.audit.info.model.digest == expected.info.model.digest
    return least_cosine(found.audit.store, expected.store) >= 0.99999


def audited_after(trainer: Any, folder: Path) -> Finished:
    """The run of ``trainer`` with the callback added last."""
    callback = AttributionCallback(trainer, layers=LAYERS, vector_dtype="float32", output_dir=folder / "audit")
    train(trainer, callback)
    return finished(callback)


# ---- 1. dropout and noise in the reference forward

NOISY: dict[str, tuple[str, dict[str, float], dict[str, Any]]] = {
    "functional dropout": ("llama", {"attention_dropout": 0.2}, {}),
    "dropout left on": ("gpt2", {}, {"disable_dropout": False}),
    "embedding noise": ("qwen2", {}, {"neftune_noise_alpha": 5.0}),
    "accumulation": ("qwen3", {"attention_dropout": 0.2}, {"gradient_accumulation_steps": 3}),
    "no checkpointing": ("olmo2", {"attention_dropout": 0.2}, {"gradient_checkpointing": False}),
}


@pytest.mark.parametrize("case", NOISY)
def test_noise_in_the_reference_forward_is_noticed_and_m0_read_by_itself(
    case: str, make_model: Callable[[str], Any], tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    architecture, noise, settings = NOISY[case]
    folder = checkpoint(tmp_path / "model", make_model(architecture), tokenizer, **noise)
    found = audited(folder, tmp_path, ROWS, trainer={"peft_config": lora()}, **settings).finished
    assert found is not None and equals_m0(found, folder, tmp_path)
    named = next(iter({**noise, **settings}))
    assert named in found.audit.info.vectors.path_reason and named in caplog.text


def test_a_jittering_router_is_noticed(tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=4)
    experts = dict(num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, pad_token_id=0, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(MixtralConfig(**sizes, **experts))
    folder = checkpoint(tmp_path / "model", model, tokenizer, router_jitter_noise=0.1)
    found = audited(folder, tmp_path, ROWS, trainer={"peft_config": lora()}).finished
    assert found is not None and equals_m0(found, folder, tmp_path)


def test_a_reference_model_in_training_mode_is_noticed(
    make_model: Callable[[str], Any], tokenizer: Any, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "model", make_model("gpt2"), tokenizer)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    found = audited(folder, tmp_path, ROWS, trainer={"ref_model": reference}, disable_dropout=False).finished
    assert found is not None and equals_m0(found, folder, tmp_path)
    assert reference.training


def test_noise_in_the_precompute_pass_is_noticed(
    make_model: Callable[[str], Any], tokenizer: Any, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "model", make_model("gpt2"), tokenizer)
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    callback = AttributionCallback(dataset=ROWS, layers=LAYERS, output_dir=tmp_path / "audit")
    more = {"callbacks": [callback], "processing_class": tokenizer}
    train(make_trainer(policy, tmp_path, ROWS, trainer=more, precompute_ref_log_probs=True, disable_dropout=False))
    assert equals_m0(finished(callback), folder, tmp_path)


def test_training_with_noise_is_the_same_bits_with_and_without_the_callback(
    make_model: Callable[[str], Any], tokenizer: Any, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "model", make_model("llama"), tokenizer, attention_dropout=0.2)
    weights = []
    for is_audited in (False, True):
        torch.manual_seed(3)
        trainer = make_trainer(folder, tmp_path, ROWS, trainer={"peft_config": lora()}, neftune_noise_alpha=5.0)
        callback = AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")
        train(trainer, *([callback] if is_audited else []))
        weights.append(list(trainer.model.parameters()))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*weights, strict=True))


def test_acting_on_flags_is_refused_at_the_first_step_where_the_reference_is_noisy(
    make_model: Callable[[str], Any], tokenizer: Any, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "model", make_model("llama"), tokenizer, attention_dropout=0.2)
    trainer = make_trainer(folder, tmp_path, ROWS, trainer={"peft_config": lora()})
    acts: dict[str, Any] = dict(on_flag="stop", flag_at=0.9, output_dir=tmp_path / "audit")
    with pytest.raises(SettingsError, match=r"on_flag='stop' cannot act here.*attention_dropout"):
        train(trainer, AttributionCallback(trainer, probes=[probe_on(folder)], **acts))
    assert trainer.state.global_step == 1
    assert not list((tmp_path / "audit").rglob("*.safetensors"))


# ---- 2. the base below an adapter is not M0


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_are_trained_below_the_adapter_are_noticed_before_the_first_step(
    bias: str, make_model: Callable[[str], Any], tokenizer: Any, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "model", make_model("qwen2"), tokenizer)
    adapter = {"peft_config": lora(bias=bias)}
    found = audited(folder, tmp_path, ROWS, trainer=adapter, learning_rate=5e-2).finished
    assert found is not None and equals_m0(found, folder, tmp_path)
    assert "trains weights of the model below it" in found.audit.info.vectors.path_reason


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("settings", [{}, {"precompute_ref_log_probs": True}], ids=["in step", "precomputed"])
def test_a_base_that_the_adapters_start_has_changed_is_not_taken_for_the_checkpoint(
    start: str, settings: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    adapter = {"peft_config": lora(init_lora_weights=start)}
    found = audited(model_folder, tmp_path, ROWS, trainer=adapter, **settings).finished
    assert found is not None and equals_m0(found, model_folder, tmp_path)


def test_a_base_changed_for_the_adapter_without_a_checkpoint_is_refused_before_the_first_step(
    model_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model.config.name_or_path = str(tmp_path / "gone")
    more = {"peft_config": lora(init_lora_weights="pissa"), "processing_class": tokenizer}
    trainer = make_trainer(model, tmp_path, ROWS, trainer=more)
    with pytest.raises(SettingsError, match=r"M0 cannot be told.*Load the model from a folder"):
        train(trainer, AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit"))
    assert trainer.state.global_step == 0 and not (tmp_path / "audit").exists()


@pytest.mark.parametrize("random", [False, True])
def test_a_base_that_was_changed_before_the_adapter_came_is_m0(
    random: bool, model_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    scale(model, 1.05)
    changed = checkpoint(tmp_path / "changed", model, tokenizer)
    model.config.name_or_path = str(model_folder)
    more = {"peft_config": lora(init_lora_weights=not random), "processing_class": tokenizer}
    found = audited(model, tmp_path, ROWS, trainer=more).finished
    assert found is not None and equals_m0(found, changed, tmp_path, "disabled adapter")


def test_an_adapter_merged_and_unmerged_while_training_is_noticed(model_folder: Path, tmp_path: Path) -> None:
    adapter = {"peft_config": lora(init_lora_weights=False)}
    trainer = make_trainer(model_folder, tmp_path, ROWS, trainer=adapter, model_init_kwargs={"dtype": "bfloat16"})
    trainer.add_callback(AtStepEnd(lambda _step: (trainer.model.merge_adapter(), trainer.model.unmerge_adapter())))
    found = audited_after(trainer, tmp_path)
    assert found.audit.info.vectors.path == "dedicated pass"
    assert least_cosine(found.audit.store, offline(model_folder, tmp_path, ROWS, "bfloat16").store) >= 0.99


# ---- 3. the reference moves


@pytest.mark.parametrize("kind", [SyncRefModelCallback, BEMACallback], ids=["sync by hand", "bema"])
def test_a_reference_that_a_callback_moves_is_not_read(kind: Any, model_folder: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = (BEMATrainer if kind is BEMACallback else DPOTrainer)(
            str(model_folder),
            args=config(tmp_path, ref_model_sync_steps=1, learning_rate=1e-2),
            train_dataset=Dataset.from_list(ROWS),
        )
    mover = (
        SyncRefModelCallback(trainer.ref_model, trainer.accelerator)
        if kind is SyncRefModelCallback
        else BEMACallback(update_freq=1, update_ref_model=True, ref_model_update_freq=1)
    )
    trainer.add_callback(mover)
    found = audited_after(trainer, tmp_path)
    assert equals_m0(found, model_folder, tmp_path)
    assert kind.__name__ in found.audit.info.vectors.path_reason


@pytest.mark.parametrize("moves_at", [1, 2, 5, 6])
def test_a_reference_that_moves_at_any_step_costs_no_vector(moves_at: int, model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, ROWS, per_device_train_batch_size=2)
    moved = AtStepEnd(lambda step: scale(trainer.ref_model, 1.02) if step == moves_at else None)
    trainer.add_callback(moved)
    assert equals_m0(audited_after(trainer, tmp_path), model_folder, tmp_path)


def test_what_a_checkpoint_has_brought_to_disk_was_read_before_the_reference_moved(
    model_folder: Path, tmp_path: Path
) -> None:
    settings = dict(per_device_train_batch_size=2, save_strategy="steps", save_steps=1, save_only_model=True)
    trainer = make_trainer(model_folder, tmp_path, ROWS, **settings)
    trainer.add_callback(AtStepEnd(lambda step: scale(trainer.ref_model, 1.02) if step == 4 else None))
    found = audited_after(trainer, tmp_path)
    assert equals_m0(found, model_folder, tmp_path)
    assert found.audit.info.training is not None and found.audit.info.training.captured == 12


def test_a_moved_reference_that_cannot_be_loaded_again_is_refused_with_what_moved_it(
    model_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    reference.config.name_or_path = str(tmp_path / "gone")
    trainer = make_trainer(model_folder, tmp_path, ROWS, trainer={"ref_model": reference})
    trainer.add_callback(AtStepEnd(lambda _step: scale(trainer.ref_model, 1.02)))
    callback = AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")
    with pytest.raises(SettingsError, match=r"AtStepEnd.*cannot be loaded anew from"):
        train(trainer, callback)
    assert not list((tmp_path / "audit").rglob("*.safetensors"))


def test_vectors_of_a_moved_reference_are_not_kept_when_training_fails(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, ROWS, per_device_train_batch_size=2)

    def fail(step: int) -> None:
        if step == 3:
            scale(trainer.ref_model, 1.02)
            raise RuntimeError("the loss is NaN")

    callback = AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")
    trainer.add_callback(callback)
    with pytest.raises(RuntimeError, match="the loss is NaN"):
        train(trainer, AtStepEnd(fail))  # type: ignore[arg-type]
    assert len(VectorStore.open(tmp_path / "audit" / "parts" / "00000")) == 0


def test_noisy_vectors_are_not_kept_when_training_fails_in_its_first_step(
    make_model: Callable[[str], Any], tokenizer: Any, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "model", make_model("llama"), tokenizer, attention_dropout=0.2)
    trainer = make_trainer(folder, tmp_path, ROWS, trainer={"peft_config": lora()}, gradient_accumulation_steps=2)
    callback = AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")
    trainer.add_callback(callback)
    step = trainer.training_step

    def failing(*arguments: Any) -> Any:
        step(*arguments)
        raise RuntimeError("the loss is NaN")

    trainer.training_step = failing
    with pytest.raises(RuntimeError, match="the loss is NaN"):
        train(trainer)
    assert len(VectorStore.open(tmp_path / "audit" / "parts" / "00000")) == 0


# ---- 4. the reference is another model than the policy


@pytest.mark.parametrize("settings", [{}, {"precompute_ref_log_probs": True}], ids=["in step", "precomputed"])
@pytest.mark.parametrize("adapter", [None, lora()], ids=["full", "adapter"])
def test_a_callback_given_at_construction_reads_the_reference_model_that_was_given_beside_it(
    settings: dict[str, Any], adapter: Any, model_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    scale(reference, 1.1)
    other = checkpoint(tmp_path / "other", reference, tokenizer)
    callback = AttributionCallback(dataset=ROWS, layers=LAYERS, output_dir=tmp_path / "audit")
    more = {"ref_model": reference, "callbacks": [callback], "peft_config": adapter}
    train(make_trainer(model_folder, tmp_path, ROWS, trainer=more, **settings))
    source = "precompute pass" if settings else "dedicated pass"
    assert equals_m0(finished(callback), other, tmp_path, source)


# ---- a loop of one's own


@pytest.mark.parametrize("what", ["noise", "moves"])
def test_a_loops_reference_is_proved_too(
    what: str, make_model: Callable[[str], Any], tokenizer: Any, tmp_path: Path
) -> None:
    from tests.callbacks.test_tracker import Loop

    noise = {"attention_dropout": 0.2} if what == "noise" else {}
    folder = checkpoint(tmp_path / "model", make_model("llama"), tokenizer, **noise)
    loop = Loop(folder, ROWS)
    loop.reference.train(what == "noise")
    tracker = loop.tracker(ROWS, tmp_path)
    with tracker:
        for step, batch in enumerate(loop.batches()):
            loop.step(tracker, batch)
            if what == "moves" and step == 1:
                scale(loop.reference, 1.02)
    assert tracker.finished is not None and equals_m0(tracker.finished, folder, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"bias": "all"}, "trains weights of the model below"), ({"init_lora_weights": "pissa"}, "has changed the model")],
)
def test_a_loops_adapter_that_trains_the_base_or_changed_it_is_refused(
    options: dict[str, Any], message: str, make_model: Callable[[str], Any], tokenizer: Any, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "model", make_model("qwen2"), tokenizer)  # it has biases
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), lora(**options))
    settings: dict[str, Any] = dict(layers=LAYERS, output_dir=tmp_path / "audit")
    with pytest.raises(SettingsError, match=message):
        AttributionTracker(policy, tokenizer, ROWS, **settings).__enter__()
    assert not (tmp_path / "audit").exists()


# ---- what the proof costs


def test_proofs_grow_rare(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[bool] = []
    compare = Proof._compared

    def counting(self: Proof, seen: Any, *, is_whole: bool) -> Any:
        counted.append(is_whole)
        return compare(self, seen, is_whole=is_whole)

    monkeypatch.setattr(Proof, "_compared", counting)
    audited(model_folder, tmp_path, ROWS, num_train_epochs=12, per_device_train_batch_size=2)  # 72 steps
    assert counted == [True] * 3  # after the first step, the tenth, and at the end
