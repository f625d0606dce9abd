"""A million pairs without a model: reading, storing, scoring, finding and resuming, in processor-seconds.

Every step runs in a process of its own, and where two ways are compared they take turns, so that what else the machine
does falls on both. Vectors are random and come from the store's own writer; texts are short and drawn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import many_pairs_steps as steps
from tests.benchmarks.many_pairs_steps import HIDDEN, ROUNDS, SHARD, median, save_real_tokenizer, write_texts

READ_PAIRS = 20_000
HH_FILE = "hh-rlhf-harmless-base-test.jsonl.gz"


def run(output: Path, command: str, pairs: int, ids: int, against: Path | None, data: Path, console: Any) -> None:
    """Measure, and write ``many-pairs.md``; ``against`` is another checkout, whose reading is measured beside ours."""
    from tests.benchmarks.pages import write_page

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tables = [_resuming(folder, pairs), _memory(folder, pairs), _reading(folder, against, data), _line(folder)]
        tables += [_scoring(folder, pairs // 10), _index(folder, ids)]
    for table in tables:
        table.show(console)
    lead = (
        "What an audit does beside the model, on short pairs (about 32 words), in processor-seconds (user and system) "
        "of processes with one thread each: wall time says little on a machine with other work. "
        f"Comparisons: the medians of {ROUNDS} rounds in which both ways take turns."
    )
    write_page(output / "many-pairs.md", "Many pairs", lead, command, tables)


def _reading(folder: Path, against: Path | None, data: Path) -> Any:
    from tests.benchmarks.pages import Results

    save_real_tokenizer(folder / "tiny")
    write_texts(folder / "text.jsonl", READ_PAIRS)
    write_texts(folder / "messages.jsonl", READ_PAIRS, chat=True)
    real = _write_transcripts(folder / "transcripts.jsonl", data)
    trees = {"now": Path(__file__).resolve().parents[2], **({"then": against.resolve()} if against else {})}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for _ in range(ROUNDS):
        for name, tree in trees.items():
            found[name].append(child("prepare", folder, READ_PAIRS, tree))
    rows = []
    for key in found["now"][0]:
        now = median(one[key] for one in found["now"])
        then = f"{median(one[key] for one in found['then']) / now:.2f}x" if against else "not measured"
        rows.append((key, f"{now:,.0f}", f"{1e6 / now:,.0f}", then))
    note = (
        f"{READ_PAIRS:,} pairs of text and of messages (about 32 words){real}. The tokenizer is SmolLM2's. A whole "
        "audit: without probes, and with drawn vectors (D = 32) in the place of M0's; read, checked, tokenized, "
        "stored, described. Goal: half of what an audit cost when the goal was set, at commit a49155f."
    )
    if against:
        note += f" The other commit is {_commit(against)}."
    columns = ("what", "µs a pair", "pairs per processor-second", "cost at the other commit")
    return Results("Reading", columns, tuple(rows), note)


def _write_transcripts(path: Path, data: Path) -> str:
    """HH-RLHF's pairs, where they are at hand: what to say of them."""
    from trl_attribution.pairs import PairReader, Reading

    file = data / HH_FILE
    if not file.exists():
        return ""
    rows = [row.values for row, _ in PairReader(file, Reading(on_bad_row="skip")).rows_and_pairs()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f", {len(rows):,} transcripts of HH-RLHF (harmless, test)"


def _commit(tree: Path) -> str:
    shown = subprocess.run(["git", "-C", tree, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return shown.stdout.strip() or "not a checkout"


def _line(folder: Path) -> Any:
    from tests.benchmarks.pages import Results

    found = child("line", folder, READ_PAIRS)
    total = sum(found.values())
    rows = [(name, f"{1e6 * seconds / READ_PAIRS:.0f}") for name, seconds in found.items()]
    rows.append(("together", f"{1e6 * total / READ_PAIRS:.0f}"))
    note = (
        f"{READ_PAIRS:,} pairs, D = {HIDDEN}, one layer, shards of {SHARD}, no tokens: {READ_PAIRS / total:,.0f} pairs "
        "per processor-second. Goal: 20,000 a second on two cores, which is 10,000."
    )
    return Results("Read, store, score", ("step", "µs a pair"), tuple(rows), note)


def _scoring(folder: Path, pairs: int) -> Any:
    from tests.benchmarks.pages import Results

    child("make", folder, pairs)
    found = child("score", folder, pairs)
    rows = [
        (f"{pairs:,} x {probes} probes", f"{seconds:.2f}", f"{seconds / found['copy']:.2f}x")
        for probes, seconds in ((1, found["one"]), (100, found["hundred"]))
    ]
    products = found["products"]
    rows.append(("of these, the products with 100 probes", f"{products:.2f}", f"{products / found['copy']:.2f}x"))
    rows.append(("plain copy of the same bytes", f"{found['copy']:.2f}", "1.00x"))
    note = (
        f"D = {HIDDEN}, float16, response scores; {2 * pairs * HIDDEN / 2**30:.2f} GiB of pair vectors. Goal: 1x, "
        "which a hundred products for each number that is read keep out of a core's reach."
    )
    return Results("Scoring", ("what", "processor-seconds", "against the copy"), tuple(rows), note)


def _index(folder: Path, ids: int) -> Any:
    from tests.benchmarks.pages import Results

    child("make_index", folder, ids)
    found = child("index", folder, ids)
    rows = (
        ("opening the store", f"{found['open']:.1f} s"),
        ("finding all ids", f"{found['find']:.1f} s"),
        (f"adding a shard of {SHARD} to it, with its files", f"{1000 * found['add']:.0f} ms"),
        ("memory of the index, open", f"{found['bytes']:.0f} bytes an id"),
        ("memory at most while opening", f"{found['most']:.0f} bytes an id"),
    )
    note = (
        f"{ids:,} ids in shards of 100,000. 100,000,000 pairs are ten times that: {found['open'] * 10:.0f} s to open, "
        f"{found['bytes'] * ids * 10 / 2**30:.1f} GiB; with `--shard 1/100` each job's own part has 1,000,000."
    )
    return Results("The store's index", ("what", "takes"), rows, note)


def _resuming(folder: Path, pairs: int) -> Any:
    from tests.benchmarks.pages import Results

    child("stored", folder, pairs)
    found = child("resume", folder, pairs)
    rows = (
        (
            "startup: until the first vector could be computed",
            f"{found['startup']:.1f}",
            f"{found['startup_wall']:.1f}",
        ),
        ("scores and audit.json", f"{found['rest']:.1f}", f"{found['rest_wall']:.1f}"),
    )
    note = (
        f"{pairs:,} stored pairs (D = {found['hidden']:.0f}; checking 1 GB of vectors adds about a second), a file of "
        f"{found['megabytes']:.0f} MB, Python and the model loaded before. "
        f"Most memory: {found['most'] / 2**20:.0f} MiB, of it {found['begun'] / 2**20:.0f} at the start. Goal: 10 s."
    )
    return Results("A rerun audit", ("what", "processor-seconds", "seconds by the clock"), rows, note)


def _memory(folder: Path, pairs: int) -> Any:
    from tests.benchmarks.pages import Results

    sizes = [pairs // 50, pairs // 10, pairs // 5 * 2]
    found = [child("audit", folder, size) for size in sizes]
    rows = [
        (f"{size:,}", *(f"{one[key] / 2**20:.0f}" for key in ("begun", "read", "most")), f"{one['spent']:.0f}")
        for size, one in zip(sizes, found, strict=True)
    ]
    read, most = ((found[-1][key] - found[0][key]) / (sizes[-1] - sizes[0]) for key in ("read", "most"))
    note = (
        "A whole audit of a JSONL file: read, tokenized, stored, scored for one probe, flagged, manifests and report "
        "written; drawn vectors stand in for M0's, whose passes take the same memory however many pairs there are. "
        f"From the smallest to the largest: **{most:.0f} bytes a pair**, of it {read:.0f} once all is read. "
        "Goal: 1,000."
    )
    columns = ("pairs", "MiB before", "MiB once read", "MiB at most", "processor-seconds")
    return Results("Memory of an audit", columns, tuple(rows), note)


def child(step: str, folder: Path, pairs: int, tree: Path | None = None) -> dict[str, float]:
    """What ``step`` prints, in a process of its own with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree or Path(__file__).resolve().parents[2])}
    command = [sys.executable, str(steps.__file__), step, str(folder), str(pairs)]
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
