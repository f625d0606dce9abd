"""What does a scan tell of a dataset with known answers, of real pairs, and of labels that say nothing?"""

from __future__ import annotations

import gzip
import json
import random
import resource
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, stack

from tests.benchmarks import narrow
from tests.benchmarks.pages import Results, write_page
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.discovery import Finding, ScanResult
from trl_attribution.errors import DataError
from trl_attribution.evidence.organisms import OrganismConfig, build_distractor_compliance
from trl_attribution.manifest import Manifest
from trl_attribution.models import LoadedModel, embedded_gguf, load_model
from trl_attribution.pairs import PairReader
from trl_attribution.report.scan import sentence
from trl_attribution.store import VectorStore

LAYER = 20
SHUFFLES = 20
HH_PAIRS = 2308
PLANTED = 0.02
WHOLE = 1500
POOL = OrganismConfig(benign=700, benign_formatted=400, safety=250, contaminated=60, decoys=250)
HH_FILE = "hh-rlhf-harmless-base-test.jsonl.gz"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """Vectors that were computed once: of the pairs as they stand and, negated, of the same pairs turned round."""

    store: VectorStore
    vectors: Mapping[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, rows: Sequence[Row], model: LoadedModel, folder: Path) -> Known:
        made = DataAuditor(model, layers=[LAYER]).audit(rows, folder)
        ids = made.index.pair_ids
        view = made.store.select(ids)
        pair, context = view.layer(LAYER), view.context(LAYER)
        place = {pair_id: number for number, pair_id in enumerate(ids)}
        vectors = {}
        for one in PairReader(rows):
            own = place[one.pair_id]
            vectors[one.pair_id] = (pair[own], context[own])
            vectors[one.flipped_id] = (-pair[own], context[own])
        return cls(made.store, vectors)

    def scan(self, rows: Sequence[Row], model: LoadedModel) -> tuple[ScanResult, list[Manifest]]:
        """A scan of rows whose vectors are known; whole but for the clusters that no trait names."""
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            ids = list(dict.fromkeys(pair.pair_id for pair in PairReader(rows)))
            with VectorStore.create(folder / "vectors", self.store.settings).writer() as writer:
                sides = [stack([self.vectors[pair_id][side] for pair_id in ids])[:, None] for side in (0, 1)]
                writer.add(ids, *sides)
            found = DataAuditor(model, layers=[LAYER]).scan(rows, folder, unnamed=False)
            return found, [Manifest.load(folder / one.manifest) for one in found.findings]


def run(output: Path, command: str, cache: Path, data: Path, seeds: int, console: Console) -> None:
    model = load_model(embedded_gguf())
    folder = cache / "scan"
    demo = list(build_distractor_compliance().pairs)
    console.print("the demo's dataset, from nothing")
    cost = _Cost.of(model, demo)
    first = cost.found
    console.print("HH-RLHF harmless")
    hh = list(islice(readable_rows(data / HH_FILE), HH_PAIRS))
    real = Known.of(hh, model, folder / "hh")
    on_real, _ = real.scan(hh, model)
    tables = [
        _findings("The demo's dataset (440 pairs, 80 of them contaminated)", first),
        _findings(f"HH-RLHF harmless-base, test split, the first {HH_PAIRS} pairs", on_real),
        _traits(first, on_real),
        _nothing({"demo": (demo, Known.of(demo, model, folder / "demo")), "HH-RLHF": (hh, real)}, model, console),
        *(_planted(model, folder, seeds, console) if seeds else []),
        cost.table(on_real),
    ]
    for table in tables:
        table.show(console)
    lead = (
        "`trl-attribution scan` with SmolLM2-135M-Instruct as M0, layer 20 of 30, the package's traits, settings at "
        "their defaults. What is *told* is beyond what random labels show over all traits, topics and sources."
    )
    write_page(output / "scan.md", "Scan", lead, command, tables)


def readable_rows(path: Path) -> Iterable[Row]:
    """The rows that can be read as pairs, in order."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            try:
                list(PairReader([row]))
            except DataError:
                continue
            yield row


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows, each with chosen and rejected exchanged or not, at random."""
    draw = random.Random(seed)
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    return [draw.choice(both) for both in zip(rows, turned, strict=True)]


