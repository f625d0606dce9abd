"""How quick report.html is with 100,000 flagged pairs: written, opened, filtered, searched, in headless Chromium.

Run with ``python -m tests.benchmarks.report_page``; prints a Markdown table and fails where a bound is passed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.browser import Seen, browser, context, until, visit
from trl_attribution.audit.info import AuditInfo
from trl_attribution.manifest import Decision, Manifest, ManifestHeader
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.pairs import PairReader, dataset_fingerprint
from trl_attribution.report.page import write_report
from trl_attribution.scoring import Column, Scores, calibrate, write_scores
from trl_attribution.scoring.columns import ColumnFile
from trl_attribution.store import StoreSettings

FIRST_PAINT, FILTER = 2000, 200
"""Milliseconds that opening the page and filtering may take."""
_COLUMN = Column("behavior", 20, "contextual")
_SOURCES = 12
_SENTENCE = "The quick answer to this request is that bread needs flour, water, salt and a warm place for an hour. "
_SEARCHES = {
    "search a word in the texts": "find('query').value = 'request 77'",
    "search what is nowhere": "find('query').value = 'zzzzzz'",
}
_FILTERS = {
    **_SEARCHES,
    "filter by source": "find('by-source').value = '3'",
    "filter by score": "find('by-score').value = '0.2'",
    "sort by row": "find('sort').value = 'row'",
    "random sample": "find('sort').value = 'random'",
    "not reviewed": "find('by-review').value = 'none'",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flagged", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_audit(folder, options.flagged)
        start = time.perf_counter()
        report = write_report(folder, folder / "data.jsonl")
        written = time.perf_counter() - start
        lines = [
            (f"writing the page ({options.flagged:,} flagged pairs)", f"{written:.1f} s", ""),
            ("its size", f"{report.path.stat().st_size / 1e6:.1f} MB", ""),
        ]
        found = [measure(report.path) | measure_early(report.path) for _ in range(options.rounds)]
    slow = []
    for name in found[0]:
        bound = FIRST_PAINT if name == "first useful paint" else FILTER
        worst = max(one[name] for one in found)
        lines.append((name, f"{np.median([one[name] for one in found]):.0f} ms, at most {worst:.0f}", f"{bound} ms"))
        slow += [name] if worst > bound else []
    print("| | measured | bound |\n|---|---|---|")
    print("\n".join(f"| {name} | {value} | {bound} |" for name, value, bound in lines))
    if slow:
        raise SystemExit(f"too slow: {', '.join(slow)}")


def make_audit(folder: Path, flagged: int) -> None:
    """An audit folder of a fifth more pairs than are flagged, without vectors: a report needs none."""
    pairs = flagged + flagged // 5
    with (folder / "data.jsonl").open("w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(_row(number)) + "\n" for number in range(pairs))
    ids = [pair.pair_id for pair in PairReader(folder / "data.jsonl")]
    values = np.sort(np.random.default_rng(0).normal(0.1, 0.1, pairs)).astype(np.float32)[::-1].copy()
    file = ColumnFile(1, pairs)
    file.write(0, 0, values)
    scores = Scores(pa.array(ids), (_COLUMN,), {"behavior": 20}, {}, {}, {}, {}, file)
    write_scores(folder / "scores.parquet", scores, [f"source-{number % _SOURCES}" for number in range(pairs)])
    q_values = calibrate(values).q_value
    fingerprint = dataset_fingerprint(ids)
    decisions = tuple(
        Decision(ids[place], place, "filter", "behavior", float(values[place]), place + 1, float(q_values[place]))
        for place in range(int((values[:flagged] > 0).sum()))
    )
    header = ManifestHeader(
        action="filter",
        dataset_fingerprint=fingerprint,
        model_fingerprint="m",
        probe_fingerprints={"behavior": "p"},
        rule={"top_k": flagged, "columns": [{**vars(_COLUMN), "null": "mirror"}]},
    )
    Manifest(header, decisions).save(folder / "manifest.filter.jsonl")
    _info(fingerprint, pairs).save(folder)


def measure(page: Path) -> dict[str, float]:
    """Milliseconds by what was done, in a fresh profile."""
    with browser() as opened, context(opened) as profile:
        seen = visit(profile, page)
        drawn = seen.page.evaluate("performance.getEntriesByName('list-drawn')[0].startTime")
        painted = seen.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0")
        found = {"first useful paint": max(drawn, painted)}
        # What a person does first is to read: the texts are made searchable meanwhile.
        until(seen, "rows.prepared()", 30)
        found |= {name: _timed(seen, change) for name, change in _FILTERS.items()}
        seen.assert_clean()
    return found


def measure_early(page: Path) -> dict[str, float]:
    """Milliseconds of a search by somebody who does not wait: no text has been made searchable yet."""
    found = {}
    with browser() as opened:
        for name, change in _SEARCHES.items():
            with context(opened) as profile:
                profile.add_init_script("window.requestIdleCallback = () => 0")
                seen = visit(profile, page)
                found[f"{name}, first of all"] = _timed(seen, change)
                seen.assert_clean()
    return found


def _timed(seen: Seen, change: str) -> float:
    timed = f"""(() => {{ const find = page.find; find('filters').reset(); {change};
      const start = performance.now(); browser.filter(); document.body.offsetHeight;
      return performance.now() - start; }})()"""
    return float(seen.page.evaluate(timed))


def _row(number: int) -> dict[str, str]:
    return {
        "prompt": f"This is request {number}. " + _SENTENCE,
        "chosen": f"Answer {number}: " + _SENTENCE * 5,
        "rejected": f"I will not answer {number}. " + _SENTENCE * 4,
        "source": f"source-{number % _SOURCES}",
    }


def _info(fingerprint: str, pairs: int) -> AuditInfo:
    dataset: dict[str, Any] = {"name": "data.jsonl", "format": "trl", "fingerprint": fingerprint, "rows": pairs}
    counts = ("duplicate_rows", "contradictions", "truncated_pairs", "tokens")
    dataset |= {"pairs": pairs, "skipped": {}, **dict.fromkeys(counts, 0)}
    settings = StoreSettings("m", (20,), 1)
    vectors = {"store": "vectors", "settings": settings, "computed": 0, "reused": pairs}
    identity = ModelFingerprint("none", "none", "none")
    model = {"name": "none", "fingerprint": identity, "dtype": "float32", "device": "cpu", "digest": "m"}
    about = {"dataset": dataset, "model": model, "vectors": {**vectors, "path": None, "path_reason": "none"}}
    return AuditInfo.model_validate({**about, "probes": {"behavior": "p"}, "settings": {}, "cost": {}, "versions": {}})


if __name__ == "__main__":
    main()
