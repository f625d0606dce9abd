"""DPO runs drawn at random, each against M0 computed naively: ``python scripts/nightly_reference.py --draws 200``."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import transformers

from tests.reference_draws import checked, drawn

_WRONG = ("different", "disturbed", "failed")


def main() -> int:
    """The exit status: 1 where a run read something else than M0 without a word, or was disturbed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first draw")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    verdicts: Counter[str] = Counter()
    details: Counter[str] = Counter()
    gc.collect()
    gc.freeze()  # trainers collect often, and what has been imported would be gone through each time
    start = time.monotonic()
    for seed in range(options.first, options.first + options.draws):
        draw = drawn(seed)
        try:
            outcome = checked(draw)
            verdict, detail = outcome.verdict, outcome.detail
        except Exception as error:  # noqa: BLE001  # one that fails must not hide the others
            verdict, detail = "failed", f"{type(error).__name__}: {error}"
        verdicts[verdict] += 1
        details[f"{verdict}: {detail[:140]}"] += 1
        if verdict in _WRONG:
            print(f"{draw}\n  {verdict}: {detail}", flush=True)
    for detail, times in sorted(details.items()):
        print(f"{times:4d}  {detail}")
    told = ", ".join(f"{times} {verdict}" for verdict, times in sorted(verdicts.items()))
    print(f"{options.draws} draws from seed {options.first} in {time.monotonic() - start:.0f} s: {told}")
    return 1 if any(verdicts[one] for one in _WRONG) else 0


if __name__ == "__main__":
    sys.exit(main())
