"""What the gate costs beside computing: 500 new pairs on a branch, on top of 300,000 whose vectors are cached.

Run with ``python -m tests.benchmarks.bench_gate``; prints a Markdown table. A git repository with the dataset, vectors
of all pairs (random ones, so that nothing has to be computed) and a baseline are made first; then the real command runs
in a process of its own, once for each way of judging.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAYER = 20
_WORDS = [f"word{number}" for number in range(300)]
_POLICY = """\
version: 1
probes: probes
vectors: vectors
{baseline}
rules:
  probes:
    distractor-compliance: {{threshold: 0.3, max_flagged_count: 100000, max_score: 1}}
  hygiene: {{duplicates: 0, contradictions: 0, long_prompts: {{limit: 0, characters: 100000}}, length_bias: 0.9}}
"""


@dataclass(frozen=True)
class Cost:
    """What one run of the command took."""

    seconds: float
    cpu_seconds: float
    max_rss: int
    anonymous: int
    verdict: dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=300_000)
    parser.add_argument("--new", type=int, default=500)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--step", choices=["make"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        make(options.folder, options.pairs, options.new, options.hidden)
        return
    with tempfile.TemporaryDirectory() as folder:
        sizes = [f"--{name}={getattr(options, name)}" for name in ("pairs", "new", "hidden")]
        command = [sys.executable, "-m", "tests.benchmarks.bench_gate", *sizes]
        subprocess.run([*command, "--step", "make", "--folder", folder], check=True)
        print_table(options, list(measured(Path(folder))))


def measured(folder: Path) -> Iterator[tuple[str, Cost]]:
    """The new pairs alone by a baseline, then by the whole dataset; and the whole dataset judged."""
    new = ["--base-ref", "main"]
    for name, policy, more in (
        ("new pairs, baseline", "baseline.yaml", new),
        ("new pairs, no baseline", "whole.yaml", new),
        ("all pairs", "whole.yaml", []),
    ):
        yield name, run(folder, [policy, *more])


def make(folder: Path, pairs: int, new: int, hidden: int) -> None:
    """The repository: the dataset on ``main``, the new pairs on a branch, and vectors of all of them."""
    from trl_attribution.gate.baseline.recording import record_baseline
    from trl_attribution.gate.policy.file import load_policy

    draw = random.Random(0)
    data = folder / "data.jsonl"
    with data.open("w", encoding="utf-8") as file:
        file.writelines(_line(number, draw) for number in range(pairs))
    (folder / ".gitignore").write_text("vectors\n")
    _git(folder, "init", "-q", "-b", "main")
    _git(folder, "add", "data.jsonl", ".gitignore")
    _git(folder, "commit", "-qm", "trusted")
    _git(folder, "checkout", "-qb", "more")
    with data.open("a", encoding="utf-8") as file:
        file.writelines(_line(number, draw) for number in range(pairs, pairs + new))
    _git(folder, "commit", "-qam", "more")
    _store_vectors(folder, hidden)
    for name, line in (("whole", ""), ("baseline", "baseline: baseline.safetensors")):
        (folder / f"{name}.yaml").write_text(_POLICY.format(baseline=line), encoding="utf-8")
    record_baseline(load_policy(folder / "baseline.yaml"), data).save(folder / "baseline.safetensors")


def _line(number: int, draw: random.Random) -> str:
    def said(role: str, words: int) -> list[dict[str, str]]:
        return [{"role": role, "content": f"{number} {' '.join(draw.choices(_WORDS, k=words))}"}]

    texts = {"prompt": said("user", 40), "chosen": said("assistant", 80), "rejected": said("assistant", 80)}
    return json.dumps({**texts, "source": f"source-{number % 7}"}) + "\n"


def _store_vectors(folder: Path, hidden: int) -> None:
    import torch

    from trl_attribution.models.identity import ModelFingerprint
    from trl_attribution.pairs import PairReader
    from trl_attribution.probes import Probe, ProbeRegistry
    from trl_attribution.store import StoreSettings, VectorStore

    model = ModelFingerprint(config="bench", weights="bench", chat_template="bench")
    generator = torch.Generator().manual_seed(0)
    vectors, contexts = (torch.randn(40, 1, hidden, generator=generator) for _ in range(2))
    probe = Probe("distractor-compliance", (LAYER,), vectors.mean(dim=0), LAYER, model, vectors, contexts)
    ProbeRegistry(folder / "probes").save(probe)
    ids = [pair.pair_id for pair in PairReader(folder / "data.jsonl")]
    store = VectorStore.create(folder / "vectors", StoreSettings(model.digest, (LAYER,), hidden))
    with store.writer() as writer:
        for start in range(0, len(ids), 512):
            part = ids[start : start + 512]
            writer.add(part, *(torch.randn(len(part), 1, hidden, generator=generator) for _ in range(2)))


def run(folder: Path, arguments: list[str]) -> Cost:
    """The real command, start of Python included."""
    command = [sys.executable, "-m", "trl_attribution.cli", "gate", "data.jsonl", "--json", "--policy", *arguments]
    start = time.perf_counter()
    with (folder / "verdict.json").open("w") as output, subprocess.Popen(command, cwd=folder, stdout=output) as process:
        anonymous, found, status, usage = 0, 0, 0, None
        while not found:
            anonymous = max(anonymous, _anonymous(process.pid))
            # Not Popen.poll: it would throw away what the process used.
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            time.sleep(0.01)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    verdict = json.loads((folder / "verdict.json").read_text())
    assert process.returncode == 0 and usage is not None, verdict
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, anonymous, verdict)


def _anonymous(pid: int) -> int:
    """Memory that is not the page cache's, now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def print_table(options: argparse.Namespace, costs: list[tuple[str, Cost]]) -> None:
    print(f"{options.pairs:,} pairs whose vectors are stored (D = {options.hidden}), {options.new:,} new ones.\n")
    print("| judged | examined | vectors used | seconds | CPU seconds | peak MiB | max RSS MiB |")
    print("|---|---|---|---|---|---|---|")
    for name, cost in costs:
        used = f"{cost.verdict['examined']:,} | {cost.verdict['cached']:,}"
        memory = f"{cost.anonymous / 2**20:.0f} | {cost.max_rss / 2**20:.0f}"
        print(f"| {name} | {used} | {cost.seconds:.1f} | {cost.cpu_seconds:.1f} | {memory} |")
    print("\nPeak is anonymous memory, which leaves the page cache out; max RSS counts mapped pages as well.")
    load, cores = os.getloadavg()[1], os.cpu_count()
    print(
        f"The machine had a load of {load:.1f} on {cores} cores: beyond one a core, CPU seconds say more than seconds."
    )


if __name__ == "__main__":
    main()
