"""Pairs with images in a run of DPO: nothing is disturbed, and vectors are those of the plainest computation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from tests.training import LAYERS, least_cosine, make_trainer, text_rows, train
from tests.vision import image_rows, loaded, model, processor, vision_folder
from trl_attribution import AttributionCallback, DataAuditor, pair_id
from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.audit.folder import Audit
from trl_attribution.callbacks import AttributionTracker
from trl_attribution.errors import DataError, ModelError, SettingsError
from trl_attribution.lenses import SaeConfig
from trl_attribution.pairs import Encoding, PairReader, Reading, encode_pairs
from trl_attribution.store import VectorStore

Row = dict[str, Any]


@torch.no_grad()
def naive(sees: Any, seeing: Any, row: Row) -> tuple[Tensor, Tensor]:
    """Pair vector and context [L, D], a response at a time: the processor's tokens of a prompt, then the answer's."""
    asked = row["prompt"][0]["content"]
    blocks = [{"type": "image"} for _ in row["images"]] + [{"type": "text", "text": asked}]
    if not isinstance(asked, str):
        blocks = [{name: value for name, value in block.items() if value is not None} for block in asked]
    prompt = seeing.apply_chat_template([{"role": "user", "content": blocks}], add_generation_prompt=True)
    inputs = seeing(images=row["images"] or None, text=[prompt], return_tensors="pt", add_special_tokens=False)
    means, length = [], inputs["input_ids"].shape[1]
    for side in ("chosen", "rejected"):
        answer = seeing.tokenizer(row[side][0]["content"] + "<|im_end|>\n", return_tensors="pt").input_ids
        whole = {"input_ids": torch.cat([inputs["input_ids"], answer], dim=1)}
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                whole[name] = torch.cat([inputs[name], torch.zeros_like(answer)], dim=1)
        states = sees(**{**inputs, "attention_mask": None, **whole}, output_hidden_states=True).hidden_states
        stream = torch.stack([states[layer][0] for layer in LAYERS])
        means.append(stream[:, length:].mean(1))
    return means[0] - means[1], stream[:, length - 1]


def offline(architecture: str, rows: Any, folder: Path, **settings: Any) -> Audit:
    auditor = DataAuditor(loaded(architecture), layers=LAYERS, vector_dtype="float32", **settings)
    return auditor.audit(rows, folder)


def cosines(store: VectorStore, rows: Sequence[Row], architecture: str) -> Tensor:
    """Between the vectors in ``store`` and the naive ones, pair and context, of every pair and layer."""
    found = store.select([pair_id(row) for row in rows])
    sees, seeing = model(architecture), processor(architecture)
    expected = [naive(sees, seeing, row) for row in rows]
    pairs, contexts = (torch.stack(each) for each in zip(*expected, strict=True))
    mine = torch.stack([torch.stack([found.layer(one), found.context(one)], dim=1) for one in LAYERS], dim=1)
    return torch.nn.functional.cosine_similarity(mine.double(), torch.stack([pairs, contexts], dim=2).double(), dim=-1)


def run(architecture: str, model_folder: Path, folder: Path, rows: list[Row], *, audit: bool) -> Any:
    trainer = make_trainer(
        model_folder,
        folder,
        rows,
        trainer={"processing_class": processor(architecture)},
        per_device_train_batch_size=2,
        logging_steps=1,
    )
    callbacks = []
    if audit:
        callbacks = [AttributionCallback(trainer, layers=LAYERS, output_dir=folder / "audit", vector_dtype="float32")]
    train(trainer, *callbacks)
    return trainer, *callbacks


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "llava"])
def test_a_run_on_images_is_undisturbed_and_has_the_vectors_of_the_audit_and_of_one_row_at_a_time(
    architecture: str, tmp_path: Path
) -> None:
    place = vision_folder(architecture, tmp_path / "model")
    rows = image_rows(blocks=architecture == "llava")
    (plain,) = run(architecture, place, tmp_path / "plain", rows, audit=False)
    audited, callback = run(architecture, place, tmp_path / "audited", rows, audit=True)
    assert all(torch.equal(one, audited.model.state_dict()[name]) for name, one in plain.model.state_dict().items())
    losses = [[log["loss"] for log in one.state.log_history if "loss" in log] for one in (plain, audited)]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    training = callback.finished.audit.info.training
    assert (training.captured, training.unaudited, training.never_seen) == (6, 0, 0)
    assert callback.finished.audit.info.vectors.path == "reference model"
    in_run, alone = callback.finished.audit.store, offline(architecture, rows, tmp_path / "offline")
    assert in_run.settings == alone.store.settings
    ids = [pair_id(row) for row in rows]
    assert least_cosine(in_run.select(ids), alone.store.select(ids)) >= 0.99999
    for store in (in_run, alone.store):
        assert cosines(store, rows, architecture).min() >= 0.99999
    vectors = alone.store.select(ids).layer(LAYERS[-1])
    assert torch.nn.functional.cosine_similarity(vectors[3], vectors[4], dim=0) < 0.999  # another picture, no more


def test_gemma_is_audited_as_one_row_at_a_time(tmp_path: Path) -> None:
    rows = image_rows()
    assert cosines(offline("gemma3", rows, tmp_path / "audit").store, rows, "gemma3").min() >= 0.99999


def test_a_callback_given_at_construction_passes_over_the_images_first(tmp_path: Path) -> None:
    place, rows = vision_folder("llava", tmp_path / "model"), image_rows(4)
    callback = AttributionCallback(
        dataset=rows, layers=LAYERS, output_dir=tmp_path / "audit", vector_dtype="float32", on_flag="log"
    )
    trainer = make_trainer(
        place, tmp_path, rows, trainer={"processing_class": processor("llava"), "callbacks": [callback]}, max_steps=1
    )
    train(trainer)
    assert callback.finished is not None and callback.finished.audit.info.vectors.path == "dedicated pass"
    expected = offline("llava", rows, tmp_path / "offline")
    assert least_cosine(callback.finished.audit.store, expected.store) >= 0.99999


def test_an_audit_of_a_checkpoint_on_disk_reads_through_its_own_processor(tmp_path: Path) -> None:
    place, rows = vision_folder("llava", tmp_path / "model"), image_rows(4)
    auditor = DataAuditor(place, layers=LAYERS, dtype="float32", vector_dtype="float32")
    found = auditor.audit(Dataset.from_list(rows), tmp_path / "audit")
    assert least_cosine(found.store, offline("llava", rows, tmp_path / "offline").store) >= 0.99999
    assert found.info.vectors.path == "plain"
    again = auditor.audit(Dataset.from_list(rows), tmp_path / "audit")
    assert again.info.vectors.computed == 0


def test_jobs_that_share_an_audit_of_images_come_to_the_same(tmp_path: Path) -> None:
    place, rows = vision_folder("llava", tmp_path / "model"), image_rows(4)
    for share in ("1/2", "2/2"):
        auditor = DataAuditor(place, layers=LAYERS, dtype="float32", vector_dtype="float32", shard_size=2)
        assert auditor.audit_share(rows, tmp_path / "audit", share).computed == 2
    merged = auditor.merge(rows, tmp_path / "audit")
    assert least_cosine(merged.store, offline("llava", rows, tmp_path / "offline").store) >= 0.99999


def test_vectors_of_another_vision_tower_or_processor_are_not_taken_over(tmp_path: Path) -> None:
    rows = image_rows(2)
    offline("llava", rows, tmp_path / "audit")
    tower, scaled, written = (loaded("llava") for _ in range(3))
    torch.nn.init.zeros_(tower.model.get_parameter("model.vision_tower.encoder.layers.1.mlp.fc1.weight"))
    scaled.processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    written.processor.chat_template = f"See: {written.processor.chat_template}"
    for other in (tower, scaled, written):
        with pytest.raises(SettingsError, match="vision: stored"):
            DataAuditor(other, layers=LAYERS, vector_dtype="float32").audit(rows, tmp_path / "audit")


def test_a_row_with_a_broken_image_ends_an_audit_before_anything_is_written(tmp_path: Path) -> None:
    rows = [*image_rows(2), {**image_rows(1)[0], "images": [{"bytes": b"broken", "path": None}]}]
    with pytest.raises(DataError, match=r"row 2: column 'images' holds an image that cannot be read"):
        offline("llava", rows, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()
    skipping = offline("llava", rows, tmp_path / "audit", reading=Reading(on_bad_row="skip"))
    assert skipping.info.dataset.skipped == {"bad_image": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "packed"}, "path: packed is for text"),
        ({"encoding": Encoding(truncation_mode="keep_end")}, "TRL takes keep_start alone"),
    ],
)
def test_settings_that_images_rule_out_are_refused(settings: Row, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        offline("llava", image_rows(1), tmp_path / "audit", **settings)
    assert not (tmp_path / "audit").exists()


def test_a_model_of_text_refuses_images(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no processor that takes any"):
        DataAuditor(model_folder, layers=LAYERS).audit(image_rows(2), tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


def test_a_model_that_fails_on_a_row_names_it() -> None:
    seeing, engine = processor("llava"), ActivationEngine(model("llava"), ActivationConfig((1,)))
    (pair,) = encode_pairs(list(PairReader(image_rows(1))), seeing, Encoding())
    seeing.num_additional_image_tokens = 3  # so that there are more places than the model makes of an image
    with pytest.raises(ModelError, match=r"row 0: the model fails \(ValueError: Image features and image tokens"):
        engine.pair_vectors([pair])


def test_a_scan_through_an_autoencoder_refuses_images_before_it_begins(tmp_path: Path) -> None:
    auditor = DataAuditor(loaded("llava"))
    with pytest.raises(SettingsError, match="sae: the dataset holds images"):
        auditor.scan(image_rows(2), tmp_path / "scan", sae=SaeConfig("none", layer=1))
    assert not (tmp_path / "scan").exists()


def test_what_knows_a_batch_by_its_tokens_alone_refuses_images(tmp_path: Path) -> None:
    tracker = AttributionTracker(
        model("llava"), processor("llava").tokenizer, image_rows(2), layers=LAYERS, output_dir=str(tmp_path / "audit")
    )
    with pytest.raises(SettingsError, match="the tracker knows a batch's pairs by their tokens"), tracker:
        pass


@pytest.mark.parametrize("kind", ["kto", "sft"])
def test_other_trainers_on_images_are_refused_when_the_callback_is_made(
    kind: str, model_folder: Path, tmp_path: Path
) -> None:
    from tests.training import ROWS

    trainer = make_trainer(model_folder, tmp_path, ROWS[kind](text_rows(4)), kind=kind)
    trainer._is_vision_dataset = True  # as TRL says of a dataset with a column of images
    with pytest.raises(SettingsError, match=r"audited in a DPOTrainer only, not in a (KTO|SFT)Trainer"):
        AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")


def test_what_cannot_be_read_again_as_it_is_trained_on_is_refused_when_the_callback_is_made(tmp_path: Path) -> None:
    dataset, place = Dataset.from_list(image_rows(2)), vision_folder("llava", tmp_path / "model")
    refused = {
        "images cannot be read of a stream": dataset.to_iterable_dataset(),
        "it has a transform": dataset.with_transform(dict),
    }
    for message, rows in refused.items():
        trainer = make_trainer(place, tmp_path, rows, trainer={"processing_class": processor("llava")}, max_steps=1)
        with pytest.raises(SettingsError, match=message):
            AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")
