"""Run as ``python -m tests.kill_child FOLDER KILLS``: fills stores in forked children and kills them, over and over.

Two kinds of kill, both SIGKILL: at a random moment, and at a random line of the code that writes files (a moment seldom
falls between two of its lines). Each store is run again until a run ends by itself; prints, as JSON, how many kills
each kind took. Forking from this process, which has imported everything and started no thread, keeps an attempt at a
few milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.store_cases import fill, ids, settings
from trl_attribution.atomic import atomic_path
from trl_attribution.store import VectorStore
from trl_attribution.store.settings import write_settings
from trl_attribution.store.shards import write_shard

PAIRS = 1500
SHARD_SIZE = 10
WRITING = {
    function.__code__
    for function in (write_shard, atomic_path.__wrapped__, write_settings)  # type: ignore[attr-defined]
}


def write_store(folder: Path) -> None:
    """The whole loop of an audit, from opening (or making) the store to the last shard."""
    fill(VectorStore.create(folder, settings(hidden_size=256)), ids(PAIRS), SHARD_SIZE)


def start(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def was_killed(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit("a run after a kill failed")
    return False


def counting_lines(work: Callable[[], None], on_line: Callable[[int], None]) -> None:
    """Run ``work``, calling ``on_line`` with the running number of each line that it executes of the writing code."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if frame.f_code not in WRITING:
            return None
        if event == "line":
            count += 1
            on_line(count)
        return trace

    sys.settrace(trace)
    work()
    sys.settrace(None)


def kill_at_line(folder: Path, line: int) -> None:
    counting_lines(
        lambda: write_store(folder), lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == line else None
    )


def count_lines(folder: Path, report: Path) -> None:
    last = 0

    def remember(count: int) -> None:
        nonlocal last
        last = count

    counting_lines(lambda: write_store(folder), remember)
    report.write_text(str(last))


def attempt_at_moment(folder: Path, delay: float) -> bool:
    child = start(lambda: write_store(folder))
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return was_killed(child)


def kill_until_done(root: Path, kills: int, attempt: Callable[[Path, float], bool]) -> dict[str, int]:
    """Fill stores under ``root``, one after another, until there have been ``kills`` kills and the last is whole.

    ``attempt`` gets the share of a whole run that the next one may last. It is random, and its bound grows from one
    attempt to the next, so that a store gets done even where opening what is there takes most of the time.
    """
    chance = random.Random(7)
    seen = {"kills": 0, "half_written": 0, "stores": 0}
    while seen["kills"] < kills:
        folder = root / str(seen["stores"])
        bound = 0.2
        while attempt(folder, chance.uniform(0, bound)):
            seen["kills"] += 1
            seen["half_written"] += any(folder.rglob("*.part"))
            bound *= 1.1
        seen["stores"] += 1
    return seen


def main(root: Path, kills: int) -> None:
    began = time.monotonic()
    was_killed(start(lambda: write_store(root / "undisturbed")))
    seconds = time.monotonic() - began
    was_killed(start(lambda: count_lines(root / "traced", root / "lines.txt")))
    lines = int((root / "lines.txt").read_text())

    def at_moment(folder: Path, share: float) -> bool:
        return attempt_at_moment(folder, share * seconds)

    def at_line(folder: Path, share: float) -> bool:
        return was_killed(start(lambda: kill_at_line(folder, 1 + int(share * lines))))

    report = {
        "moments": kill_until_done(root / "moments", kills, at_moment),
        "lines": kill_until_done(root / "lines", kills, at_line),
    }
    print(json.dumps({**report, "seconds": seconds, "code_lines": lines}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
