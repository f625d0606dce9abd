"""Weights in the loss of a real DPOTrainer: what a pair teaches is multiplied by its weight, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOTrainer, SFTConfig, SFTTrainer

from tests.callbacks.test_callback import in_order, losses, training_of
from tests.training import LAYERS, arguments, config, make_trainer, probe_on, text_rows, train
from trl_attribution import Manifest
from trl_attribution.callbacks import AttributionCallback, WeightedLossMixin
from trl_attribution.errors import SettingsError
from trl_attribution.manifest.weighted_loss import weigh_by_column
from trl_attribution.utils.compat import is_before

WEIGHTS = [1.0, 0.0, 0.25, 1.5]
# Plain descent: a step is the gradient, whatever its size.
DESCENT: dict[str, Any] = dict(optim="sgd", learning_rate=0.5, max_grad_norm=0.0, logging_steps=1)
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)


class WeightedDPOTrainer(WeightedLossMixin, DPOTrainer):
    """As a user writes it."""


def weighted(weights: list[float], rows: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    given = text_rows(len(weights)) if rows is None else rows
    return [{**row, "weight": weight} for row, weight in zip(given, weights, strict=True)]


def weighing(model: Path, folder: Path, weights: list[float], **settings: Any) -> Any:
    trainer = make_trainer(model, folder, weighted(weights), **{**DESCENT, **settings})
    weigh_by_column(trainer)
    in_order(trainer)
    return trainer


def trained(trainer: Any) -> list[torch.Tensor]:
    train(trainer)
    return [parameter.detach().cpu() for parameter in trainer.model.parameters()]


def gradients(trainer: Any, rows: slice) -> list[torch.Tensor]:
    """Of the loss over some rows of the trainer's dataset, as one batch."""
    trainer.model.train().zero_grad()
    columns = trainer._signature_columns or [name for name in trainer.train_dataset.column_names if name != "weight"]
    batch = [{name: row[name] for name in columns if name in row} for row in trainer.train_dataset.to_list()[rows]]
    trainer.compute_loss(trainer.model, trainer.data_collator(batch)).backward()
    return [one.grad.clone() for one in trainer.model.parameters() if one.grad is not None]


def assert_equal(mine: list[torch.Tensor], theirs: list[torch.Tensor], atol: float = 1e-6) -> None:
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=1e-4)


@pytest.mark.parametrize(
    ("trainer", "settings"),
    [
        ({}, {}),
        ({}, {"loss_type": ["ipo", "hinge"], "loss_weights": [1.0, 0.5], "ld_alpha": 0.5}),
        ({}, {"loss_type": "bco_pair", "use_weighting": True, "gradient_checkpointing": False}),
        ({"peft_config": LORA}, {"gradient_checkpointing_kwargs": {"use_reentrant": False}}),
    ],
)
def test_the_gradient_is_the_weighted_sum_of_the_pairs_own_over_their_number(
    trainer: dict[str, Any], settings: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    running = make_trainer(model_folder, tmp_path, weighted(WEIGHTS), trainer=dict(trainer), **settings)
    alone = [gradients(running, slice(place, place + 1)) for place in range(4)]
    weigh_by_column(running)
    expected = [sum(w * one for w, one in zip(WEIGHTS, each, strict=True)) / 4 for each in zip(*alone, strict=True)]
    found = gradients(running, slice(0, 4))
    assert_equal(found, expected, atol=5e-6)
    assert max(float(one.abs().max()) for one in found) > 1e-4
    assert all(not bool(one.any()) for one in gradients(running, slice(1, 2)))


@pytest.mark.parametrize("settings", [{}, {"precompute_ref_log_probs": True}])
def test_weights_of_1_change_no_bit(settings: dict[str, Any], model_folder: Path, tmp_path: Path) -> None:
    plain = make_trainer(model_folder, tmp_path, text_rows(8), **settings)
    ones = make_trainer(model_folder, tmp_path, weighted([1.0] * 8), **settings)
    weigh_by_column(ones)
    for mine, theirs in zip(trained(ones), trained(plain), strict=True):
        assert torch.equal(mine, theirs)
    assert losses(ones) == losses(plain)


def test_a_weight_of_0_equals_leaving_the_pair_out(model_folder: Path, tmp_path: Path) -> None:
    """In every batch of four one pair has no weight; the other run takes the other three, at 3/4 of the rate."""
    weights = [float(number % 4 != 1) for number in range(16)]
    kept = [row for row, weight in zip(text_rows(16), weights, strict=True) if weight]
    smaller = {**DESCENT, "learning_rate": 0.75 * DESCENT["learning_rate"], "per_device_train_batch_size": 3}
    without = make_trainer(model_folder, tmp_path, kept, **smaller)
    in_order(without)
    assert_equal(trained(weighing(model_folder, tmp_path, weights)), trained(without))


@pytest.mark.parametrize("size", [2, 1])
def test_accumulated_batches_equal_one(size: int, model_folder: Path, tmp_path: Path) -> None:
    weights = [0.0, 0.25, 0.5, 1.0, 2.0] * 3 + [1.0]
    once = trained(weighing(model_folder, tmp_path, weights))
    steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
    assert_equal(trained(weighing(model_folder, tmp_path, weights, **steps)), once)


def test_the_mixin_the_callback_and_a_manifest_do_the_same(model_folder: Path, tmp_path: Path) -> None:
    rows, probe = text_rows(8), probe_on(model_folder)
    first = make_trainer(model_folder, tmp_path, rows, **DESCENT)
    in_order(first)
    train(first, AttributionCallback(first, probes=[probe], top_k=5, score="response", output_dir=tmp_path / "audit"))
    data = Manifest.load(tmp_path / "audit" / "manifest.filter.jsonl").apply(Dataset.from_list(rows), action="weight")
    assert sum(weight < 1 for weight in data["weight"]) == 4

    mixed = WeightedDPOTrainer(model=str(model_folder), args=config(tmp_path, **DESCENT), train_dataset=data)
    in_order(mixed)
    called = make_trainer(model_folder, tmp_path, data, **DESCENT)
    in_order(called)
    again = AttributionCallback(called, layers=LAYERS, weights="weight", output_dir=tmp_path / "again")
    with pytest.raises(SettingsError, match="the trainer weighs its pairs already"):
        AttributionCallback(mixed, layers=LAYERS, weights="weight", output_dir=tmp_path / "again")
    called.add_callback(again)
    mine, theirs = trained(mixed), trained(called)
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))
    assert again.finished is not None and len(again.finished.audit.store) == 8
    before = [parameter.detach() for parameter in first.model.parameters()]
    assert any(not torch.allclose(one, other, atol=1e-4) for one, other in zip(mine, before, strict=True))


