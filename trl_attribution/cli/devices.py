"""``--devices``: the same command on several devices of this machine, a process each, started by torch's launcher."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid

import typer

from trl_attribution.errors import AttributionError, SettingsError


def start_ranks(devices: int, device: str, alone: str | None) -> None:
    """Run this command once a device and end with its exit code; returns in those processes, and where one is enough.

    Args:
        devices: how many.
        device: the model's, as it was asked for.
        alone: an option that was given and needs no more than one process.

    Raises:
        SettingsError: this contradicts what else was asked for, or the machine has fewer devices.
        AttributionError: a process was killed, which ends the others.
        Exit: all have ended.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started not in (1, devices):
        raise SettingsError(f"--devices {devices}: a launcher has started {started} processes; leave it out")
    if alone is not None:
        raise SettingsError(f"--devices: {alone} runs on one process; leave it out")
    if ":" in device:
        raise SettingsError(f"--devices: --device {device} is one of them; leave one of the two out")
    if devices == started:
        return
    import torch

    there = torch.accelerator.device_count()
    if there and devices > there:  # without any, processes share the CPU
        raise SettingsError(f"--devices {devices}: this machine has {there}; give at most as many")
    _launch(devices)
    raise typer.Exit


def idle_devices(device: str) -> str:
    """What to say where a machine has devices that nobody has asked for; empty elsewhere.

    Args:
        device: the model's, as it was asked for.
    """
    import torch

    there = torch.accelerator.device_count()
    if there < 2 or device != "auto" or "WORLD_SIZE" in os.environ:
        return ""
    return f" on one of {there} devices; --devices {there} takes all"


def _launch(devices: int) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What goes wrong in a process it says itself; the launcher would put a table and a traceback below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "trl_attribution.cli", *sys.argv[1:])
        except SignalException as error:
            raise typer.Exit(128 + error.sigval) from None
        except ChildFailedError as error:
            _, first = error.get_first_failure()
            if first.exitcode < 0:
                raise AttributionError(
                    f"process {first.local_rank} of {devices} was ended by signal {-first.exitcode} (9: often for want "
                    "of memory). Run the same again: it goes on where it was."
                ) from None
            raise typer.Exit(first.exitcode) from None
