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
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.killing import killed_at_line, on_lines, start, was_killed
from tests.store_cases import fill, ids, settings
from trl_attribution.store import VectorStore
from trl_attribution.store.header import write_settings
from trl_attribution.store.shards import write_shard
from trl_attribution.utils.atomic import atomic_path

PAIRS = 1500
SHARD_SIZE = 10
WRITING = {
    function.__code__
    for function in (write_shard, atomic_path.__wrapped__, write_settings)  # type: ignore[attr-defined]
}


def write_store(folder: Path) -> None:
    """The whole loop of an audit, from opening (or making) the store to the last shard."""
    fill(VectorStore.create(folder, settings(hidden_size=256)), ids(PAIRS), SHARD_SIZE)


def is_writing(frame: FrameType) -> bool:
    return frame.f_code in WRITING


def count_lines(folder: Path, report: Path) -> None:
    last = 0

    def remember(count: int) -> None:
        nonlocal last
        last = count

    on_lines(lambda: write_store(folder), is_writing, remember)
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
        return killed_at_line(lambda: write_store(folder), is_writing, 1 + int(share * lines))

    report = {
        "moments": kill_until_done(root / "moments", kills, at_moment),
        "lines": kill_until_done(root / "lines", kills, at_line),
    }
    print(json.dumps({**report, "seconds": seconds, "code_lines": lines}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
