"""Draw rows of a preference dataset by what they hold, so that the same ones come whatever their order.

python sample.py allenai/olmo-2-0425-1b-preference-mix pairs.jsonl --pairs 20000
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from trl_attribution.pairs.rows import open_rows


def place(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("output", type=Path)
    parser.add_argument("--pairs", type=int, required=True)
    given = parser.parse_args()
    rows = [dict(row.values) for row in open_rows(given.dataset)]
    chosen = sorted(sorted(range(len(rows)), key=lambda number: place(rows[number]))[: given.pairs])
    given.output.write_text("".join(json.dumps(rows[number]) + "\n" for number in chosen), encoding="utf-8")


if __name__ == "__main__":
    main()
