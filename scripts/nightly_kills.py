"""Audits, runs, gates, reviews and validations killed at random and done again: ``python scripts/nightly_kills.py``.

Each seed kills one kind of work one to five times and compares what comes of it, bit for bit, with undisturbed work.
With ``--log`` the result of each seed is kept as a line of CSV, and a later call goes on with the seeds that are not in
it. The exit status is 1 where something differed, was lost or failed.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not survive a fork

from tests.command_server import load
from tests.kill_draws import WORK, Drawn, Kills

_NAMES = [field.name for field in fields(Drawn)]


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=1000, help="until there were so many, the log's counted")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="or until so many have passed")
    parser.add_argument("--log", type=Path, help="CSV file to add to")
    parser.add_argument("--folder", type=Path, help="where work is done; what differs stays there")
    options = parser.parse_args()
    known = read(options.log) if options.log is not None and options.log.exists() else []
    load()
    with tempfile.TemporaryDirectory() as scratch:
        kills = Kills(options.folder or Path(scratch))
        for drawn in draws(kills, known, options.kills, time.monotonic() + options.seconds):
            known.append(drawn)
            if drawn.verdict != "equal":
                print(drawn, flush=True)
            if options.log is not None:
                write(options.log, known)
    print(table(known))
    return 1 if any(one.verdict != "equal" for one in known) else 0


def draws(kills: Kills, known: list[Drawn], wanted: int, end: float) -> Iterator[Drawn]:
    """Of the seeds that are not known, in order, until there are so many kills or it is the ``end``."""
    done, seed = {one.seed for one in known}, 0
    while sum(one.kills for one in known) < wanted and time.monotonic() < end:
        if seed not in done:
            yield kills.draw(seed)
        seed += 1


def read(log: Path) -> list[Drawn]:
    """What an earlier call has kept."""
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Drawn(int(row["seed"]), row["work"], row["at"], int(row["kills"]), int(row["half_written"]), row["verdict"])
        for row in rows
    ]


def write(log: Path, known: list[Drawn]) -> None:
    """All draws, in the order of their seeds."""
    with log.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _NAMES, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one) for one in sorted(known, key=lambda one: one.seed))


def table(known: list[Drawn]) -> str:
    """Markdown: by kind of work, how often it was killed and what came of it."""
    head = ["| work | runs | kills | of these left a half-written file | runs that differ |", "|---|---|---|---|---|"]
    groups = [(name, [one for one in known if one.work == name]) for name in (kind.name for kind in WORK)]
    lines = [
        f"| {name} | {len(mine):,} | {sum(one.kills for one in mine):,} | {sum(one.half_written for one in mine):,} "
        f"| {sum(one.verdict != 'equal' for one in mine):,} |"
        for name, mine in [*groups, ("all", known)]
    ]
    return "\n".join([*head, *lines])


if __name__ == "__main__":
    sys.exit(main())
