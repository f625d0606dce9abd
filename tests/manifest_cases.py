"""Datasets in every layout a preference pair comes in, and manifests about them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_attribution.manifest import Decision, Manifest, ManifestHeader
from trl_attribution.pairs import PairReader, Reading, dataset_fingerprint, pair_id
from trl_attribution.pairs.rows import open_rows

Row = dict[str, Any]
Triple = tuple[str, str, str]

RENAMED = Reading(prompt_column="question", chosen_column="better", rejected_column="worse", source_column="origin")
READINGS = {
    "text": Reading(),
    "implicit text": Reading(),
    "messages": Reading(),
    "implicit messages": Reading(),
    "transcripts": Reading(),
    "renamed": RENAMED,
}


def row(layout: str, triple: Triple, number: int) -> Row:
    """One dataset row of that layout, with further columns before, between and after."""
    prompt, chosen, rejected = triple
    ask, first, second = (
        [{"role": role, "content": text}]
        for role, text in (("user", prompt), ("assistant", chosen), ("assistant", rejected))
    )
    layouts: dict[str, Row] = {
        "text": {"prompt": prompt, "chosen": chosen, "rejected": rejected},
        "implicit text": {"chosen": prompt + chosen, "rejected": prompt + rejected},
        "messages": {"prompt": ask, "chosen": first, "rejected": second},
        "implicit messages": {"chosen": ask + first, "rejected": ask + second},
        "transcripts": {
            "chosen": f"\n\nHuman: {prompt}\n\nAssistant: {chosen}",
            "rejected": f"\n\nHuman: {prompt}\n\nAssistant: {rejected}",
        },
        "renamed": {"question": prompt, "worse": rejected, "better": chosen},
    }
    source = "origin" if layout == "renamed" else "source"
    return {"id": f"row-{number}", **layouts[layout], source: f"part {number % 2}", "note": f"note {number}"}


def swapped(example: Row, reading: Reading) -> Row:
    chosen, rejected = reading.chosen_column, reading.rejected_column
    return {**example, chosen: example[rejected], rejected: example[chosen]}


def manifest_for(
    dataset: Any, listed: Sequence[str], action: str, reading: Reading | None = None, keep: Sequence[str] = ()
) -> Manifest:
    """A manifest about ``dataset`` that lists ``listed`` (to be filtered or flipped) and ``keep``."""
    reading = reading or Reading()
    pairs = list(PairReader(dataset, reading))
    first = {pair.pair_id: pair.row for pair in reversed(pairs)}
    header = ManifestHeader(
        action=action,  # type: ignore[arg-type]
        dataset_fingerprint=dataset_fingerprint(pair.pair_id for pair in pairs),
        model_fingerprint="m0",
        probe_fingerprints={"insults": "p0"},
        rule={"top_k": len(listed)},
        reading=dataclasses.asdict(reading),
    )
    decisions = [
        Decision(chosen, first.get(chosen, 0), do, "insults", 0.5, rank, 0.01)  # type: ignore[arg-type]
        for do, chosen_ids in ((action, listed), ("keep", keep))
        for rank, chosen in enumerate(chosen_ids, start=1)
    ]
    return Manifest(header, tuple(decisions))


def ids_of(rows: Sequence[Row], reading: Reading | None = None) -> list[str]:
    return [pair_id(example, reading) for example in rows]


def simple_rows(count: int = 6) -> list[Row]:
    return [row("text", (f"Question {n}?", f"Answer {n}.", f"No, {n}."), n) for n in range(count)]


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(example, ensure_ascii=False) + "\n" for example in rows), encoding="utf-8")
    return path


def read_back(path: Path) -> list[Row]:
    return [read.stored for read in open_rows(path)]
