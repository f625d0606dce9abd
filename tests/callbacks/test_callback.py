"""A run under audit trains as it would without, accounts for every row, and ends cleanly whatever happens."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback
from trl import DPOTrainer

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
from trl_attribution import DataAuditor, Manifest, VectorStore
from trl_attribution.activations import ActivationConfig
from trl_attribution.audit.info import AuditInfo
from trl_attribution.callbacks import AttributionCallback, CallbackConfig
from trl_attribution.callbacks.capture import CaptureError
from trl_attribution.callbacks.main_rank import MainRank
from trl_attribution.errors import AttributionError, ProbeError, SettingsError, StoreError
from trl_attribution.models import load_model
from trl_attribution.probes import BuildConfig, build_from_behavior
from trl_attribution.store.merging import parts_of
from trl_attribution.utils.distributed import ALONE


def hooks_on(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def training_of(folder: Path) -> dict[str, Any]:
    training = AuditInfo.load(folder).training
    assert training is not None
    return training.model_dump()


class Interrupt(TrainerCallback):
    """Ends the run with ``error`` after ``step`` steps."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise self.error


# ---- training is not disturbed


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_and_weights_are_the_same_bits_with_and_without_the_callback(
    accumulation: int, model_folder: Path, tmp_path: Path
) -> None:
    settings = dict(num_train_epochs=2, gradient_accumulation_steps=accumulation, logging_steps=1)
    alone = make_trainer(model_folder, tmp_path, text_rows(), **settings)
    train(alone)
    with_callback = make_trainer(model_folder, tmp_path, text_rows(), **settings)
    callback = AttributionCallback(with_callback, probes=[probe_on(model_folder)], output_dir=tmp_path / "audit")
    train(with_callback, callback)
    assert losses(with_callback) == losses(alone) and len(losses(alone)) > 4
    for (name, mine), theirs in zip(with_callback.model.named_parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_the_models_are_left_with_the_hooks_that_training_leaves_anyway(model_folder: Path, tmp_path: Path) -> None:
    alone = make_trainer(model_folder, tmp_path, text_rows(8))
    train(alone)
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    train(trainer, AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit"))
    assert (hooks_on(trainer.model), hooks_on(trainer.ref_model)) == (hooks_on(alone.model), hooks_on(alone.ref_model))


# ---- every row is accounted for


def test_a_second_epoch_counts_as_repeats(model_folder: Path, tmp_path: Path) -> None:
    audited(model_folder, tmp_path, text_rows(8), num_train_epochs=3)
    found = training_of(tmp_path / "audit")
    assert (found["rows"], found["captured"], found["repeats"], found["never_seen"]) == (24, 8, 16, 0)


def test_pairs_that_were_never_trained_on_are_counted_and_not_scored(model_folder: Path, tmp_path: Path) -> None:
    audited(model_folder, tmp_path, text_rows(24), max_steps=2)
    found = training_of(tmp_path / "audit")
    assert (found["captured"], found["never_seen"], found["pairs_in_dataset"]) == (8, 16, 24)
    assert len(VectorStore.open(tmp_path / "audit" / "vectors")) == 8


def test_evaluation_batches_are_not_taken_for_training_data(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        model_folder,
        tmp_path,
        text_rows(24)[:8],
        trainer={"eval_dataset": Dataset.from_list(text_rows(24)[8:])},
        eval_strategy="steps",
        eval_steps=1,
    )
    train(trainer, AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit"))
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    assert training_of(tmp_path / "audit")["rows"] == 8


def test_a_row_that_stands_twice_in_the_dataset_is_one_pair(model_folder: Path, tmp_path: Path) -> None:
    audited(model_folder, tmp_path, [*text_rows(8), text_rows(8)[3]])
    found = training_of(tmp_path / "audit")
    assert (found["rows"], found["captured"], found["repeats"]) == (9, 8, 1)


def test_rows_that_trl_trains_on_but_that_are_no_pairs_are_counted(model_folder: Path, tmp_path: Path) -> None:
    same = {"prompt": "Both", "chosen": " equal.", "rejected": " equal.", "source": "a"}
    audited(model_folder, tmp_path, [*text_rows(7), same])
    found = training_of(tmp_path / "audit")
    assert (found["rows"], found["captured"], found["unaudited"]) == (8, 7, 1)
    assert AuditInfo.load(tmp_path / "audit").dataset.skipped == {"identical_responses": 1}


def test_different_pairs_with_the_same_tokens_share_their_vectors(model_folder: Path, tmp_path: Path) -> None:
    rows = text_rows(7)
    longer = {**rows[5], "chosen": rows[5]["chosen"] * 30}
    longest = {**rows[5], "chosen": rows[5]["chosen"] * 40}
    audited(model_folder, tmp_path, [*rows[:4], longer, longest], max_length=64)
    store = VectorStore.open(tmp_path / "audit" / "vectors")
    assert len(store) == 6
    assert torch.equal(store.layer(3)[4], store.layer(3)[5])


def test_another_dataset_than_the_trainers_is_an_error(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    callback = AttributionCallback(trainer, dataset=text_rows(24)[16:], layers=LAYERS, output_dir=tmp_path / "audit")
    with pytest.raises(CaptureError, match="not in the dataset"):
        train(trainer, callback)


def test_the_original_dataset_can_be_given_where_responses_end_with_eos(model_folder: Path, tmp_path: Path) -> None:
    rows = [{**row, "chosen": row["chosen"] + "<|im_end|>"} for row in text_rows(8)]
    trainer = make_trainer(model_folder, tmp_path, rows)
    callback = AttributionCallback(
        trainer,
        dataset=rows,
        layers=LAYERS,
        probes=[probe_on(model_folder)],
        score="response",
        top_k=2,
        output_dir=tmp_path / "audit",
    )
    train(trainer, callback)
    kept = Manifest.load(tmp_path / "audit" / "manifest.filter.jsonl").apply(Dataset.from_list(rows))
    assert len(kept) < 8


def test_a_manifest_applies_to_the_dataset_that_was_trained_on(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows())
    callback = AttributionCallback(trainer, probes=[probe_on(model_folder)], top_k=4, output_dir=tmp_path / "audit")
    train(trainer, callback)
    manifest = Manifest.load(tmp_path / "audit" / "manifest.filter.jsonl")
    assert len(manifest.apply(Dataset.from_list(text_rows()))) == 24 - len(manifest.decisions) < 24


def test_two_forwards_of_the_reference_in_one_step_are_an_error(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    once = trainer.compute_loss

    def twice(*args: Any, **kwargs: Any) -> Any:
        once(*args, **kwargs)
        return once(*args, **kwargs)

    trainer.compute_loss = twice
    callback = AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")
    with pytest.raises(CaptureError, match="2 reference forwards were read in one micro-batch"):
        train(trainer, callback)


# ---- a run that fails


@pytest.mark.parametrize("error", [RuntimeError("the loss is NaN"), KeyboardInterrupt()])
def test_trainings_own_exception_is_the_one_raised_and_hooks_come_off(
    error: BaseException, model_folder: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows())
    before = hooks_on(trainer.ref_model)
    callback = AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")
    trainer.add_callback(callback)
    trainer.add_callback(Interrupt(2, error))
    with pytest.raises(type(error)) as raised:
        train(trainer)
    assert raised.value is error
    assert hooks_on(trainer.ref_model) == before
    assert len(VectorStore.open(tmp_path / "audit" / "parts" / "00000")) == 8
    assert not (tmp_path / "audit" / "audit.json").exists()


def test_a_full_disk_ends_the_run_with_its_reason(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    callback = AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit", shard_size=4)
    full = os.fsync

    def no_space(descriptor: int) -> None:
        if ".safetensors" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(28, "No space left on device")
        full(descriptor)

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(AttributionError, match="No space left on device"):
        train(trainer, callback)
    assert hooks_on(trainer.ref_model) == 0
    assert not list((tmp_path / "audit").rglob("*.part"))


@pytest.fixture
def undisturbed(model_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "undisturbed"
    trainer = make_trainer(model_folder, folder, text_rows())
    train(trainer, AttributionCallback(trainer, probes=[probe_on(model_folder)], output_dir=folder / "audit"))
    return folder / "audit"


class LookAtSave(TrainerCallback):
    """Counts the pairs on disk as a checkpoint has just been written; added before the callback that it looks at."""

    def __init__(self, audit: Path) -> None:
        self.audit = audit
        self.pairs: list[int] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pairs.append(sum(len(part) for part in parts_of(self.audit)))


@pytest.mark.parametrize("settings", [dict(save_strategy="steps", save_steps=2), dict(save_strategy="epoch")])
def test_what_was_read_is_on_disk_before_the_checkpoint_that_a_killed_run_resumes_at(
    settings: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(16), **settings)
    look = LookAtSave(tmp_path / "audit")
    trainer.add_callback(look)
    train(trainer, AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit"))
    assert look.pairs == ([8, 16] if "save_steps" in settings else [16])


@pytest.mark.parametrize("killed_at", [3, 4, 5])
def test_a_run_resumed_from_a_checkpoint_ends_with_the_audit_of_an_undisturbed_one(
    killed_at: int, undisturbed: Path, model_folder: Path, tmp_path: Path
) -> None:
    settings = dict(save_strategy="steps", save_steps=2, save_only_model=False)
    for attempt in ("killed", "resumed"):
        trainer = make_trainer(model_folder, tmp_path, text_rows(), **settings)
        trainer.add_callback(
            AttributionCallback(trainer, probes=[probe_on(model_folder)], output_dir=tmp_path / "audit")
        )
        if attempt == "killed":
            trainer.add_callback(Interrupt(killed_at, RuntimeError("killed")))
            with pytest.raises(RuntimeError, match="killed"):
                train(trainer)
        else:
            train(trainer, resume_from_checkpoint=True)
    mine, theirs = (VectorStore.open(folder / "vectors") for folder in (tmp_path / "audit", undisturbed))
    assert least_cosine(mine, theirs, [3]) >= 0.999999
    for name in ("manifest.filter.jsonl", "manifest.flip.jsonl"):
        listed, expected = (
            {one.pair_id for one in Manifest.load(folder / name).decisions}
            for folder in (tmp_path / "audit", undisturbed)
        )
        assert listed == expected
    assert training_of(tmp_path / "audit")["never_seen"] == 0


def test_a_resumed_run_whose_m0_is_gone_uses_what_the_first_attempt_computed(
    model_folder: Path, tmp_path: Path
) -> None:
    settings = dict(save_strategy="steps", save_steps=2, precompute_ref_log_probs=True)
    for attempt in ("killed", "resumed"):
        trainer = make_trainer(model_folder, tmp_path, text_rows(), **settings)
        callback = AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")
        trainer.add_callback(callback)
        if attempt == "killed":
            trainer.add_callback(Interrupt(3, RuntimeError("killed")))
            with pytest.raises(RuntimeError, match="killed"):
                train(trainer)
        else:
            train(trainer, resume_from_checkpoint=True)
    assert callback.finished is not None
    assert len(callback.finished.audit.store) == 24


# ---- settings that cannot work are refused before anything is written


def test_a_folder_that_holds_the_audit_of_another_dataset_is_refused(model_folder: Path, tmp_path: Path) -> None:
    audited(model_folder, tmp_path, text_rows(8))
    trainer = make_trainer(model_folder, tmp_path, text_rows(12))
    with pytest.raises(SettingsError, match="dataset_fingerprint"):
        train(trainer, AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit"))


def test_a_second_run_on_the_same_data_uses_the_vectors_of_the_first(model_folder: Path, tmp_path: Path) -> None:
    audited(model_folder, tmp_path, text_rows(8))
    first = VectorStore.open(tmp_path / "audit" / "vectors").layer(3)
    again = audited(model_folder, tmp_path, text_rows(8)).finished
    assert again is not None and torch.equal(again.audit.store.layer(3), first)


def test_a_probe_of_another_model_is_refused_with_both_fingerprints(
    model_folder: Path, tmp_path: Path, make_model: Any, tokenizer: Any
) -> None:
    make_model("qwen2").save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    probe = probe_on(tmp_path / "other")
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    with pytest.raises(ProbeError, match=probe.model.digest):
        train(trainer, AttributionCallback(trainer, probes=[probe], output_dir=tmp_path / "audit"))
    assert not (tmp_path / "audit").exists()


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown setting": ({"layer": 3}, "unknown setting layer"),
    "two rules": ({"layers": [3], "top_k": 3, "fdr": 0.1}, "exactly one of .* given: top_k, fdr"),
    "unknown action": ({"layers": [3], "on_flag": "drop"}, "choose log, stop, skip"),
    "share out of range": ({"layers": [3], "stop_share": 0.0}, "stop_share"),
    "unknown dtype": ({"layers": [3], "vector_dtype": "int8"}, "vector_dtype"),
    "stray fdr": ({"layers": [3], "fdr": 2.0}, "fdr must lie between"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_refused_at_once(case: str, model_folder: Path, tmp_path: Path) -> None:
    settings, message = BAD_SETTINGS[case]
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    with pytest.raises(SettingsError, match=message):
        AttributionCallback(trainer, output_dir=tmp_path / "audit", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "layers: give some"),
        ({"layers": [3], "on_flag": "stop"}, "no probes were given"),
        ({"layers": [3], "top_k": 100}, "more pairs than there are"),
        ({"layers": [9]}, "out of range"),
    ],
)
def test_settings_that_do_not_fit_the_run_are_refused_before_its_first_step(
    settings: dict[str, Any], message: str, model_folder: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    with pytest.raises(AttributionError, match=message):
        train(trainer, AttributionCallback(trainer, output_dir=tmp_path / "audit", **settings))
    assert trainer.state.global_step == 0
    assert hooks_on(trainer.ref_model) == 0


def test_a_probe_that_flags_at_a_layer_that_is_not_read_is_refused_before_the_first_step(
    model_folder: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": row["prompt"], "undesired": row["chosen"], "desired": row["rejected"]} for row in text_rows(6)]
    activations = BuildConfig(ActivationConfig(layers=(1, 3)), layer=3)
    probe = build_from_behavior("numbers", rows, load_model(model_folder, dtype="float32"), activations)
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    callback = AttributionCallback(trainer, probes=[probe], layers=[1], output_dir=tmp_path / "audit")
    with pytest.raises(SettingsError, match=r"probe 'numbers' flags at layer 3, which is not among \[1\]; add it"):
        train(trainer, callback)
    assert trainer.state.global_step == 0 and not (tmp_path / "audit").exists()


def test_a_run_without_a_step_says_what_to_do(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8), num_train_epochs=0)
    with pytest.raises(CaptureError, match="Train for a step at least"):
        train(trainer, AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit"))


def test_a_stream_is_audited_as_far_as_it_is_trained_on(model_folder: Path, tmp_path: Path) -> None:
    rows = text_rows(12)
    stream = Dataset.from_list(rows).to_iterable_dataset().map(dict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = config(tmp_path, max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=1)
        trainer = DPOTrainer(str(model_folder), args=args, train_dataset=stream)
    callback = AttributionCallback(trainer, layers=LAYERS, vector_dtype="float32", output_dir=tmp_path / "audit")
    train(trainer, callback)
    assert callback.finished is not None
    found = callback.finished.audit
    assert (found.info.dataset.rows, found.info.dataset.pairs, found.info.vectors.path) == (8, 8, "reference model")
    assert any("its first 8 rows at most are read" in note for note in found.info.notes)
    assert least_cosine(found.store, offline(model_folder, tmp_path, rows[:8]).store) >= 0.99999


@pytest.mark.filterwarnings("ignore:.*padding_free")
def test_padding_free_is_switched_off_by_trl_and_audited(model_folder: Path, tmp_path: Path) -> None:
    found = audited(model_folder, tmp_path, text_rows(8), padding_free=True).finished
    assert found is not None
    assert least_cosine(found.audit.store, offline(model_folder, tmp_path, text_rows(8)).store) >= 0.99999


def test_without_the_trainer_the_dataset_has_to_be_given(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dataset: a callback that is not given the trainer"):
        AttributionCallback(layers=[3], output_dir=tmp_path / "audit")


def test_a_damaged_part_is_named(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows())
    trainer.add_callback(AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit"))
    trainer.add_callback(Interrupt(2, RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        train(trainer)
    (shard,) = (tmp_path / "audit" / "parts" / "00000" / "shards").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-8])
    trainer = make_trainer(model_folder, tmp_path, text_rows())
    with pytest.raises(StoreError, match="truncated or damaged"):
        train(trainer, AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit"))


# ---- DataAuditor.attach


def test_attaching_an_auditor_is_adding_the_callback(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    callback = DataAuditor(probes=[probe_on(model_folder)], vector_dtype="float32").attach(
        trainer, output_dir=tmp_path / "audit", top_k=2
    )
    train(trainer)
    assert callback.finished is not None and callback.finished.flagged is not None
    assert len(callback.finished.flagged) == 2
    assert callback.finished.audit.store.settings.vector_dtype == "float32"


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [(None, {"dtype": "float32"}, "decides on dtype"), ("somewhere", {}, "decides on model")],
)
def test_an_auditor_with_what_a_trainer_decides_cannot_be_attached(
    model: str | None, settings: dict[str, Any], message: str, model_folder: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    with pytest.raises(SettingsError, match=message):
        DataAuditor(model, layers=[3], **settings).attach(trainer, output_dir=tmp_path / "audit")


@pytest.mark.parametrize("more", [{"layers": [1]}, {"score": "response"}, {"config": CallbackConfig()}])
def test_what_the_auditor_says_cannot_be_said_again(more: dict[str, Any], model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    with pytest.raises(SettingsError, match=f"{next(iter(more))} cannot be given here"):
        DataAuditor(layers=[3]).attach(trainer, output_dir=tmp_path / "audit", **more)


def test_an_auditor_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="model: give M0"):
        DataAuditor(layers=[3]).audit(text_rows(8), tmp_path / "audit")


# ---- metrics, and acting on flags


def test_each_log_holds_the_scores_of_its_window(model_folder: Path, tmp_path: Path) -> None:
    probe = probe_on(model_folder)
    trainer = make_trainer(model_folder, tmp_path, text_rows())
    callback = AttributionCallback(
        trainer, probes=[probe], flag_at=0.0, score="response", output_dir=tmp_path / "audit", vector_dtype="float32"
    )
    train(trainer, callback)
    logs = [entry for entry in trainer.state.log_history if "attribution/flagged_fraction" in entry]
    assert len(logs) == 3  # 6 steps, a log every 2
    assert callback.finished is not None and callback.finished.audit.scores is not None
    scores = callback.finished.audit.scores.of(callback.finished.audit.scores.columns[0])
    # Windows of equal size: the mean of their means is the mean of all pairs.
    means = [entry["attribution/numbers/mean"] for entry in logs]
    assert sum(means) / 3 == pytest.approx(float(scores.mean()), abs=1e-5)
    assert max(entry["attribution/numbers/max"] for entry in logs) == pytest.approx(float(scores.max()), abs=1e-5)
    shares = [entry["attribution/flagged_fraction"] for entry in logs]
    assert sum(shares) / 3 == pytest.approx(float((scores >= 0).mean()), abs=1e-6)
    assert [entry["attribution/numbers/share_above"] for entry in logs] == shares


def test_a_probe_without_a_limit_is_logged_without_shares(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    callback = AttributionCallback(trainer, probes=[probe_on(model_folder)], output_dir=tmp_path / "audit")
    train(trainer, callback)
    logged = {name for entry in trainer.state.log_history for name in entry if name.startswith("attribution/")}
    assert logged == {"attribution/numbers/mean", "attribution/numbers/max"}
    assert training_of(tmp_path / "audit")["flag_at"] == {"numbers": None}


def test_training_stops_cleanly_when_too_many_pairs_are_flagged(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows())
    callback = AttributionCallback(
        trainer, probes=[probe_on(model_folder)], flag_at=-1.0, on_flag="stop", output_dir=tmp_path / "audit"
    )
    train(trainer, callback)
    assert trainer.state.global_step == 2
    found = training_of(tmp_path / "audit")
    assert (found["stopped_at_step"], found["captured"], found["never_seen"]) == (2, 8, 16)


def test_training_goes_on_when_few_pairs_are_flagged(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows())
    callback = AttributionCallback(
        trainer, probes=[probe_on(model_folder)], flag_at=1.0, on_flag="stop", output_dir=tmp_path / "audit"
    )
    train(trainer, callback)
    assert trainer.state.global_step == 6
    assert training_of(tmp_path / "audit")["stopped_at_step"] is None


def in_order(trainer: Any) -> None:
    """Let ``trainer`` take its rows as they come, for which transformers before 5 has no setting."""
    trainer._get_train_sampler = lambda *_: SequentialSampler(trainer.train_dataset)


@pytest.mark.parametrize("adapter", [False, True])
def test_skipping_flagged_pairs_equals_training_without_them(adapter: bool, model_folder: Path, tmp_path: Path) -> None:
    """In every batch of four one pair is flagged; the other run takes the other three, at 3/4 of the rate."""
    from peft import LoraConfig

    probe, rows = probe_on(model_folder), text_rows(16)
    scores = response_scores(probe, model_folder, tmp_path, rows)
    order = torch.argsort(scores, descending=True).tolist()
    limit = float((scores[order[3]] + scores[order[4]]) / 2)
    batches = [[rows[order[batch]], *(rows[place] for place in order[4 + 3 * batch :][:3])] for batch in range(4)]
    # Plain descent: a step is the gradient, whatever its size.
    common: dict[str, Any] = dict(optim="sgd", learning_rate=0.4, max_grad_norm=0.0)
    lora = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])} if adapter else {}

    torch.manual_seed(0)  # TRL before 1.0 draws adapters before it seeds anything
    skipping = make_trainer(
        model_folder, tmp_path, [row for batch in batches for row in batch], trainer=dict(lora), **common
    )
    callback = AttributionCallback(
        skipping, probes=[probe], flag_at=limit, score="response", on_flag="skip", output_dir=tmp_path / "audit"
    )
    in_order(skipping)
    train(skipping, callback)
    torch.manual_seed(0)
    filtered = make_trainer(
        model_folder,
        tmp_path,
        [row for batch in batches for row in batch[1:]],
        trainer=dict(lora),
        **{**common, "per_device_train_batch_size": 3, "learning_rate": 0.3},
    )
    in_order(filtered)
    train(filtered)
    assert training_of(tmp_path / "audit")["skipped_rows"] == 4
    for mine, theirs in zip(skipping.model.parameters(), filtered.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def response_scores(probe: Any, model: Path, folder: Path, rows: list[dict[str, Any]]) -> torch.Tensor:
    from trl_attribution import DataAuditor

    auditor = DataAuditor(str(model), probes=[probe], score="response", dtype="float32", vector_dtype="float32")
    found = auditor.audit(rows, folder / "scored").scores
    assert found is not None
    return torch.from_numpy(found.of(found.columns[0]).copy())


def test_a_batch_of_flagged_pairs_only_changes_nothing(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8), weight_decay=0.0)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    callback = AttributionCallback(
        trainer,
        probes=[probe_on(model_folder)],
        score="response",
        flag_at=-1.0,
        on_flag="skip",
        shard_size=1,
        output_dir=tmp_path / "audit",
    )
    train(trainer, callback)
    assert training_of(tmp_path / "audit")["skipped_rows"] == 8
    for mine, then in zip(trainer.model.parameters(), before, strict=True):
        assert torch.equal(mine, then)


def test_skipping_is_refused_where_no_reference_forward_runs_in_the_step(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8), precompute_ref_log_probs=True)
    with pytest.raises(SettingsError, match="on_flag='skip' cannot work here"):
        AttributionCallback(
            trainer, probes=[probe_on(model_folder)], flag_at=0.5, on_flag="skip", output_dir=tmp_path / "audit"
        )


def test_skipping_by_a_score_that_moves_while_training_is_refused(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    callback = AttributionCallback(
        trainer, probes=[probe_on(model_folder)], flag_at=0.5, on_flag="skip", output_dir=tmp_path / "audit"
    )
    with pytest.raises(SettingsError, match="set score='response'"):
        train(trainer, callback)


def test_stopping_is_refused_where_no_pair_is_looked_at_while_training(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(8), precompute_ref_log_probs=True)
    callback = AttributionCallback(
        trainer, probes=[probe_on(model_folder)], flag_at=0.5, on_flag="stop", output_dir=tmp_path / "audit"
    )
    with pytest.raises(SettingsError, match="on_flag='stop' cannot act here"):
        train(trainer, callback)
    with pytest.raises(SettingsError, match="give the callback the trainer"):
        AttributionCallback(dataset=text_rows(8), layers=[3], on_flag="stop", output_dir=tmp_path / "audit")


def test_a_run_that_begins_again_with_a_smaller_batch_is_read_once(model_folder: Path, tmp_path: Path) -> None:
    """As ``auto_find_batch_size`` does after an out-of-memory failure: training begins twice in one call."""
    trainer = make_trainer(model_folder, tmp_path, text_rows(8), auto_find_batch_size=True)
    callback = AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")
    compute_loss, failed = trainer.compute_loss, []

    def out_of_memory_once(*args: Any, **kwargs: Any) -> Any:
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute_loss(*args, **kwargs)

    trainer.compute_loss = out_of_memory_once
    train(trainer, callback)
    assert failed and callback.finished is not None
    assert (callback.finished.counts.captured, callback.finished.counts.repeats) == (8, 0)
    assert hooks_on(trainer.ref_model) == 0


def test_what_was_measured_is_in_audit_json(model_folder: Path, tmp_path: Path) -> None:
    audited(model_folder, tmp_path, text_rows(8))
    values = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert values["vectors"]["path_reason"] == "DPOTrainer keeps one"
    assert values["training"]["ranks"] == 1
    assert values["settings"]["layers"] == LAYERS


def test_an_error_after_the_parts_are_gone_is_the_one_that_is_raised(tmp_path: Path) -> None:
    main_rank = MainRank(tmp_path / "parts", ALONE)
    with pytest.raises(ValueError, match="the real error") as raised, main_rank.failure_told():
        raise ValueError("the real error")
    assert raised.value.__context__ is None
