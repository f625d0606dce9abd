"""The reference pass that cells share: the same training as without, and M0 runs over each pair once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from trl_attribution.errors import SettingsError
from trl_attribution.evidence.validation.interventions import Changes, Dataset
from trl_attribution.evidence.validation.plan import ValidationPlan
from trl_attribution.evidence.validation.training import Job, dpo_config, step_count, trainer_of
from trl_attribution.models import load_model

ROWS = [
    {"prompt": f"Question {number}?", "chosen": "yes " * (1 + number % 3), "rejected": "no " * (1 + number % 2)}
    for number in range(6)
]
STEPS = 3


def planned(model: Path, peft: dict[str, Any] | None = None, **dpo: Any) -> ValidationPlan:
    return ValidationPlan.model_validate(
        {
            "model": str(model),
            "dataset": "data.jsonl",
            "dtype": "float32",
            "device": "cpu",
            "rankings": {"audit": {"scores": "scores.jsonl"}},
            "behaviors": [{"file": "trigger.jsonl"}],
            # Adam makes as large a step of a gradient that is mere rounding as of a real one.
            "training": {
                "dpo": {"optim": "sgd", "learning_rate": 0.1, "per_device_train_batch_size": 2, **dpo},
                "peft": peft,
            },
            "interventions": ["flip"],
            "sizes": [1],
            "seeds": [0],
        }
    )


def trained(plan: ValidationPlan, folder: Path, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    job = Job(Dataset(rows, Changes(len(rows))), seed=0, steps=STEPS, folder=folder / "work")
    found = trainer_of(plan, folder)(job)
    assert found.steps == STEPS
    return found.loaded.model.state_dict()


def flipped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss_type": ["ipo"], "ld_alpha": 0.5}, {"learning_rate": 10.0, "peft": {"target_modules": "all-linear"}}],
    ids=["sigmoid", "ipo with ld_alpha", "adapter"],
)
def test_cells_that_share_a_reference_pass_train_as_those_with_a_reference_model(
    settings: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    shared = planned(model_folder, precompute_ref_log_probs=True, **settings)
    alone = planned(model_folder, **settings)
    before = load_model(model_folder, dtype="float32", device="cpu").model.state_dict()
    moved = next(name for name in before if name.endswith("q_proj.weight"))
    weighed = [{**row, "weight": number / 4} for number, row in enumerate(flipped(ROWS)[:3] + ROWS[3:])]
    for rows in (ROWS, weighed):
        expected = trained(alone, tmp_path / "alone", rows)
        assert not torch.allclose(expected[moved], before[moved], atol=1e-4)
        assert expected.keys() == before.keys()
        for name, weight in trained(shared, tmp_path, rows).items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)
    assert not (tmp_path / "alone" / "reference.parquet").exists()


def test_a_pair_is_passed_over_once_whichever_response_is_chosen(model_folder: Path, tmp_path: Path) -> None:
    plan = planned(model_folder, precompute_ref_log_probs=True)
    trained(plan, tmp_path, ROWS[:4] + ROWS[:2])
    kept = (tmp_path / "reference.parquet").stat().st_mtime_ns
    assert pq.read_table(tmp_path / "reference.parquet").num_rows == 8
    trained(plan, tmp_path, flipped(ROWS[:4]))
    assert (tmp_path / "reference.parquet").stat().st_mtime_ns == kept
    trained(plan, tmp_path, ROWS)
    assert pq.read_table(tmp_path / "reference.parquet").num_rows == 12


def test_a_reference_model_that_changes_cannot_be_passed_over_once(model_folder: Path, tmp_path: Path) -> None:
    plan = planned(model_folder, precompute_ref_log_probs=True, sync_ref_model=True)
    with pytest.raises(SettingsError, match="sync_ref_model changes it. Leave one of them out"):
        dpo_config(plan, tmp_path, seed=0, steps=STEPS)


def test_an_adapter_leaves_the_weights_that_it_is_not_made_for_alone(model_folder: Path, tmp_path: Path) -> None:
    plan = planned(model_folder, peft={"target_modules": ["q_proj"], "r": 2}, learning_rate=10.0)
    before = load_model(model_folder, dtype="float32", device="cpu").model.state_dict()
    after = trained(plan, tmp_path, ROWS)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("q_proj.weight")}


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({"rank": 8}, "training.peft.rank: LoraConfig has no such field"),
        ({"r": 8, "layers_to_transform": [0], "target_modules": "q_proj"}, "training.peft: LoraConfig refuses it"),
    ],
)
def test_settings_that_lora_has_not_are_refused_before_training(
    peft: dict[str, Any], message: str, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        step_count(planned(model_folder, peft=peft), tmp_path)
