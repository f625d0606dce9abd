"""Ranks and sharded parameters: what a computation on several processes has to know, in this one place."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

from trl_attribution.errors import AttributionError

T = TypeVar("T")

# Ranks wait for one another where their shares take unlike times; a rank that dies is noticed at once all the same,
# by its closed connections and by the launcher.
_PATIENCE = timedelta(days=7)
_LAST_PATIENCE = timedelta(seconds=10)
_MAIN_ENDS = "trl_attribution main rank ends"


class RankError(AttributionError):
    """Another rank failed, or this one did and the main rank says so: nothing to be told here."""


class OutOfStepError(AttributionError):
    """This rank failed amid a computation of all ranks together: it has to end, the others cannot be asked."""


@dataclass(frozen=True)
class Ranks:
    """The processes of one run, seen from one of them.

    Every method but ``is_main`` is a collective: all ranks have to call it, in the same order. With one rank all of
    them return at once.
    """

    rank: int
    world: int

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that merges, scores and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self.gather(None)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any rank; the same answer on all of them."""
        return any(self.gather(bool(flag)))

    def broadcast(self, value: T) -> T:
        """The main rank's ``value``, plain data such as JSON holds, on every rank."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, plain data such as JSON holds, in the order of ranks, on every rank."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make an error on one rank an error on all; ranks come out of the block together.

        Inside, nothing that all ranks have to do may follow what may fail on some. The main rank raises its own error
        or names the ranks that failed; the others raise their own, or :class:`RankError` where the main rank tells.

        Raises:
            AttributionError: on the main rank, where another one failed.
            RankError: on the others.
        """
        if self.world == 1:
            yield
            return
        try:
            yield
        except OutOfStepError:
            raise
        except Exception as error:
            self._conclude(error)
            raise
        self._conclude(None)

    def _conclude(self, error: Exception | None) -> None:
        mine = None
        if isinstance(error, RankError):
            error = None  # the rank that failed says why
        if error is not None:
            mine = str(error) if isinstance(error, AttributionError) else f"{type(error).__name__}: {error}"
        messages = {rank: message for rank, message in enumerate(self.gather(mine)) if message is not None}
        if not messages or (error is not None and (self.is_main or not isinstance(error, AttributionError))):
            return
        if self.is_main:
            rank, message = next(iter(messages.items()))
            raise AttributionError(f"{len(messages)} of {self.world} ranks failed. Rank {rank}: {message}")
        raise RankError("another rank failed, or the main rank reports the error of this one") from error


ALONE = Ranks(0, 1)
"""A process that shares nothing with another."""


def current_ranks() -> Ranks:
    """The ranks of this run. A process group that a launcher asks for is started if nobody has done so yet.

    A process without a launcher (``torchrun``, ``accelerate launch``, ``deepspeed``) is the only rank.

    Raises:
        AttributionError: the launcher's processes find no way to talk to one another.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    world = int(os.environ.get("WORLD_SIZE", "1"))
    # One process that is to hold a model in pieces (and most of them in the host's memory) needs a group as well.
    in_pieces = launch_flag("ACCELERATE_USE_DEEPSPEED") or launch_flag("ACCELERATE_USE_FSDP")
    if world == 1 and not (in_pieces and "LOCAL_RANK" in os.environ):
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu(), timeout=_PATIENCE)
    if state.num_processes != world:
        raise AttributionError(
            f"a launcher started {world} processes, but accelerate sees {state.num_processes}: no backend for "
            f"{state.device}. Run on CUDA, or on CPU with `accelerate launch --cpu`."
        )
    return Ranks(state.process_index, state.num_processes)


def working_device() -> torch.device:
    """The device that this rank computes on, wherever parameters may lie."""
    import torch

    accelerator = _accelerator()
    if on_cpu() or accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))


def on_cpu() -> bool:
    """Whether a launcher was asked for the CPU, or there is no device that ranks could run on."""
    device = _accelerator()
    return launch_flag("ACCELERATE_USE_CPU") or device is None or device.type == "mps"


def _accelerator() -> torch.device | None:
    """The kind of accelerator that this machine has; a build of torch for one may run where there is none."""
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def launch_flag(name: str) -> bool:
    """Whether accelerate's launcher has set the environment variable ``name`` to true."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "t", "on")


def leave_ranks() -> None:
    """End the process group, if there is one; at the very end of a process that a launcher started."""
    if _in_group():
        sys.modules["torch.distributed"].destroy_process_group()


def _in_group() -> bool:
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized()


def end_rank(status: int, *, after_main: bool = False) -> None:
    """End this process with ``status`` where it is one of a process group; returns where there is none.

    At once: while the interpreter shuts down, threads of the group may still come back to it and abort the process, so
    that what ended as it should would look like a crash.

    Args:
        status: of the process.
        after_main: let the main rank come here first, which has to say why all of them end: a launcher that misses
            one process ends the others where they are.
    """
    if not _in_group():
        return
    import torch.distributed as dist

    store = dist.distributed_c10d._get_default_store()  # noqa: SLF001  # no other way to wait with a limit on NCCL
    with suppress(RuntimeError):  # the main rank is gone, or hangs
        if dist.get_rank() == 0:
            store.set(_MAIN_ENDS, "")
        elif after_main:
            store.wait([_MAIN_ENDS], _LAST_PATIENCE)
    leave_ranks()
    atexit._run_exitfuncs()  # noqa: SLF001  # temporary folders go
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Around work amid a training run, which goes on with the random numbers that it would have drawn."""
    import torch

    device = working_device()
    with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
        yield


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether ranks hold pieces of the model's parameters (ZeRO-3, FSDP), so that they must run it in step."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in model.modules()) or any(
        hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


@contextmanager
def root_gathered(model: torch.nn.Module) -> Iterator[None]:
    """Around passes through a part of ``model``: with FSDP2, what only a call of the whole would gather is gathered.

    A collective; nothing where ``model`` is not the outermost module of FSDP2.
    """
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def numel(parameter: Tensor) -> int:
    """Elements of the whole of ``parameter``, of which this rank may hold a piece."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


@contextmanager
def full_parameter(parameter: Tensor) -> Iterator[Tensor]:
    """The whole of ``parameter``, to be read inside the block; where it is sharded, all ranks have to come here."""
    from torch.distributed.tensor import DTensor

    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter
    elif isinstance(parameter, DTensor):
        yield parameter.full_tensor()
    else:
        yield parameter
