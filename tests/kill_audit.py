"""Run as ``python -m tests.kill_audit FOLDER KILLS``: audits in forked children that are killed at chosen lines.

Each audit is killed (SIGKILL) at another line of the package's own code, spread over a whole run, and then run again
to its end. One more is killed over and over, a little later each time. Prints, as JSON, how many shards each kill
found. Forking from this process, which has the model and has started no thread, keeps an attempt short.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FrameType

import torch

import trl_attribution
from tests.audit_cases import Row, auditor_of, pair_rows, tiny_loaded, tiny_probe
from tests.killing import killed_at_line, on_lines, start, was_killed
from trl_attribution.audit.auditor import DataAuditor

PAIRS = 20
SHARD_SIZE = 3
PACKAGE = str(Path(trl_attribution.__file__).parent)


def rows() -> list[Row]:
    return [*pair_rows(PAIRS), *pair_rows(3)]


def is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(PACKAGE)


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
        on_lines(lambda: auditor.audit(rows(), folder, on_progress=on_progress), is_ours, remember)
        folder.with_suffix(".lines").write_text(json.dumps([computing, now]))

    was_killed(start(work))
    first, last = json.loads(folder.with_suffix(".lines").read_text())
    return first, last


def killed_at(auditor: DataAuditor, folder: Path, line: int) -> bool:
    return killed_at_line(lambda: auditor.audit(rows(), folder), is_ours, line)


def shards(folder: Path) -> int:
    return len(list(folder.glob("vectors/shards/*.safetensors")))


def main(root: Path, kills: int) -> None:
    torch.set_num_threads(1)
    loaded = tiny_loaded()
    auditor = auditor_of(loaded, [tiny_probe(loaded)], shard_size=SHARD_SIZE)
    was_killed(start(lambda: auditor.audit(rows(), root / "undisturbed")))
    first, last = count_lines(auditor, root / "traced")
    # Most of the lines belong to the first shard: later kills stand closer together, to meet the other shards.
    shares = [(1 - number / kills) ** 3 for number in range(kills)]
    lines = [first // 2, *(int(last - (last - first) * share) for share in shares[1:])]
    found = []
    for number, line in enumerate(lines):
        folder = root / "once" / str(number)
        assert killed_at(auditor, folder, line)
        found.append(shards(folder))
        was_killed(start(lambda folder=folder: auditor.audit(rows(), folder)))  # type: ignore[misc]  # bound now, run now
    # What one attempt has computed the next need not, so a step of half a kill's share meets the same audit often.
    again, times = root / "again", 0
    while killed_at(auditor, again, first + (last - first) * (times + 1) // (2 * kills)):
        times += 1
    print(json.dumps({"lines": last, "shards_at_kill": found, "kills_of_one": times}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
