"""Load a model of which every rank holds only a piece: ZeRO-3 or FSDP2, as the launcher was asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trl_attribution.errors import SettingsError
from trl_attribution.utils.distributed import is_sharded, launch_flag, on_cpu

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Sharding = Literal["zero3", "fsdp2"]
FSDP1 = "fsdp_version: 1 is not supported; set fsdp_version: 2 in the config of accelerate"
"""It flattens parameters, so that nobody can tell which model they are of."""


@dataclass(frozen=True)
class ShardedModel:
    """A model in pieces, ready for inference by all ranks in step."""

    model: PreTrainedModel
    engine: object
    """What has to live as long as the model: DeepSpeed's engine takes its hooks along when it goes."""


def asked_sharding() -> Sharding | None:
    """What the launch config asks for; None where every rank holds the whole model (DDP, ZeRO-1, ZeRO-2).

    Raises:
        SettingsError: FSDP of version 1.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return None
    if launch_flag("ACCELERATE_USE_DEEPSPEED"):
        return "zero3" if _plugin_config()["zero_optimization"]["stage"] == 3 else None
    if launch_flag("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise SettingsError(FSDP1)
        return "fsdp2"
    return None


def sharding_of(model: torch.nn.Module) -> Sharding | None:
    """How ranks share ``model``; None where each has the whole of it."""
    if not is_sharded(model):
        return None
    return "zero3" if any(hasattr(parameter, "ds_id") for parameter in model.parameters()) else "fsdp2"


def load_sharded(
    load: Callable[[], PreTrainedModel],
    sharding: Sharding,
    dtype: torch.dtype,
    device: torch.device,
    with_head: bool = False,
) -> ShardedModel:
    """Call ``load`` (``from_pretrained``) so that ranks end up with pieces of the model; all ranks have to.

    The decoder alone is made ready to run, unless the model is to write (``with_head``).
    """
    return _zero3(load, dtype, with_head) if sharding == "zero3" else _fsdp2(load, device, with_head)


@contextmanager
def whole_on_this_rank() -> Iterator[None]:
    """Around a load amid a run whose ranks share a model: this rank loads the whole of another one by itself."""
    from accelerate.utils import patch_environment
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    with _trainer_config_kept(), patch_environment(FSDP_CPU_RAM_EFFICIENT_LOADING="false"):
        unset_hf_deepspeed_config()
        yield


def _zero3(load: Callable[[], PreTrainedModel], dtype: torch.dtype, with_head: bool) -> ShardedModel:
    import torch
    from transformers.integrations import HfDeepSpeedConfig

    asked_zero = _plugin_config()["zero_optimization"]
    zero = {key: value for key, value in asked_zero.items() if key.startswith("offload_param")}
    config: dict[str, Any] = {
        "zero_optimization": {"stage": 3, **zero},
        # "auto" is worked out wrongly where there is no trainer.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
    }
    with _deepspeed(), _trainer_config_kept():
        asked = HfDeepSpeedConfig(config)  # from_pretrained shards for as long as this is alive
        model = load()
        del asked
    hidden_size = model.config.get_text_config().hidden_size
    config["zero_optimization"] |= {
        "reduce_bucket_size": hidden_size * hidden_size,
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size * hidden_size),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    with _deepspeed() as deepspeed:
        engine, *_ = deepspeed.initialize(model=model if with_head else model.base_model, config=config)
    return ShardedModel(model, engine)


def _fsdp2(load: Callable[[], PreTrainedModel], device: torch.device, with_head: bool) -> ShardedModel:
    import torch
    from accelerate.utils import patch_environment
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    with patch_environment(FSDP_CPU_RAM_EFFICIENT_LOADING="false"):  # it would leave the other ranks without weights
        model = load()
    decoder: torch.nn.Module = model.base_model
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = CPUOffloadPolicy() if launch_flag("FSDP_OFFLOAD_PARAMS") else OffloadPolicy()
    # Lists of equal modules are where transformers keep their blocks; each is gathered when its turn comes.
    for blocks in [module for module in decoder.modules() if isinstance(module, torch.nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh, offload_policy=policy)
    root = model if with_head else decoder
    fully_shard(root, mesh=mesh, offload_policy=policy)
    with torch.no_grad():  # whatever runs first counts as the root, and our passes may begin below it
        root(torch.zeros(1, 1, dtype=torch.long, device=device))
    return ShardedModel(model, None)


def _plugin_config() -> dict[str, Any]:
    """DeepSpeed's config as accelerate understands the launch config, or as a trainer under way has it."""
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import DeepSpeedPlugin

    running = AcceleratorState().deepspeed_plugin if is_initialized() else None
    with _deepspeed():
        config: dict[str, Any] = (running or DeepSpeedPlugin()).deepspeed_config
    return config


@contextmanager
def _trainer_config_kept() -> Iterator[None]:
    """Transformers knows one config of DeepSpeed at a time: a trainer's comes back afterwards."""
    from transformers.integrations import deepspeed as integration

    running = integration._hf_deepspeed_config_weak_ref  # noqa: SLF001  # its setter takes no reference back
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = running  # noqa: SLF001


@contextmanager
def _deepspeed() -> Iterator[Any]:
    """DeepSpeed, on the device that is asked for, and without its words on stdout, which is for results."""
    if on_cpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with redirect_stdout(sys.stderr):
        import deepspeed

        yield deepspeed