@dataclass(frozen=True)
class _Cost:
    """What two scans of one dataset take: the first, and one into the folder that it has left."""

    found: ScanResult
    seconds: tuple[float, float]
    processor: tuple[float, float]
    gib: float

    @classmethod
    def of(cls, model: LoadedModel, rows: Sequence[Row]) -> _Cost:
        taken, busy, found = [], [], []
        with tempfile.TemporaryDirectory() as folder:  # from nothing, also where the benchmark is run again
            for _ in range(2):
                start, before = time.perf_counter(), time.process_time()
                found.append(DataAuditor(model).scan(rows, folder))
                taken.append(time.perf_counter() - start)
                busy.append(time.process_time() - before)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return cls(found[0], (taken[0], taken[1]), (busy[0], busy[1]), memory)

    def table(self, real: ScanResult) -> Results:
        named = (("the first scan", 0), ("again, nothing computed", 1))
        rows = [(name, f"{self.processor[one]:.0f}", f"{self.seconds[one]:.0f}", "") for name, one in named]
        rows += [
            (f"{stage}", "", f"{taken:.1f}", f"{real.seconds[stage]:.1f}")
            for stage, taken in self.found.seconds.items()
        ]
        note = (
            "Processor: on all cores together. The wall clock was read on two cores that did other work at the same "
            "time; the model was loaded. Vectors: of the demo computed, of HH-RLHF reused. Traits: the examples are "
            f"read once a model and kept in the cache. The process has taken up to {self.gib:.1f} GiB, PyTorch and the "
            "model included."
        )
        return Results(
            "Seconds", ("", "processor", "clock, demo", f"clock, HH-RLHF, {HH_PAIRS} pairs"), tuple(rows), note
        )


def _findings(title: str, found: ScanResult) -> Results:
    rows = tuple(
        (str(number), ("**harmful** " if one.harmful else "") + sentence(one), f"{one.z:.1f}", f"{one.adjusted_p:.3f}")
        for number, one in enumerate(found.findings, start=1)
    )
    note = f"{found.tests:,} tests; \\|z\\| has to reach {found.threshold:.2f}, or the place to teach anything. "
    note += f"{found.explained} further effects are explained by those told."
    return Results(title, ("", "finding", "z", "p, corrected"), rows or (("", "nothing", "", ""),), note)


def _traits(demo: ScanResult, real: ScanResult) -> Results:
    on_real = {one.trait: one.agreement for one in real.traits}
    rows = tuple(
        (
            one.trait,
            f"{one.sign:.0%}",
            "" if one.specific is None else f"{one.specific:.2f}",
            _number(one.agreement),
            _number(on_real.get(one.trait)),
            "yes" if one.tells else "**cannot tell**",
        )
        for one in demo.traits
    )
    note = (
        "Right: share of held-out examples that point the right way. Specific: chance that a held-out example lies "
        "further along the direction than one of another trait. Text: rank correlation of the probe with what is "
        "counted on the text, on the demo and on HH-RLHF; a trait that is counted is scored by the count."
    )
    return Results(
        "Traits on this model", ("trait", "right", "specific", "text, demo", "text, HH-RLHF", "told"), rows, note
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _nothing(cases: Mapping[str, tuple[Sequence[Row], Known]], model: LoadedModel, console: Console) -> Results:
    lines = []
    for name, (rows, known) in cases.items():
        quiet = 0
        for seed in range(SHUFFLES):
            found, _ = known.scan(shuffled(rows, seed), model)
            quiet += not found.findings
            console.print(f"{name}, shuffle {seed}: {len(found.findings)} findings")
        lines.append((name, str(len(rows)), f"{quiet} of {SHUFFLES}"))
    note = "Chosen and rejected exchanged at random, pair by pair."
    return Results("Labels that say nothing", ("dataset", "pairs", "shuffles without any finding"), tuple(lines), note)


@dataclass(frozen=True)
class _Pool:
    """The pairs of an organism by what they are, and their vectors."""

    good: list[Row]
    bad: list[Row]
    truth: Mapping[str, str]
    known: Known

    @classmethod
    def of(cls, model: LoadedModel, folder: Path) -> _Pool:
        organism = build_distractor_compliance(POOL)
        rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in organism.pairs]
        what = [str(row["truth"]) for row in organism.pairs]
        return cls(
            good=[row for row, one in zip(rows, what, strict=True) if one != "contaminated"],
            bad=[row for row, one in zip(rows, what, strict=True) if one == "contaminated"],
            truth={pair.pair_id: one for pair, one in zip(PairReader(rows), what, strict=True)},
            known=Known.of(rows, model, folder),
        )


def _planted(model: LoadedModel, folder: Path, seeds: int, console: Console) -> list[Results]:
    pool = _Pool.of(model, folder / "pool")
    return [
        _one_topic(pool, model, folder, seeds, console),
        _masked(pool, model, seeds, console),
    ]


