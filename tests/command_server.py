"""Run as ``python -m tests.command_server NUMBER``: runs commands in forked children, which find all imported.

``tests/command_client.py`` asks for them through the listening socket with that file number. A command is a process of
its own with the caller's files, folder and environment; only the import of PyTorch, transformers and TRL, which takes
longer than what most commands do, lies before the fork. This process runs no operation of PyTorch: threads do not
survive a fork. It ends, and takes what it has started with it, when its standard input ends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import importlib.metadata
import json
import os
import pkgutil
import re
import runpy
import select
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy
import torch
import typer.main
import typer.testing

import trl_attribution

# What commands, trainers and the tiny models load on first use.
LOADED_LATE = (
    "accelerate.data_loader",
    "datasets.packaged_modules.json.json",
    "peft",
    "pyarrow.dataset",
    "pyarrow.json",
    "pyarrow.parquet",
    "rich.console",
    "safetensors.torch",
    "scipy.io",
    "scipy.stats",
    "sklearn.linear_model",
    "torch.utils.data",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "trl.trainer.dpo_trainer",
)
# Python and packages look at these when they start, which is over when a command comes.
READ_AT_START = re.compile(r"HF_|OMP_|TRANSFORMERS_|PYTHON(?!PATH$)[A-Z]")


@dataclass(frozen=True)
class Command:
    """What a client asks for."""

    words: list[str]
    """``trl-attribution`` or ``python``, and its arguments."""
    folder: str
    environment: dict[str, str]

    def run(self) -> None:
        """Do in this process what the program does, up to the ``SystemExit`` that it may end with."""
        refuse_other_imports(self.environment)
        numpy.random.seed()  # no two processes start alike
        torch.seed()
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        sys.modules["__main__"] = types.ModuleType("__main__")
        # The server's own were made when other files were behind them.
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
        if self.words[0] == "trl-attribution":
            from trl_attribution.cli import main

            sys.argv, sys.path[0] = self.words, str(Path(sys.executable).parent)
            main()
        else:
            python(self.words[1:], self.folder)


def python(arguments: list[str], folder: str) -> None:
    """Do what ``python`` with these arguments does in ``folder``."""
    match arguments:
        case ["-u", *rest]:
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
            python(rest, folder)
        case ["-c", code, *rest]:
            sys.argv, sys.path[0] = ["-c", *rest], ""
            exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
        case ["-"]:
            sys.argv, sys.path[0] = ["-"], ""
            exec(compile(open(0, closefd=False).read(), "<stdin>", "exec"), vars(sys.modules["__main__"]))  # noqa: SIM115
        case ["-m", module, *rest]:
            sys.argv, sys.path[0] = [module, *rest], folder
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [script, *rest] if not script.startswith("-"):
            sys.argv, sys.path[0] = [script, *rest], str(Path(script).resolve().parent)
            runpy.run_path(script, run_name="__main__")
        case _:
            raise SystemExit(f"the command server does not know: python {arguments}")


def refuse_other_imports(environment: Mapping[str, str]) -> None:
    """Raise ``SystemExit`` where a fresh process would have imported under other settings than this one has."""
    names = filter(READ_AT_START.match, {*environment, *os.environ})
    differ = {name: environment.get(name) for name in names if environment.get(name) != os.environ.get(name)}
    if differ:
        raise SystemExit(f"the command server has imported under other settings than {differ}")


def end_with(work: Callable[[], None]) -> NoReturn:
    """End this process after ``work`` as Python does, but leave the modules: taking them down costs 0.3 s."""
    status = 0
    try:
        work()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if not isinstance(ended.code, int | None):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Server:
    """Forks a child for each request and tells the client how it ended."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.running: dict[int, socket.socket] = {}

    def serve(self) -> Command:
        """Return in the child of each request; the process that called this never comes back."""
        woken, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
        signal.set_wakeup_fd(waker)
        while True:
            clients = [client.fileno() for client in self.running.values()]
            ready, _, _ = select.select([self.listener.fileno(), woken, 0, *clients], [], [])
            if 0 in ready:
                os.killpg(os.getpgrp(), signal.SIGKILL)
            if woken in ready:
                os.read(woken, 512)
                self._tell_ends()
            for child, client in self.running.items():
                if client.fileno() in ready:  # it says nothing more: it was killed
                    os.kill(child, signal.SIGKILL)
            if self.listener.fileno() in ready and (command := self._fork()):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return command

    def _tell_ends(self) -> None:
        for child, status in ended_children():
            with self.running.pop(child) as client, contextlib.suppress(OSError):
                client.sendall(str(os.waitstatus_to_exitcode(status)).encode())

    def _fork(self) -> Command | None:
        """The next request, in a child that has the client's files; nothing in this process."""
        client, _ = self.listener.accept()
        _, files, _, _ = socket.recv_fds(client, 1, 3)
        with client.makefile("rb") as stream:
            command = Command(**json.loads(stream.readline()))
        child = os.fork()
        if child:
            self.running[child] = client
        else:
            for mine in (self.listener, client, *self.running.values()):
                mine.close()
            for target, file in enumerate(files):
                os.dup2(file, target)
        for file in files:
            os.close(file)
        return None if child else command


def ended_children() -> Iterator[tuple[int, int]]:
    """Process and wait status of each child that has ended and was not waited for."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        yield child, status


def spare() -> None:
    """Spare this process, and its forked children, what takes long each time and is no test's subject."""
    # Typer builds all commands at each call of one.
    typer.main.get_command = typer.testing._get_command = functools.cache(typer.main.get_command)
    # accelerate reads the metadata of packages 40 times for each trainer.
    importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)
    # No test cuts the power, so nothing has to wait for the disk. Both refuse what is no open file.
    os.fsync = os.fstat  # type: ignore[assignment]


def load() -> None:
    """Import all that commands import, and make what each of them would make anew."""
    for module in pkgutil.walk_packages(trl_attribution.__path__, "trl_attribution."):
        if not module.name.endswith((".__main__", ".bergson_child")):
            importlib.import_module(module.name)
    for name in LOADED_LATE:
        importlib.import_module(name)
    spare()
    typer.main.get_command(importlib.import_module("trl_attribution.cli").app)
    environment = importlib.import_module("trl_attribution.report.page").page_template().environment
    for template in environment.list_templates(["j2"]):
        environment.get_template(template)
    importlib.import_module("trl_attribution.utils.compat").check_versions()
    with contextlib.suppress(ImportError):  # before transformers 5 no model is converted while it loads
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")


def main(listener: int) -> None:
    load()
    gc.collect()
    gc.freeze()  # collecting in a child would copy the memory that it shares with this process
    end_with(Server(socket.socket(fileno=listener)).serve().run)


if __name__ == "__main__":
    main(int(sys.argv[1]))
