"""The shares of an audit as tasks of a Ray cluster, then the merge.

python audit_on_ray.py 8 MODEL data.jsonl --probes probes/ -o audit/    # what follows the number goes to every share

A task that fails is tried again, and goes on where it was. The audit folder is on storage that all nodes see.
"""

from __future__ import annotations

import subprocess
import sys


def commands(shares: int, arguments: list[str]) -> tuple[list[list[str]], list[str]]:
    """The command of each share, and that of the merge."""
    audit = ["trl-attribution", "audit", *arguments]
    return [[*audit, "--shard", f"{number}/{shares}"] for number in range(1, shares + 1)], [*audit, "--merge"]


def main() -> None:
    import ray

    ray.init()
    run = ray.remote(num_gpus=1, max_retries=3, retry_exceptions=True)(subprocess.check_call)
    shares, merge = commands(int(sys.argv[1]), sys.argv[2:])
    ray.get([run.remote(command) for command in shares])
    subprocess.run(merge, check=True)


if __name__ == "__main__":
    main()