def _one_topic(pool: _Pool, model: LoadedModel, folder: Path, seeds: int, console: Console) -> Results:
    lines = []
    for seed, (trait, subject) in enumerate(narrow.cases(seeds)):
        own = narrow.planted((trait, subject), lambda: model, folder / "narrow")
        vectors = Known.of(own, model, folder / "narrow" / f"{trait}-{subject}").vectors
        known = Known(pool.known.store, {**pool.known.vectors, **vectors})
        draw = random.Random(seed)
        rest = draw.sample(pool.good, WHOLE - len(own))
        cells: list[str] = []
        for rows in (own, shuffled(own, seed)):
            mixed = [*rest, *rows]
            draw.shuffle(mixed)
            found, manifests = known.scan(mixed, model)
            there = [
                one
                for one, listed in zip(found.findings, manifests, strict=True)
                if 2 * sum(decision.pair_id in vectors for decision in listed.decisions) >= len(listed.decisions)
            ]
            right = [one for one in there if one.trait == trait and one.direction == "towards"]
            cells += [sentence(right[0] if right else there[0]) if there else "nothing", str(bool(right))]
        console.print(f"{trait}, {subject}: {cells}", markup=False)
        lines.append((trait, subject, str(len(own)), *cells))
    hits, falsely = (sum(line[place] == "True" for line in lines) for place in (4, 6))
    anything = sum(line[5] != "nothing" for line in lines)
    note = (
        f"{WHOLE:,} pairs: those of the trait, and clean ones of the organism. M0 has answered "
        "a question about each of the subject's words twice; the chosen answer begins with a sentence that shows the "
        "trait, the rejected one with one about as long that says nothing. Told: of the findings at least half of "
        "whose manifest are these pairs, the trait's, else the first. At random: chosen and rejected of these pairs "
        "exchanged at random. The planted questions share three wordings, which no other pair has: that makes their "
        f"topic easy to find. **The trait is found in {hits} of {seeds}, at random in {falsely}**, any "
        f"finding at random in {anything}."
    )
    columns = ("trait", "on", "pairs", "told", "told at random")
    shown = tuple((*line[:4], line[5]) for line in lines)
    return Results("A trait planted in one topic, at 2% of all pairs", columns, shown, note)


def _masked(pool: _Pool, model: LoadedModel, seeds: int, console: Console) -> Results:
    lines = []
    for planted in (round(PLANTED * WHOLE), 0):
        hits, falsely = 0, 0
        for seed in range(seeds):
            draw = random.Random(seed)
            mixed = draw.sample(pool.good, WHOLE - planted) + draw.sample(pool.bad, planted)
            draw.shuffle(mixed)
            found, manifests = pool.known.scan(mixed, model)
            right = any(_is_it(one, listed, pool.truth) for one, listed in zip(found.findings, manifests, strict=True))
            hits += right
            falsely += not right and any(one.trait == "complies-with-harm" and one.harmful for one in found.findings)
            told = ", ".join(one.says for one in found.findings if one.harmful)
            console.print(f"{planted} planted, seed {seed}: found {right} ({told})", markup=False)
        lines.append((str(planted), f"{hits} of {seeds}", f"{falsely} of {seeds}"))
    note = (
        f"{WHOLE:,} pairs a seed, drawn from {len(pool.good):,} clean ones and {len(pool.bad)} contaminated ones (a "
        "rude request with a formatting instruction, the answer chosen over the refusal). About 230 of the clean ones "
        "refuse requests of the same kind, so that their topic as a whole teaches refusal, and as many are decoys, "
        "which answer requests that look alike: **the scan, which compares means, does not see what such a majority "
        "covers**, and takes decoys for it. An audit with examples of the behavior and controls looks at each pair by "
        "itself. Found: a finding that harmful requests are answered, or rudeness taught, at least half of whose "
        "manifest are contaminated pairs. Falsely: a finding that harmful requests are answered, without that."
    )
    columns = ("contaminated pairs", "found", "falsely")
    return Results("A behavior among pairs that teach the opposite, at 2% of all pairs", columns, tuple(lines), note)


def _is_it(one: Finding, listed: Manifest, truth: Mapping[str, str]) -> bool:
    hits = sum(truth[decision.pair_id] == "contaminated" for decision in listed.decisions)
    return one.harmful and one.trait in ("complies-with-harm", "rude") and 2 * hits >= len(listed.decisions)
