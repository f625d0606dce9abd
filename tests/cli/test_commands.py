"""Commands of the server behave as processes of their own (tests/command_server.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import Commands


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('bad')", 1),
        ("1 / 0", 1),
        ("import os; os.kill(os.getpid(), 15)", -15),
    ],
)
def test_a_command_ends_as_it_would_by_itself(code: str, status: int, commands: Commands, tmp_path: Path) -> None:
    assert commands.run(tmp_path, "python", "-c", code).returncode == status


def test_a_command_has_the_callers_folder_environment_arguments_and_files(commands: Commands, tmp_path: Path) -> None:
    told = "import os, sys; print(os.getcwd(), os.environ['NAMED'], sys.argv, sys.stdin.read(), 'PATH' in os.environ)"
    script = f'echo "from a pipe" | python -c "{told}" a "b c" | cat >&2'
    done = commands.run(tmp_path, "bash", "-c", script, NAMED="x")
    assert (done.stdout, done.stderr) == ("", f"{tmp_path} x ['-c', 'a', 'b c'] from a pipe\n True\n")


def test_commands_run_side_by_side_and_draw_different_random_numbers(commands: Commands, tmp_path: Path) -> None:
    # Each ends when it has read what the other wrote.
    code = "import torch, numpy; print(torch.rand(1), numpy.random.rand(), flush=True); input()"
    one, other = (f"python -c '{code}' < {source} | tee {target}" for source, target in (("a", "b"), ("b", "a")))
    done = commands.run(tmp_path, "bash", "-c", f"mkfifo a b; {one} & {other}; wait")
    assert done.returncode == 0 and len({*done.stdout.splitlines()}) == 2, done.stderr


def test_torch_computes_in_a_command_on_several_threads_too(commands: Commands, tmp_path: Path) -> None:
    script = "import torch; torch.set_num_threads(2); a = torch.ones(600, 600); print((a @ a).softmax(0).sum().item())"
    assert float(commands.run(tmp_path, "python", "-c", script).stdout) == pytest.approx(600)


def test_a_command_dies_with_the_process_that_stands_for_it(commands: Commands, tmp_path: Path) -> None:
    script = "import os, time; open('pid', 'w').write(f'{os.getpid()}\\n'); time.sleep(100)"
    standing = subprocess.Popen(["python", "-c", script], cwd=tmp_path, env=commands.environment)
    pid = tmp_path / "pid"
    wait_for(lambda: pid.exists() and pid.read_text().endswith("\n"))
    standing.send_signal(signal.SIGKILL)
    standing.wait()
    wait_for(lambda: not alive(int(pid.read_text())))


def test_settings_that_came_too_late_for_the_imports_are_refused(commands: Commands, tmp_path: Path) -> None:
    done = commands.run(tmp_path, "trl-attribution", "--help", HF_HUB_OFFLINE="0")
    assert done.returncode == 1 and "other settings than {'HF_HUB_OFFLINE': '0'}" in done.stderr


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
