"""Runs ``trl-attribution`` as often as tests like: through a server, because its imports take longer than its work."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("trl-attribution", "python")
# Programs installed beside this Python, such as the real trl-attribution.
INSTALLED = Path(sys.executable).parent


@dataclass(frozen=True)
class Commands:
    """The programs in ``folder``; what they load of data goes to the folder ``cache``."""

    folder: Path
    cache: Path

    @property
    def settings(self) -> dict[str, str]:
        """The variables that a caller has to set."""
        return {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}

    @property
    def environment(self) -> dict[str, str]:
        """For a process that calls them by name; other programs are those installed beside this Python."""
        path = os.pathsep.join((str(self.folder), str(INSTALLED), os.environ["PATH"]))
        return {**os.environ, **self.settings, "PATH": path}

    @property
    def python(self) -> str:
        return str(self.folder / "python")

    def run(self, folder: Path, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a program in ``folder`` with ``more`` in its environment; its output is text."""
        environment = {**self.environment, **more}
        return subprocess.run(
            list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True, timeout=240
        )


@contextmanager
def serving(python: Path | None = None) -> Iterator[Commands]:
    """The programs, for as long as the block lasts; what they have left running then is killed.

    ``python`` is the interpreter of an environment in which the package is installed, without the checkout.
    """
    server_of = [sys.executable, "-m", "tests.command_server"]
    if python is not None:  # not even this folder is looked into
        server_of = [str(python), "-P", str(ROOT / "tests" / "command_server.py")]
    with TemporaryDirectory(prefix="commands-") as name:
        programs = Commands(Path(name) / "bin", Path(name) / "datasets")
        address = Path(name) / "socket"
        _write_programs(programs.folder, address)
        with socket.socket(socket.AF_UNIX) as listener, (Path(name) / "log").open("w") as log:
            listener.bind(str(address))
            listener.listen()
            server = subprocess.Popen(
                [*server_of, str(listener.fileno())],
                cwd=ROOT,
                env={name: value for name, value in programs.environment.items() if name != "PYTHONPATH" or not python},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        try:
            yield programs
        finally:
            server.communicate()


def _write_programs(folder: Path, address: Path) -> None:
    folder.mkdir()
    client = shlex.join([sys.executable, "-IS", str(ROOT / "tests" / "command_client.py"), str(address)])
    for name in PROGRAMS:
        (folder / name).write_text(f'#!/bin/sh\nexec {client} {name} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
