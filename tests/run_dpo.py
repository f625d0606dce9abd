"""A run under audit, to be started by a launcher: ``python tests/run_dpo.py '{"model": ..., "folder": ...}'``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests.callbacks.test_callback import losses
from tests.training import LAYERS, make_trainer, text_rows, train
from trl_attribution import ProbeRegistry
from trl_attribution.callbacks import AttributionCallback
from trl_attribution.errors import AttributionError
from trl_attribution.models.sharding import asked_sharding
from trl_attribution.utils import shared_storage
from trl_attribution.utils.distributed import full_parameter, is_sharded


def prepared(asked: dict[str, Any]) -> Any:
    """The trainer, with the callback unless it is to train without."""
    folder, model = Path(asked["folder"]), Path(asked["model"])
    trainer_arguments: dict[str, Any] = {}
    if asked.get("adapter"):
        from peft import LoraConfig

        is_new = "rollouts" in asked  # with beta=0, GRPO keeps no copy of one that does something from the start
        how: dict[str, Any] = dict(target_modules=["q_proj", "v_proj"], init_lora_weights=is_new)
        trainer_arguments["peft_config"] = LoraConfig(r=4, **how)
    # From the disk: for one in memory each process has a cache of its own, and TRL's precompute pass shares one.
    dataset = Dataset.load_from_disk(str(folder / "data"))
    settings: dict[str, Any] = dict(
        probes=ProbeRegistry(asked["probes"]).load_all() if "probes" in asked else None,
        layers=LAYERS,
        vector_dtype="float32",
        output_dir=folder / asked.get("output", "audit").format(**os.environ),
        **asked.get("callback", {}),
    )
    if asked.get("kind") == "reward":  # whose trainer changes its texts
        settings["dataset"] = text_rows(len(dataset))
    if asked.get("behaviors"):
        settings["behaviors"] = folder / asked["behaviors"]
    alone = AttributionCallback(dataset=text_rows(len(dataset)), **settings) if asked.get("alone") else None
    if alone is not None:
        trainer_arguments["callbacks"] = [alone]
    if "rollouts" in asked:
        from tests.callbacks.test_callback_rollouts import make_trainer as make_rollout_trainer

        policy = trained_before(model) if asked.get("trained_before") else None
        more = {"trainer": {} if policy else trainer_arguments, "policy": policy, **asked.get("settings", {})}
        trainer = make_rollout_trainer(model, folder, asked["rollouts"], **more)
    else:
        kind = asked.get("kind", "dpo")
        trainer = make_trainer(
            model, folder, dataset, kind=kind, trainer=trainer_arguments, **asked.get("settings", {})
        )
    if alone is None and asked.get("audited", True):
        trainer.add_callback(AttributionCallback(trainer, **settings))
    if "die_at" in asked:
        from tests.callbacks.test_callback import Interrupt

        rank = trainer.accelerator.process_index
        if rank == asked.get("die_on", rank):
            trainer.add_callback(Interrupt(asked["die_at"], RuntimeError(f"rank {rank} was told to die")))
    return trainer


def trained_before(model: Path) -> Any:
    """The model with an adapter that does something already."""
    from peft import LoraConfig, get_peft_model

    how: dict[str, Any] = dict(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), LoraConfig(r=4, **how))


def outcome(trainer: Any) -> tuple[list[Any], list[torch.Tensor]]:
    """Losses and whole weights after training."""
    weights = []
    for parameter in trainer.model.parameters():
        with full_parameter(parameter) as whole:
            weights.append(whole.detach().clone())
    return losses(trainer), weights


def shard_on_cpu() -> None:
    """Let accelerate shard by FSDP on a CPU too: by itself it does so on accelerators alone, and takes DDP silently.

    It can go once ``AcceleratorState`` takes an ``fsdp_plugin`` for processes on CPUs (accelerate 1.x does not).
    """
    begin = AcceleratorState.__init__

    def begin_sharded(self: AcceleratorState, *further: Any, fsdp_plugin: Any = None, **more: Any) -> None:
        begin(self, *further, fsdp_plugin=fsdp_plugin, **more)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin_sharded


def main(asked: dict[str, Any]) -> None:
    """Train as ``asked``; before that, in these same processes, what has to be ``refused``."""
    for change in asked.get("refused", []):
        trainer = prepared({**asked, **change})
        try:
            train(trainer)
        except AttributionError as error:
            # Into a file of this rank's own: on one terminal the ranks' lines would run into one another.
            with (Path(asked["folder"]) / f"refused-{trainer.accelerator.process_index}.txt").open("a") as file:
                file.write(f"step {trainer.state.global_step}: {' '.join(str(error).split())}\n")
        else:
            raise AssertionError(f"this was to be refused: {change}")
    trainer = prepared(asked)
    train(trainer, resume_from_checkpoint=asked.get("resume"))
    assert is_sharded(trainer.model) == (asked_sharding() is not None)
    if asked.get("compared"):
        found, weights = outcome(trainer)
        alone = prepared({**asked, "audited": False})
        train(alone)
        expected, others = outcome(alone)
        assert found == expected and all(map(torch.equal, weights, others)), (
            "training is not the same with the callback"
        )
    if trainer.accelerator.is_main_process:
        (Path(asked["folder"]) / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    shard_on_cpu()
    shared_storage.PATIENCE = 2.0  # one disk here: what does not show up at once never will
    main(json.loads(sys.argv[1]))
