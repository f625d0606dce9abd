"""Children that are killed at a moment or at a line; forked, so that an attempt takes milliseconds and no import."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.commands import Commands

REPOSITORY = Path(__file__).parents[1]

Work = Callable[[], object]
Watched = Callable[[FrameType], bool]
"""Whether the lines of a frame count."""


def report_of(programs: Commands, module: str, folder: Path, kills: int) -> dict[str, Any]:
    """What ``python -m module folder kills`` prints, in a process of its own with one thread."""
    done = programs.run(REPOSITORY, "python", "-m", module, folder, str(kills))
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def start(work: Work) -> int:
    """Run ``work`` in a forked child, whose process id comes back."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:  # whatever happens, even to the report of it: a child that goes on would run all that follows once more
        os._exit(code)


def was_killed(child: int) -> bool:
    """Wait for ``child``; whether it was killed. One that fails by itself ends this process too."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit("a run after a kill failed")
    return False


def on_lines(work: Work, watched: Watched, on_line: Callable[[int], None]) -> None:
    """Run ``work``, calling ``on_line`` with the running number of each watched line that it executes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if not watched(frame):
            return None
        if event == "line":
            count += 1
            on_line(count)
        return trace

    sys.settrace(trace)
    work()
    sys.settrace(None)


def killed_at_line(work: Work, watched: Watched, line: int) -> bool:
    """Run ``work`` in a child that kills itself (SIGKILL) at the watched line of that number; whether it got there."""

    def kill(count: int) -> None:
        if count == line:
            os.kill(os.getpid(), signal.SIGKILL)

    return was_killed(start(lambda: on_lines(work, watched, kill)))
