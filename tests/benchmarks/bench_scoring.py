"""How much memory scoring takes, and how it grows with the pairs: a real store on disk, measured in fresh processes.

Run with ``python -m tests.benchmarks.bench_scoring``; prints a Markdown table. For each size one process makes the
store and another scores it, flags it and writes ``scores.parquet``, so that no peak is inherited.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

STATUS = Path("/proc/self/status")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--probes", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--step", choices=["make", "score"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step == "make":
        make_store(Path(options.folder), options.pairs[0], options.hidden)
    elif options.step == "score":
        print(json.dumps(score(Path(options.folder), options.hidden, options.probes, options.prompts)))
    else:
        print_table([measure(pairs, options) for pairs in options.pairs])


def measure(pairs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Make and score a store of ``pairs`` pairs, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["--hidden", options.hidden, "--probes", options.probes, "--prompts", options.prompts]
        base = [
            sys.executable,
            "-m",
            "tests.benchmarks.bench_scoring",
            "--folder",
            folder,
            "--pairs",
            pairs,
            *sizes,
        ]
        subprocess.run([*map(str, base), "--step", "make"], check=True)
        done = subprocess.run([*map(str, base), "--step", "score"], check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def make_store(folder: Path, pairs: int, hidden: int) -> None:
    import torch

    from trl_attribution.store import StoreSettings, VectorStore

    generator = torch.Generator().manual_seed(0)
    store = VectorStore.create(folder / "vectors", StoreSettings("bench", (20,), hidden))
    with store.writer() as writer:
        for start in range(0, pairs, 2_500):
            count = min(2_500, pairs - start)
            vectors = (torch.randn(count, 1, hidden, generator=generator) for _ in range(2))
            writer.add([f"{number:032x}" for number in range(start + 1, start + count + 1)], *vectors)


def score(folder: Path, hidden: int, probes: int, prompts: int) -> dict[str, Any]:
    """Score, flag and write, and say how long each took and what memory it needed beyond the start."""
    import pyarrow as pa
    import scipy.stats  # noqa: F401  (so that its memory counts to the start)

    from trl_attribution.scoring import Rule, flag, score_view, write_scores
    from trl_attribution.store import VectorStore

    made = [_probe(number, hidden, prompts) for number in range(probes)]
    view = VectorStore.open(folder / "vectors").view()
    start = _status("RssAnon")
    with _Peak() as peak:
        clock = [time.perf_counter()]
        scores = score_view(view, made, scratch=folder)
        clock.append(time.perf_counter())
        after_scores = peak.most
        flag(scores, Rule(top_k=100))
        clock.append(time.perf_counter())
        write_scores(folder / "scores.parquet", scores, pa.array(["web"] * len(view)))
        clock.append(time.perf_counter())
    return {
        "pairs": len(view),
        "hidden": hidden,
        "probes": probes,
        "prompts": prompts,
        "seconds": [later - earlier for earlier, later in itertools.pairwise(clock)],
        "start": start,
        "scoring": after_scores - start,
        "all": peak.most - start,
        "total": peak.most,
        "max_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _probe(number: int, hidden: int, prompts: int) -> Any:
    import torch

    from trl_attribution.models.identity import ModelFingerprint
    from trl_attribution.probes.probe import Probe

    generator = torch.Generator().manual_seed(number + 1)
    vectors, contexts = (torch.randn(prompts, 1, hidden, generator=generator) for _ in range(2))
    model = ModelFingerprint(config="bench", weights="bench", chat_template="bench")
    return Probe(f"probe-{number}", (20,), vectors.mean(dim=0), 20, model, vectors, contexts)


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


class _Peak:
    """The most anonymous memory (everything but the page cache) while it is open, sampled every 2 ms."""

    def __enter__(self) -> Self:
        self.most = _status("RssAnon")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.most = max(self.most, _status("RssAnon"))


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        "| pairs | D | probes x prompts | score s | flag s | write s "
        "| start MiB | + scoring | + all | = total | max RSS MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        seconds = " | ".join(f"{value:.1f}" for value in row["seconds"])
        memory = " | ".join(f"{row[name] / 2**20:.0f}" for name in ("start", "scoring", "all", "total", "max_rss"))
        print(f"| {row['pairs']:,} | {row['hidden']} | {row['probes']} x {row['prompts']} | {seconds} | {memory} |")
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        more = last["pairs"] - first["pairs"]
        for name in ("scoring", "all"):
            print(f"\nGrowth with N, {name}: {(last[name] - first[name]) / more:.0f} bytes a pair.")
    print("\nMemory is anonymous memory, which leaves the page cache out; max RSS counts mapped pages as well.")


if __name__ == "__main__":
    main()
