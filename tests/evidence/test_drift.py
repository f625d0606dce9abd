"""Drift is what a plain loop over all hidden states of both models gives, and survives being stored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.naive import mean_activation
from trl_attribution.activations import ActivationConfig, ActivationEngine, PromptGroup
from trl_attribution.errors import ModelError, StoreError
from trl_attribution.evidence.readouts.drift import drift, load_drift, mean_activations, save_drift
from trl_attribution.report.change import drift_table

LAYERS = (0, 1, 3)
GROUPS = [PromptGroup([1, 5, 9], [[20, 21, 22], [30]]), PromptGroup([1, 7], [[40, 41, 42, 43]])]


def trained(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with other weights, the embeddings left alone."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def means(model: PreTrainedModel, token_budget: int | None = None) -> Tensor:
    engine = ActivationEngine(model, ActivationConfig(layers=LAYERS, token_budget=token_budget))
    return mean_activations(engine, GROUPS)


def test_means_are_those_of_a_plain_loop_in_the_order_of_the_responses(
    make_model: Callable[[str], PreTrainedModel],
) -> None:
    model = make_model("llama")
    expected = [mean_activation(model, one.prompt_ids, ids, LAYERS) for one in GROUPS for ids in one.responses]
    torch.testing.assert_close(means(model), torch.stack(expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(means(model, token_budget=4), torch.stack(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_drift_is_that_of_a_plain_loop(make_model: Callable[[str], PreTrainedModel], architecture: str) -> None:
    m0, m1 = make_model(architecture), trained(make_model(architecture))
    found = drift(means(m0), means(m1), LAYERS)
    assert [one.layer for one in found] == list(LAYERS)
    for row, one in enumerate(found):
        lengths, changes, cosines = [], [], []
        for group in GROUPS:
            for ids in group.responses:
                before = mean_activation(m0, group.prompt_ids, ids, LAYERS)[row]
                after = mean_activation(m1, group.prompt_ids, ids, LAYERS)[row]
                lengths.append(before.norm())
                changes.append(after - before)
                cosines.append(float(before @ after / before.norm() / after.norm()))
        moved = [change.norm() for change in changes]
        mean_change = sum(changes) / 3
        assert one.norm == pytest.approx(float(sum(moved) / sum(lengths)), abs=1e-5)
        assert one.cosine == pytest.approx(sum(cosines) / 3, abs=1e-5)
        torch.testing.assert_close(one.mean_change, mean_change, atol=1e-5, rtol=1e-4)
        if row == 0:
            assert (one.norm, one.direction_consistency) == (0.0, 0.0)
        else:
            expected = float(mean_change.norm() / (sum(moved) / 3))
            assert one.direction_consistency == pytest.approx(expected, abs=1e-5)
            assert 0 < one.direction_consistency < 1
            assert one.samples == 3


def test_identical_models_have_not_drifted(make_model: Callable[[str], PreTrainedModel]) -> None:
    for one in drift(means(make_model("llama")), means(make_model("llama")), LAYERS):
        assert one.norm == one.direction_consistency == 0.0
        assert one.cosine == pytest.approx(1.0)
        assert not one.mean_change.any()


def test_a_shift_by_one_vector_is_fully_consistent() -> None:
    before = torch.randn(5, 1, 8)
    (one,) = drift(before, before + torch.arange(8.0), [4])
    assert one.direction_consistency == pytest.approx(1.0)
    torch.testing.assert_close(one.mean_change, torch.arange(8.0))


def test_changes_in_opposite_directions_are_not_consistent() -> None:
    before = torch.ones(2, 1, 4)
    (one,) = drift(before, before + torch.tensor([[[0.5] * 4], [[-0.5] * 4]]), [4])
    assert (one.norm, one.direction_consistency) == (pytest.approx(0.5), 0.0)


def test_the_models_are_left_in_the_mode_they_were_in(make_model: Callable[[str], PreTrainedModel]) -> None:
    model = make_model("llama").train()
    means(model)
    assert model.training
    assert all(module.training for module in model.modules())


def test_activations_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="must both be"):
        drift(torch.zeros(3, 1, 4), torch.zeros(2, 1, 4), [1])
    with pytest.raises(ValueError, match="must both be"):
        drift(torch.zeros(3, 2, 4), torch.zeros(3, 2, 4), [1])


def test_a_model_that_diverged_is_reported_with_its_layers() -> None:
    after = torch.ones(3, 2, 4)
    after[1, 1, 2] = math.nan
    with pytest.raises(ModelError, match=r"of M1 are infinite or not a number at layers \[7\]"):
        drift(torch.ones(3, 2, 4), after, [5, 7])


def test_drift_is_read_as_it_was_written(tmp_path: Path) -> None:
    before = torch.randn(4, 2, 8)
    drifts = drift(before, before + torch.randn(4, 2, 8), [3, 5])
    save_drift(tmp_path, drifts, {"m0": "abc", "m1": "def"})
    stored = load_drift(tmp_path)
    assert stored.layers == tuple(drifts)
    assert stored.about == {"m0": "abc", "m1": "def"}
    for one, other in zip(stored.layers, drifts, strict=True):
        assert torch.equal(one.mean_change, other.mean_change)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drift.json", "drift.safetensors"]


def test_broken_drift_is_refused(tmp_path: Path) -> None:
    drifts = drift(torch.ones(2, 1, 4), torch.zeros(2, 1, 4), [1])
    with pytest.raises(StoreError, match="cannot read"):
        load_drift(tmp_path)
    save_drift(tmp_path / "other", [replace(drifts[0], mean_change=torch.ones(4))])
    save_drift(tmp_path, drifts)
    good = (tmp_path / "drift.json").read_text()
    for changed, message in [
        ({"format": "else"}, "holds no drift"),
        ({"format_version": 2}, "reads up to 1"),
        ({"layers": []}, "is broken"),
        ({"layers": [{"layer": 1}]}, "is broken"),
    ]:
        (tmp_path / "drift.json").write_text(json.dumps({**json.loads(good), **changed}))
        with pytest.raises(StoreError, match=message):
            load_drift(tmp_path)
    (tmp_path / "drift.json").write_text(good)
    (tmp_path / "other" / "drift.safetensors").replace(tmp_path / "drift.safetensors")
    with pytest.raises(StoreError, match="does not belong to"):
        load_drift(tmp_path)


def test_the_table_has_a_line_a_layer(make_model: Callable[[str], PreTrainedModel]) -> None:
    drifts = drift(means(make_model("llama")), means(trained(make_model("llama"))), LAYERS)
    console = Console(width=100, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(drift_table(drifts))
    lines = captured.get().splitlines()
    assert sum(f"{one.norm:.2%}" in line for one in drifts for line in lines) == 3
    assert "3 responses" in captured.get()


def test_responses_of_one_behavior_become_groups_of_the_tokens_that_a_pair_would_have(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    from trl_attribution.behaviors.responses import Responses, read_behaviors, response_groups, sample_behaviors
    from trl_attribution.pairs import Encoding

    behaviors = read_behaviors([{"prompt": "Bake bread."}, {"prompt": "Write a letter."}])
    texts = [("Mix flour.", " ", "No."), ("Dear friend.",)]
    responses: Responses = sample_behaviors(behaviors, lambda _: texts)
    groups = response_groups(behaviors, responses, tokenizer, Encoding())
    assert [len(group.responses) for group in groups] == [2, 1]
    for prompt, group, written in [("Bake bread.", groups[0], texts[0][::2]), ("Write a letter.", groups[1], texts[1])]:
        messages = [{"role": "user", "content": prompt}]
        head = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert list(group.prompt_ids) == head
        for text, ids in zip(written, group.responses, strict=True):
            full = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": text}], return_dict=True)
            assert head + list(ids) == full["input_ids"]
