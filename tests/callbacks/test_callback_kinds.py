"""Runs of KTOTrainer and SFTTrainer are audited as their datasets are by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset
from peft import LoraConfig
from trl import SFTConfig

from tests.callbacks.test_callback import Interrupt, losses
from tests.training import (
    LAYERS,
    ROWS,
    Rows,
    chat_rows,
    kto_rows,
    least_cosine,
    make_trainer,
    offline,
    probe_on,
    sft_rows,
    text_rows,
    train,
)
from trl_attribution import DataAuditor, Manifest
from trl_attribution.callbacks import AttributionCallback, trainer_kind
from trl_attribution.callbacks.dataset import prepared_rows, rows_trained_on
from trl_attribution.errors import DataError, SettingsError
from trl_attribution.pairs import PairReader
from trl_attribution.pairs.own_responses import FILE_NAME, OwnConfig
from trl_attribution.utils import compat

KINDS = ["kto", "sft"]
DRAWN: dict[str, Any] = {"own_samples": 2, "own_max_new_tokens": 4}
OWN = OwnConfig(n=2, max_new_tokens=4)


def run_of(kind: str, model: Path, folder: Path, pairs: Rows, **more: Any) -> Any:
    return make_trainer(model, folder, ROWS[kind](pairs), kind=kind, max_length=1024, **more)


def audited(trainer: Any, folder: Path, **settings: Any) -> AttributionCallback:
    callback = AttributionCallback(
        trainer, **{"layers": LAYERS, "vector_dtype": "float32", "output_dir": folder / "audit", **DRAWN, **settings}
    )
    train(trainer, callback)
    return callback


def own_texts(folder: Path) -> list[Any]:
    lines = (folder / FILE_NAME).read_text().splitlines()
    return [json.loads(line)["responses"] for line in lines[1:]]


@pytest.mark.parametrize("pairs", [text_rows, chat_rows], ids=["text", "chat"])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_equal_those_of_the_offline_audit(
    kind: str, pairs: Callable[[int], Rows], model_folder: Path, tmp_path: Path
) -> None:
    rows = ROWS[kind](pairs(12))
    callback = audited(run_of(kind, model_folder, tmp_path, pairs(12)), tmp_path)
    assert callback.finished is not None
    found = callback.finished.audit
    expected = offline(model_folder, tmp_path, rows, kind=kind, own=OWN)
    assert found.info.vectors.path == "dedicated pass"
    assert own_texts(tmp_path / "audit") == own_texts(tmp_path / "offline")
    assert least_cosine(found.store, expected.store) >= 0.99999
    assert found.info.vectors.settings == expected.info.vectors.settings
    assert (found.info.dataset.format, found.info.dataset.pairs) == (kind, 12)
    assert not (tmp_path / "audit" / "parts").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_not_disturbed(kind: str, model_folder: Path, tmp_path: Path) -> None:
    # Dropout, so that a random number drawn more would show.
    def trainer() -> Any:
        torch.manual_seed(0)
        adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2, init_lora_weights=False)
        return run_of(kind, model_folder, tmp_path, text_rows(12), trainer={"peft_config": adapter})

    alone = trainer()
    train(alone)
    with_callback = trainer()
    callback = audited(with_callback, tmp_path, probes=[probe_on(model_folder)], drift_pairs=0)
    assert callback.finished is not None
    assert losses(with_callback) == losses(alone) and losses(alone)
    for (name, mine), theirs in zip(with_callback.model.named_parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_packed_and_shuffled_rows_are_audited_as_they_were_given(model_folder: Path, tmp_path: Path) -> None:
    rows = [{"messages": row["prompt"] + row["chosen"]} for row in chat_rows(10)]
    how: dict[str, Any] = dict(max_length=64, packing=True, packing_strategy="wrapped", shuffle_dataset=True)
    trainer = make_trainer(model_folder, tmp_path, rows, kind="sft", **how)
    with pytest.raises(SettingsError, match="dataset: packing=True leaves token ids only; give the callback the one"):
        AttributionCallback(trainer, layers=LAYERS)
    callback = audited(trainer, tmp_path, dataset=rows)
    assert callback.finished is not None
    found = callback.finished.audit
    expected = offline(model_folder, tmp_path, rows, kind="sft", own=OWN, max_length=None)
    assert least_cosine(found.store, expected.store) >= 0.99999
    assert any("is over prompts too" in note for note in found.info.notes)


def test_the_audit_ends_in_scores_and_decisions_that_fit_the_kind(model_folder: Path, tmp_path: Path) -> None:
    for kind, actions in (("kto", ["filter", "flip"]), ("sft", ["filter"])):
        rows = ROWS[kind](text_rows(12))
        folder = tmp_path / kind
        trainer = run_of(kind, model_folder, folder, text_rows(12))
        how: dict[str, Any] = dict(probes=[probe_on(model_folder)], layers=[3], score="response", top_k=3)
        finished = audited(trainer, folder, **how).finished
        assert finished is not None and finished.flagged is not None and finished.report is not None
        assert (list(finished.manifests), len(finished.flagged)) == (actions, 3)
        assert not any("is over prompts too" in note for note in finished.audit.info.notes)
        changed = Manifest.load(folder / "audit" / f"manifest.{actions[-1]}.jsonl").apply(Dataset.from_list(rows))
        if kind == "kto":
            turned = sum(mine["label"] != row["label"] for mine, row in zip(changed.to_list(), rows, strict=True))
            assert turned >= 3
        else:
            assert len(changed) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_with_the_responses_of_the_first(kind: str, model_folder: Path, tmp_path: Path) -> None:
    def trainer() -> Any:
        return run_of(kind, model_folder, tmp_path, text_rows(12), save_strategy="steps", save_steps=1)

    first = trainer()
    first.add_callback(Interrupt(2, RuntimeError("lights out")))
    with pytest.raises(RuntimeError, match="lights out"):
        audited(first, tmp_path)
    drawn = (tmp_path / "audit" / FILE_NAME).read_bytes()
    again = trainer()
    callback = AttributionCallback(again, layers=LAYERS, vector_dtype="float32", output_dir=tmp_path / "audit", **DRAWN)
    train(again, callback, resume_from_checkpoint=True)
    assert callback.finished is not None and len(callback.finished.audit.store) == 12
    assert (tmp_path / "audit" / FILE_NAME).read_bytes() == drawn


def test_responses_can_be_given(model_folder: Path, tmp_path: Path) -> None:
    rows = sft_rows(text_rows(4))
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"prompt": row["prompt"], "responses": ["Hm."]}) + "\n" for row in rows[1:]))
    trainer = run_of("sft", model_folder, tmp_path, text_rows(4))
    with pytest.raises(DataError, match="lacks responses to 1 prompt of the trainer's dataset"):
        audited(trainer, tmp_path, own_responses=own)
    assert not (tmp_path / "audit").exists()
    with own.open("a") as file:
        file.write(json.dumps({"prompt": rows[0]["prompt"], "responses": ["Hm."]}) + "\n")
    given = OwnConfig(file=str(own))
    trainer = run_of("sft", model_folder, tmp_path, text_rows(4))
    auditor = DataAuditor(layers=LAYERS, vector_dtype="float32", own=given)
    callback = auditor.attach(trainer, output_dir=tmp_path / "audit")
    train(trainer)
    assert callback.finished is not None
    expected = offline(model_folder, tmp_path, rows, kind="sft", own=given)
    assert least_cosine(callback.finished.audit.store, expected.store) >= 0.99999
    assert not (tmp_path / "audit" / FILE_NAME).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_callback_that_does_not_see_the_trainer_audits_it(kind: str, model_folder: Path, tmp_path: Path) -> None:
    rows = ROWS[kind](text_rows(8))
    callback = AttributionCallback(dataset=rows, layers=LAYERS, output_dir=tmp_path / "audit", **DRAWN)
    train(run_of(kind, model_folder, tmp_path, text_rows(8), trainer={"callbacks": [callback]}))
    assert callback.finished is not None
    expected = offline(model_folder, tmp_path, rows, kind=kind, own=OWN)
    assert least_cosine(callback.finished.audit.store, expected.store) >= 0.99999


def test_what_kto_reads_its_reference_in_makes_no_difference(model_folder: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = dict(precompute_ref_log_probs=True, loss_type="apo_zero_unpaired")
    finished = audited(run_of("kto", model_folder, tmp_path, text_rows(8), **how), tmp_path).finished
    assert finished is not None
    assert finished.audit.info.vectors.path_reason == "precompute_ref_log_probs runs M0 before training"
    expected = offline(model_folder, tmp_path, kto_rows(text_rows(8)), kind="kto", own=OWN)
    assert least_cosine(finished.audit.store, expected.store) >= 0.99999


# ---- refusals


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        (
            [{"text": "Bread and more bread."}] * 4,
            {},
            "neither prompt and completion nor messages, but text: ",
        ),
        (
            sft_rows(text_rows(4)),
            {"formatting_func": lambda row: row["prompt"]},
            "SFTTrainer cannot be audited",
        ),
    ],
    ids=["text", "formatting_func"],
)
def test_sft_on_plain_text_is_refused(
    rows: Rows, more: dict[str, Any], says: str, model_folder: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(model_folder, tmp_path, rows, kind="sft", trainer=more, completion_only_loss=False)
    with pytest.raises(SettingsError, match=says):
        AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")


def test_sources_of_a_stream_have_the_names_that_they_have_in_a_dataset() -> None:
    rows = [{**row, "source": place % 2, "input_ids": [1]} for place, row in enumerate(text_rows(4))]
    dataset = Dataset.from_list(rows).cast_column("source", ClassLabel(names=["lab", "web"]))
    streamed = prepared_rows(dataset.to_iterable_dataset(), "pair", most=3)
    assert [pair.source for pair in PairReader(streamed)] == ["lab", "web", "lab"]
    assert streamed.features == prepared_rows(dataset, "pair").features


@pytest.mark.parametrize(("split", "rows"), [(False, 5 * 8 * 2 * 4), (True, 5 * 8 * 2)])
def test_a_stream_is_read_as_far_as_all_processes_train_on_it(split: bool, rows: int, tmp_path: Path) -> None:
    class OfFour(SFTConfig):
        world_size = 4  # which no single process can be

    settings: dict[str, Any] = dict(max_steps=5, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    args = OfFour(str(tmp_path), use_cpu=True, bf16=False, accelerator_config={"split_batches": split}, **settings)
    assert rows_trained_on(Dataset.from_list([{"text": ""}]).to_iterable_dataset(), args) == rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_audited_before_the_first_step(kind: str, model_folder: Path, tmp_path: Path) -> None:
    rows = ROWS[kind](text_rows(4))
    stream: Any = Dataset.from_list(rows).to_iterable_dataset()
    streamed = make_trainer(model_folder, tmp_path, stream, kind=kind, max_steps=4)
    callback = audited(streamed, tmp_path)
    assert callback.finished is not None
    expected = offline(model_folder, tmp_path, rows, kind=kind, own=OWN)
    assert least_cosine(callback.finished.audit.store, expected.store) >= 0.99999


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_flag", ["skip", "stop"])
def test_nothing_can_be_done_about_flags_while_training(
    kind: str, on_flag: str, model_folder: Path, tmp_path: Path
) -> None:
    trainer = run_of(kind, model_folder, tmp_path, text_rows(8))
    with pytest.raises(SettingsError, match=f"on_flag='{on_flag}' cannot"):
        audited(trainer, tmp_path, probes=[probe_on(model_folder)], on_flag=on_flag, flag_at=0.5)
    assert not (tmp_path / "audit").exists()


def test_a_kto_trainer_that_was_an_experiment_is_refused(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = run_of("kto", model_folder, tmp_path, text_rows(8))
    found = compat.version_of
    monkeypatch.setattr(compat, "version_of", lambda name: compat.Version("1.7.0") if name == "trl" else found(name))
    with pytest.raises(SettingsError, match=r"KTOTrainer is audited from TRL 1.8 on"):
        trainer_kind.kind_of(trainer)