def test_skipping_is_a_weight_of_0_and_multiplies_with_weights(model_folder: Path, tmp_path: Path) -> None:
    rows, probe = text_rows(8), probe_on(model_folder)
    weights = [0.5 + number / 8 for number in range(8)]
    skipping = make_trainer(model_folder, tmp_path, weighted(weights), **DESCENT)
    in_order(skipping)
    settings: dict[str, Any] = dict(probes=[probe], score="response", flag_at=0.5, output_dir=tmp_path / "audit")
    callback = AttributionCallback(skipping, weights="weight", on_flag="skip", **settings)
    skipping.add_callback(callback)
    found = trained(skipping)
    assert callback.finished is not None and callback.finished.audit.scores is not None
    scores = callback.finished.audit.scores.of(callback.finished.audit.scores.columns[0])
    flagged = [bool(score >= 0.5) for score in scores]
    assert 0 < sum(flagged) < len(rows) and training_of(tmp_path / "audit")["skipped_rows"] == sum(flagged)
    zeros = [0.0 if out else weight for out, weight in zip(flagged, weights, strict=True)]
    expected = trained(weighing(model_folder, tmp_path, zeros))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("precomputed", [False, True])
def test_evaluation_is_left_as_it_is(precomputed: bool, model_folder: Path, tmp_path: Path) -> None:
    held_out = Dataset.from_list(weighted([0.0] * 4))
    found, made = [], ("ref_chosen_logps", "ref_rejected_logps")
    for weighs in (True, False):
        trainer = make_trainer(
            model_folder,
            tmp_path,
            weighted([0.5] * 4),
            trainer={"eval_dataset": held_out, "ref_model": AutoModelForCausalLM.from_pretrained(model_folder)},
            precompute_ref_log_probs=precomputed,
        )
        if weighs:
            weigh_by_column(trainer)
        found.append([trainer.evaluate()["eval_loss"]])
        if not is_before("trl", "1.9"):  # which computes no reference for rows that come later
            another = trainer.eval_dataset.remove_columns([name for name in made if name in trainer.eval_dataset[0]])
            found[-1].append(trainer.evaluate(another)["eval_loss"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        (None, {}, "the trainer's dataset has no column 'weight'; it has .*Make it with trl-attribution apply"),
        ([1.0, -0.5, 1.0, 1.0], {}, r"column 'weight' holds -0\.5 \(row 1\); a weight is a number from 0 on"),
        ([1.0, None, 1.0, 1.0], {}, r"holds None \(row 1\)"),
        ([1.0, float("nan"), 1.0, 1.0], {}, r"holds nan \(row 1\)"),
        ([True] * 4, {}, r"holds True \(row 0\)"),
        ([1.0] * 4, {"loss_type": "aot"}, "loss_type 'aot' sorts the pairs of a batch against one another"),
    ],
)
def test_what_cannot_be_weighed_is_refused_before_training(
    values: Any, settings: dict[str, Any], message: str, model_folder: Path, tmp_path: Path
) -> None:
    rows = text_rows(4) if values is None else weighted(values)
    trainer = make_trainer(model_folder, tmp_path, rows, **settings)
    with pytest.raises(SettingsError, match="give the callback the trainer"):
        AttributionCallback(dataset=rows, layers=LAYERS, weights="weight", output_dir=tmp_path / "audit")
    with pytest.raises(SettingsError, match=message):
        AttributionCallback(trainer, layers=LAYERS, weights="weight", output_dir=tmp_path / "audit")


def test_a_stream_without_the_column_is_refused_too(model_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model_folder, tmp_path, text_rows(4))
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset().map(dict)
    assert trainer.train_dataset.column_names is None
    with pytest.raises(SettingsError, match="has no column 'weight'; it has prompt, chosen, rejected"):
        weigh_by_column(trainer)
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {**row, "weight": 1.0})
    weigh_by_column(trainer)


def test_a_trainer_of_no_pairs_is_refused(model_folder: Path, tmp_path: Path) -> None:
    class WeightedSFTTrainer(WeightedLossMixin, SFTTrainer):
        pass

    rows = [{"prompt": row["prompt"], "completion": row["chosen"], "weight": 1.0} for row in text_rows(2)]
    with pytest.raises(SettingsError, match="only a DPOTrainer's pairs can be weighed, not WeightedSFTTrainer's"):
        WeightedSFTTrainer(
            str(model_folder), args=SFTConfig(**arguments(tmp_path)), train_dataset=Dataset.from_list(rows)
        )
