"""Run as ``python -m tests.kill_audit FOLDER KILLS``: audits in forked children that are killed at chosen lines.

Each audit is killed (SIGKILL) at another line of the package's own code, spread over a whole run, and then run again
to its end. One more is killed over and over, a little later each time. Prints, as JSON, how many shards each kill
found. Forking from this process, which has the model and has started no thread, keeps an attempt short.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import trl_attribution
from tests.audit_cases import Row, auditor_of, pair_rows, tiny_loaded, tiny_probe
from trl_attribution.auditor import DataAuditor

PAIRS = 20
SHARD_SIZE = 3
PACKAGE = str(Path(trl_attribution.__file__).parent)


def rows() -> list[Row]:
    return [*pair_rows(PAIRS), *pair_rows(3)]


def in_child(work: Callable[[], object]) -> bool:
    """Run ``work`` in a forked child; whether it was killed. One that fails ends this process too."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            if code:
                sys.excepthook(*sys.exc_info())
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit("an audit after a kill failed")
    return False


def on_lines(work: Callable[[], object], on_line: Callable[[int], None]) -> None:
    """Run ``work``, calling ``on_line`` with the running number of each line of the package that it executes."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            count += 1
            on_line(count)
        return trace

    sys.settrace(trace)
    work()
    sys.settrace(None)


def count_lines(auditor: DataAuditor, folder: Path) -> tuple[int, int]:
    """Lines of a whole run, and how many of them have run when the first vector is to be computed."""
    now, computing = 0, 0

    def remember(count: int) -> None:
        nonlocal now
        now = count

    def on_progress(stage: str, done: int, _total: int) -> None:
        nonlocal computing
        computing = now if (stage, done) == ("vectors", 0) else computing

    def work() -> None:
        on_lines(lambda: auditor.audit(rows(), folder, on_progress=on_progress), remember)
        folder.with_suffix(".lines").write_text(json.dumps([computing, now]))

    in_child(work)
    first, last = json.loads(folder.with_suffix(".lines").read_text())
    return first, last


def killed_at(auditor: DataAuditor, folder: Path, line: int) -> bool:
    def kill(count: int) -> None:
        if count == line:
            os.kill(os.getpid(), signal.SIGKILL)

    return in_child(lambda: on_lines(lambda: auditor.audit(rows(), folder), kill))


def shards(folder: Path) -> int:
    return len(list(folder.glob("vectors/shards/*.safetensors")))


def main(root: Path, kills: int) -> None:
    torch.set_num_threads(1)
    loaded = tiny_loaded()
    auditor = auditor_of(loaded, [tiny_probe(loaded)], shard_size=SHARD_SIZE)
    in_child(lambda: auditor.audit(rows(), root / "undisturbed"))
    first, last = count_lines(auditor, root / "traced")
    # Most of the lines belong to the first shard: later kills stand closer together, to meet the other shards.
    shares = [(1 - number / kills) ** 3 for number in range(kills)]
    lines = [first // 2, *(int(last - (last - first) * share) for share in shares[1:])]
    found = []
    for number, line in enumerate(lines):
        folder = root / "once" / str(number)
        assert killed_at(auditor, folder, line)
        found.append(shards(folder))
        in_child(lambda folder=folder: auditor.audit(rows(), folder))  # type: ignore[misc]  # bound now, run now
    again, times = root / "again", 0
    while killed_at(auditor, again, first + (last - first) * (times + 1) // kills):
        times += 1
    print(json.dumps({"lines": last, "shards_at_kill": found, "kills_of_one": times}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
