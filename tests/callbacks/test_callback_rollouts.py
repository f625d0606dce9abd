"""GRPO and RLOO runs under audit: groups are read as they are generated, and nothing is trained otherwise for it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.callbacks.test_callback import Interrupt, hooks_on, losses, training_of
from tests.callbacks.test_callback_distributed import BUILDS, run
from tests.commands import Commands
from tests.training import LAYERS, arguments, least_cosine, probe_on, train
from trl_attribution import DataAuditor, Manifest, VectorStore
from trl_attribution.audit.folder import Audit
from trl_attribution.callbacks import AttributionCallback, rollout_session
from trl_attribution.callbacks.capture import CaptureError
from trl_attribution.errors import SettingsError
from trl_attribution.pairs import Encoding, PairReader, Reading

ADAPTER = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])}
KINDS: dict[str, tuple[Any, Any]] = {"GRPO": (GRPOTrainer, GRPOConfig), "RLOO": (RLOOTrainer, RLOOConfig)}
# name -> kind, arguments of the trainer, settings, and where M0 is
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "GRPO": ("GRPO", {}, {}, "loaded copy"),
    "GRPO, several iterations": ("GRPO", {}, {"num_iterations": 2, "gradient_accumulation_steps": 2}, "loaded copy"),
    "GRPO, beta": ("GRPO", {}, {"beta": 0.1}, "reference model"),
    "GRPO, moving reference": (
        "GRPO",
        {},
        {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1},
        "loaded copy",
    ),
    "GRPO, adapter": ("GRPO", ADAPTER, {}, "disabled adapter"),
    "GRPO, adapter, beta": ("GRPO", ADAPTER, {"beta": 0.1}, "disabled adapter"),
    "RLOO": ("RLOO", {}, {}, "reference model"),
    "RLOO, adapter": ("RLOO", ADAPTER, {}, "disabled adapter"),
}


@pytest.fixture(scope="module")
def model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with so many end-of-turn tokens that most completions end, each after its own length."""
    folder = tmp_path_factory.mktemp("ending") / "model"
    shutil.copytree(model_folder, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": list(range(2, 512, 6))}))
    return folder


def prompts(count: int = 12, *, chat: bool = False) -> list[dict[str, Any]]:
    texts = [f"Tell me about number {number}." + " Be brief." * (number % 3) for number in range(count)]
    return [
        {"prompt": [{"role": "user", "content": text}] if chat else text, "source": "ab"[len(text) % 2]}
        for text in texts
    ]


def some_letters(completions: Sequence[Any], **_columns: Any) -> list[float]:
    """Alike for some groups, so that these teach nothing."""
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [float("e" in text) + float("in" in text) for text in texts]


def make_trainer(
    model: Path,
    folder: Path,
    kind: str = "GRPO",
    rows: Any = None,
    *,
    trainer: dict[str, Any] | None = None,
    policy: Any = None,
    **settings: Any,
) -> Any:
    chosen = dict(
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=8,
        learning_rate=1e-2,
        max_steps=4,
        logging_steps=1,
    )
    made, config = KINDS[kind]
    more = {"reward_funcs": some_letters, **(trainer or {})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made(
            policy or str(model),
            args=config(**arguments(folder, **{**chosen, **settings})),
            train_dataset=Dataset.from_list(prompts()) if rows is None else rows,
            processing_class=AutoTokenizer.from_pretrained(model),
            **more,
        )


def offline(model: Path, folder: Path, name: str = "offline") -> Audit:
    """The audit of what a run has generated, by itself."""
    auditor = DataAuditor(
        str(model),
        layers=LAYERS,
        dtype="float32",
        vector_dtype="float32",
        encoding=Encoding(None),
        reading=Reading(on_bad_row="skip"),
    )
    return auditor.audit(folder / "audit" / "rollouts.jsonl", folder / name)


def audited(model: Path, folder: Path, kind: str = "GRPO", **more: Any) -> AttributionCallback:
    trainer = make_trainer(model, folder, kind, **more)
    callback = AttributionCallback(trainer, layers=LAYERS, vector_dtype="float32", output_dir=folder / "audit")
    train(trainer, callback)
    return callback


def alike(completions: Sequence[Any], **_columns: Any) -> list[float]:
    return [0.5] * len(completions)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit" / "rollouts.jsonl").read_text().splitlines()]


# ---- vectors


@pytest.mark.parametrize("name", RUNS)
def test_vectors_equal_those_of_the_offline_audit_and_training_is_the_same_bits(
    name: str, model: Path, tmp_path: Path
) -> None:
    kind, more, settings, source = RUNS[name]
    alone = make_trainer(model, tmp_path, kind, trainer=more, **settings)
    train(alone)
    trainer = make_trainer(model, tmp_path, kind, trainer=more, **settings)
    callback = AttributionCallback(
        trainer, probes=[probe_on(model)], layers=LAYERS, vector_dtype="float32", output_dir=tmp_path / "audit"
    )
    train(trainer, callback)
    assert losses(trainer) == losses(alone) and len(losses(alone)) == 4
    for (parameter, mine), theirs in zip(trainer.model.named_parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), parameter
    assert hooks_on(trainer.model) == hooks_on(alone.model)
    assert "_generate_and_score_completions" not in vars(trainer)

    assert {len(row["completion_ids"]) for row in rows_of(tmp_path)} >= {1, 2, 8}
    assert callback.finished is not None
    found, expected = callback.finished.audit, offline(model, tmp_path)
    assert found.info.vectors.path == source
    assert found.info.model.digest == expected.info.model.digest
    assert least_cosine(found.store, expected.store) >= 0.99999
    assert len(found.index) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_are_read_as_the_trainer_samples_them(kind: str, model: Path, tmp_path: Path) -> None:
    callback = audited(model, tmp_path, kind, rows=Dataset.from_list(prompts(chat=True)), max_steps=2)
    assert callback.finished is not None
    rows = rows_of(tmp_path)
    assert {type(row["prompt"]) for row in rows} == {type(row["completion"]) for row in rows} == {list}
    assert least_cosine(callback.finished.audit.store, offline(model, tmp_path).store) >= 0.99999


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("config", "kind", "more", "settings"),
    [
        ("ddp", "GRPO", {}, {}),
        pytest.param("zero3", "GRPO", {"compared": True}, {"beta": 0.1, "gradient_checkpointing": False}, marks=BUILDS),
        (
            "fsdp2",
            "RLOO",
            {"compared": True, "adapter": True, "refused": [{"trained_before": True}]},
            {"gradient_checkpointing": False},
        ),
    ],
    ids=["ddp", "zero3", "fsdp2, adapter"],
)
def test_groups_that_straddle_processes_are_read_once(
    config: str,
    kind: str,
    more: dict[str, Any],
    settings: dict[str, Any],
    model: Path,
    tmp_path: Path,
    commands: Commands,
) -> None:
    steps = {"per_device_train_batch_size": 2, "max_steps": 5, "save_strategy": "steps", "save_steps": 3}
    refused = run(commands, model, tmp_path, config, rollouts=kind, settings={**steps, **settings}, **more)
    assert len(refused) == 2 * len(more.get("refused", []))
    assert all("it cannot be loaded anew" in line and "use DDP or ZeRO-2" in line for line in refused)
    rows = rows_of(tmp_path)
    assert [(row["step"], row["prompt"]) for row in rows[::4]] == [(row["step"], row["prompt"]) for row in rows[3::4]]
    assert [row["step"] for row in rows] == [step for step in range(1, 6) for _ in range(4)]
    found = training_of(tmp_path / "audit")
    assert (found["ranks"], found["rows"], found["never_seen"]) == (2, 5, 0)
    assert 0 < found["captured"] < 5  # so that there are passes which only one of the ranks has a group for, or none
    store = VectorStore.open(tmp_path / "audit" / "vectors")
    assert least_cosine(store, offline(model, tmp_path).store) >= 0.99999


# ---- every group is accounted for


def test_groups_without_a_contrast_are_counted_and_have_no_vector(model: Path, tmp_path: Path) -> None:
    callback = audited(model, tmp_path)
    assert callback.finished is not None
    groups: dict[tuple[int, int], list[float]] = {}
    for row in rows_of(tmp_path):
        groups.setdefault((row["step"], row["group"]), []).append(row["advantage"])
    assert {len(group) for group in groups.values()} == {4} and len(groups) == 4 * 2
    alike = sum(len(set(group)) == 1 for group in groups.values())
    found = training_of(tmp_path / "audit")
    assert 0 < alike < 8
    assert (found["rows"], found["captured"], found["unaudited"], found["never_seen"]) == (8, 8 - alike, alike, 0)
    assert callback.finished.audit.info.dataset.skipped == {"zero_variance": 4 * alike}


def test_generations_that_are_trained_on_again_and_evaluations_are_no_further_groups(
    model: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(
        model, tmp_path, num_iterations=2, trainer={"eval_dataset": Dataset.from_list(prompts(4))},
        eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4,
    )  # fmt: skip
    train(trainer, AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit"))
    assert any("eval_reward" in entry for entry in trainer.state.log_history)
    assert [row["step"] for row in rows_of(tmp_path)] == [1] * 8 + [3] * 8


def test_completions_that_are_masked_for_their_length_have_no_advantage(model: Path, tmp_path: Path) -> None:
    callback = audited(model, tmp_path, mask_truncated_completions=True)
    rows = rows_of(tmp_path)
    cut = [row for row in rows if row["completion_ids"][-1] not in range(2, 512, 6)]
    assert {len(row["completion_ids"]) for row in cut} == {8} and 0 < len(cut) < len(rows)
    assert {row["advantage"] for row in cut} == {0.0}
    assert callback.finished is not None
    assert least_cosine(callback.finished.audit.store, offline(model, tmp_path).store) >= 0.99999


def test_rewards_are_kept_beside_the_advantages(model: Path, tmp_path: Path) -> None:
    def length(completions: Sequence[str], **_columns: Any) -> list[float | None]:
        return [None if place % 3 == 0 else float(len(text)) for place, text in enumerate(completions)]

    audited(
        model, tmp_path, "RLOO", trainer={"reward_funcs": [some_letters, length]}, reward_weights=[1.0, 0.5],
        max_steps=2, beta=0.5,
    )  # fmt: skip
    for row in rows_of(tmp_path):
        given = row["reward/length"]
        assert row["reward/some_letters"] == some_letters([row["completion"]])[0]
        assert given in (None, float(len(row["completion"])))
        assert row["reward"] == pytest.approx(row["reward/some_letters"] + 0.5 * (given or 0))
    assert {row["source"] for row in rows_of(tmp_path)} <= {"a", "b"}


# ---- what the logs say


def pushes(folder: Path, store: VectorStore, direction: torch.Tensor) -> dict[int, float]:
    """By step, the mean of advantage times projection, from the vectors of the whole audit."""
    reader = PairReader(folder / "audit" / "rollouts.jsonl", Reading(on_bad_row="skip"))
    rows = rows_of(folder)
    vectors = dict(zip(store.pair_ids, store.layer(3), strict=True))
    found = dict.fromkeys((row["step"] for row in rows), 0.0)
    for pair in reader:
        advantages = torch.tensor([rows[place]["advantage"] for place in pair.all_rows])
        weight = (advantages - advantages.mean()).abs().sum() / 2
        found[rows[pair.row]["step"]] += float(weight * (vectors[pair.pair_id].float() @ direction / direction.norm()))
    return {step: total / sum(row["step"] == step for row in rows) for step, total in found.items()}


def test_the_logs_say_what_each_step_pushes_towards(model: Path, tmp_path: Path) -> None:
    probe = probe_on(model)
    trainer = make_trainer(model, tmp_path)
    callback = AttributionCallback(
        trainer, probes=[probe], score="response", flag_at=0.0, vector_dtype="float32", output_dir=tmp_path / "audit"
    )
    train(trainer, callback)
    assert callback.finished is not None and callback.finished.audit.scores is not None
    logged = {log["step"]: log["attribution/numbers/push"] for log in trainer.state.log_history if "reward" in log}
    expected = pushes(tmp_path, callback.finished.audit.store, probe.at(3))
    assert logged == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert any(expected.values())
    shares = [
        log["attribution/flagged_fraction"] for log in trainer.state.log_history if "attribution/numbers/mean" in log
    ]
    assert set(shares) <= {0.0, 0.5, 1.0} and max(shares) > 0


# ---- interrupted, resumed, refused


def test_a_killed_run_resumes_to_rollouts_and_vectors_of_each_step_once(model: Path, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    trainer = make_trainer(model, tmp_path, **settings)
    callback = AttributionCallback(trainer, layers=LAYERS, vector_dtype="float32", output_dir=tmp_path / "audit")
    with pytest.raises(RuntimeError, match="killed"):
        train(trainer, callback, Interrupt(3, RuntimeError("killed")))
    parts = sorted(path.name for path in (tmp_path / "audit" / "parts" / "rollouts").iterdir())
    assert parts == [f"000000{step}-000.jsonl" for step in (1, 2, 3)]
    assert "_generate_and_score_completions" not in vars(trainer)

    again = make_trainer(model, tmp_path, **settings)
    fresh = AttributionCallback(again, layers=LAYERS, vector_dtype="float32", output_dir=tmp_path / "audit")
    with pytest.raises(SettingsError, match="holds the rollouts of another run"):
        train(again, fresh)
    resumed = make_trainer(model, tmp_path, **settings)
    callback = AttributionCallback(resumed, layers=LAYERS, vector_dtype="float32", output_dir=tmp_path / "audit")
    train(resumed, callback, resume_from_checkpoint=True)
    assert [row["step"] for row in rows_of(tmp_path)] == [step for step in range(1, 6) for _ in range(8)]
    assert callback.finished is not None
    assert least_cosine(callback.finished.audit.store, offline(model, tmp_path).store) >= 0.99999
    assert not (tmp_path / "audit" / "parts").exists()


def test_groups_whose_vectors_were_lost_are_read_at_the_end(model: Path, tmp_path: Path) -> None:
    class Loses(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                assert callback._session is not None
                callback._session.recorder.forget()

    trainer = make_trainer(model, tmp_path)
    callback = AttributionCallback(trainer, layers=LAYERS, vector_dtype="float32", output_dir=tmp_path / "audit")
    train(trainer, callback, Loses())
    assert callback.finished is not None
    assert least_cosine(callback.finished.audit.store, offline(model, tmp_path).store) >= 0.99999


def test_an_m0_that_has_changed_while_training_is_no_m0(model: Path, tmp_path: Path) -> None:
    class Moves(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with torch.no_grad():
                trainer.ref_model.model.layers[0].mlp.down_proj.weight.mul_(1.5)

    for steps in (1, 2):  # seen at the first save: that of a checkpoint, or the one at the end
        folder = tmp_path / str(steps)
        trainer = make_trainer(model, folder, "RLOO", max_steps=2, save_strategy="steps", save_steps=steps)
        callback = AttributionCallback(trainer, layers=LAYERS, output_dir=folder / "audit")
        with pytest.raises(CaptureError, match="has changed while training"):
            train(trainer, callback, Moves())
        assert trainer.state.global_step == steps
        assert not (folder / "audit" / "audit.json").exists()


def test_the_weights_of_m0_are_read_once_in_a_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    really = rollout_session.fingerprint
    monkeypatch.setattr(
        rollout_session, "fingerprint", lambda *given: (reads.append(trainer.state.global_step), really(*given))[1]
    )
    trainer = make_trainer(model, tmp_path, "RLOO", max_steps=3, save_strategy="steps", save_steps=1)
    train(trainer, AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit"))
    assert reads == [3]


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "dataset": ({}, {"dataset": prompts(2)}, "what is trained on is generated in the run"),
    "skip": ({}, {"on_flag": "skip", "flag_at": 0.5}, "a group is trained on as it was generated"),
    "weights": ({}, {"weights": "weight"}, "only a DPOTrainer's pairs can be weighed, not GRPOTrainer's"),
    "names": ({"reward_funcs": [some_letters, some_letters]}, {}, "reward_funcs: two have one name"),
    "rollout_func": ({"rollout_func": print}, {}, "rollout_func: what it puts into a completion"),
    "adapter": ({"peft_config": LoraConfig(r=4, init_lora_weights=False)}, {}, "Set beta above 0, or merge"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_audited_is_refused_by_name_before_training(name: str, model: Path, tmp_path: Path) -> None:
    more, settings, message = REFUSED[name]
    trainer = make_trainer(model, tmp_path, trainer=more)
    with pytest.raises(SettingsError, match=message):
        AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit", **settings)


def test_tools_and_environments_are_refused(model: Path, tmp_path: Path) -> None:
    trainer = make_trainer(model, tmp_path)
    for name in ("tools", "environments"):
        setattr(trainer, name, [print])
        with pytest.raises(SettingsError, match="the model did not say them"):
            AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit")
        setattr(trainer, name, None)


def test_a_callback_without_the_trainer_is_told_to_have_it(model: Path, tmp_path: Path) -> None:
    callback = AttributionCallback(dataset=prompts(2), layers=LAYERS, output_dir=tmp_path / "audit")
    with pytest.raises(SettingsError, match=r"what a GRPOTrainer generates is seen through it alone"):
        make_trainer(model, tmp_path, trainer={"callbacks": [callback]})


def test_a_run_that_keeps_no_m0_and_cannot_load_it_again_is_refused(model: Path, tmp_path: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        policy.model.layers[0].mlp.down_proj.weight.mul_(2)
    trainer = make_trainer(model, tmp_path, policy=policy)
    with pytest.raises(SettingsError, match=r"its weights differ from M0's .* or set beta above 0"):
        train(trainer, AttributionCallback(trainer, layers=LAYERS, output_dir=tmp_path / "audit"))
    assert not (tmp_path / "audit").exists()


# ---- what comes of it


def test_a_stream_of_prompts_is_audited_and_decisions_change_the_rollouts(model: Path, tmp_path: Path) -> None:
    stream = Dataset.from_list(prompts()).to_iterable_dataset()
    trainer = make_trainer(model, tmp_path, rows=stream)
    callback = AttributionCallback(
        trainer, probes=[probe_on(model)], score="response", top_k=2, output_dir=tmp_path / "audit"
    )
    train(trainer, callback)
    assert callback.finished is not None and callback.finished.flagged is not None
    assert list(callback.finished.manifests) == ["filter"] and callback.finished.report is not None
    assert [layer.layer for layer in callback.finished.findings.drifts] == [1, 2, 3, 4]
    manifest, data = Manifest.load(tmp_path / "audit" / "manifest.filter.jsonl"), tmp_path / "audit" / "rollouts.jsonl"
    assert manifest.header.kind == "rollouts"
    kept = len(rows_of(tmp_path)) - 4 * len(manifest.decisions)
    manifest.apply_file(data, tmp_path / "kept.jsonl")
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == kept
    manifest.apply_file(data, tmp_path / "zeroed.jsonl", zero_advantages=True)
    zeroed = [json.loads(line)["advantage"] for line in (tmp_path / "zeroed.jsonl").read_text().splitlines()]
    assert len(zeroed) == len(rows_of(tmp_path)) and zeroed.count(0.0) >= 4 * len(manifest.decisions)
    assert 0 < len(manifest.decisions) <= 2


def test_a_run_in_which_no_group_teaches_anything_ends_well_and_says_so(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = audited(model, tmp_path, trainer={"reward_funcs": alike}, max_steps=1)
    assert callback.finished is None and "in every group all rewards were alike" in caplog.text
    assert {row["advantage"] for row in rows_of(tmp_path)} == {0.0}


# ---- online DPO


def online_trainer(model: Path, folder: Path, **more: Any) -> Any:
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    args = dict(per_device_train_batch_size=4, max_new_tokens=8, max_length=24, learning_rate=1e-2, max_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return OnlineDPOTrainer(
            AutoModelForCausalLM.from_pretrained(model),
            reward_funcs=some_letters,
            args=OnlineDPOConfig(**arguments(folder, **args, logging_steps=1, missing_eos_penalty=0.5)),
            train_dataset=Dataset.from_list(prompts()),
            processing_class=AutoTokenizer.from_pretrained(model),
            **more,
        )


@pytest.mark.parametrize("more", [{}, ADAPTER], ids=["full", "adapter"])
@pytest.mark.filterwarnings("ignore")
def test_the_pairs_of_an_online_run_are_audited_once_they_are_rewarded(
    more: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    alone = online_trainer(model, tmp_path, **more)
    alone.train()
    trainer = online_trainer(model, tmp_path, **more)
    methods = dict(vars(trainer))
    callback = AttributionCallback(
        trainer, probes=[probe_on(model)], layers=LAYERS, vector_dtype="float32", output_dir=tmp_path / "audit"
    )
    trainer.add_callback(callback)
    trainer.train()
    assert losses(trainer) == losses(alone) and len(losses(alone)) == 3
    assert sum("attribution/numbers/push" in log for log in trainer.state.log_history) == 3
    for (name, mine), theirs in zip(trainer.model.named_parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert not {"_forward", "_calculate_rewards_from_functions", "training_step"} & (vars(trainer).keys() - methods)
    assert callback.finished is not None
    rows = rows_of(tmp_path)
    assert len(rows) == 24 and {row["step"] for row in rows} == {1, 2, 3}
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first["prompt"], first["group"]) == (second["prompt"], second["group"])
        assert {first["advantage"], second["advantage"]} == {1.0, -1.0}
        assert (first["advantage"] > 0) == (first["reward"] >= second["reward"])
        assert len(first["prompt_ids"]) + len(first["completion_ids"]) <= 24
    assert {round(row["reward"] % 1, 1) for row in rows} == {0.0, 0.5}  # some had their penalty
    found = callback.finished.audit
    assert least_cosine(found.store, offline(model, tmp_path).store) >= 0.99999
    assert found.info.vectors.path == ("disabled adapter" if more else "reference model")
