"""A million pairs without a model: reading, storing, scoring, finding and resuming, in processor-seconds.

Every step runs in a process of its own, and where two ways are compared they take turns, so that what else the machine
does falls on both. Vectors are random and come from the store's own writer; texts are short and drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXT = "a and at bread by can come could day do find for from garden go have help in is it list made me no of out"
LAYER, HIDDEN, ROUNDS, SHARD = 20, 576, 3, 512
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
        now = _median(one[key] for one in found["now"])
        then = f"{_median(one[key] for one in found['then']) / now:.2f}x" if against else "not measured"
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
    command = [sys.executable, __file__, step, str(folder), str(pairs)]
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- the steps, each in a process of its own


def prepare(folder: Path, _pairs: int) -> dict[str, float]:
    """Microseconds a pair of what stands before the model; runs in older checkouts too, by names that they share."""
    import torch

    from trl_attribution import DataAuditor
    from trl_attribution.activations import ActivationEngine, PairVectors
    from trl_attribution.pairs import PairReader

    def drawn(engine: ActivationEngine, some: list[Any], *_: object) -> PairVectors:
        return PairVectors(*(torch.ones(len(some), len(engine.layers), 32) for _ in range(2)))

    ActivationEngine.pair_vectors = drawn  # type: ignore[method-assign, assignment]
    auditor = DataAuditor(str(folder / "tiny"), layers=[1], dtype="float32")
    found = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for path in filter(Path.exists, (folder / f"{name}.jsonl" for name in ("text", "messages", "transcripts"))):
            name, ids = path.stem, [pair.pair_id for pair in PairReader(path)]
            few = Path(scratch) / path.name
            few.write_text("".join(path.read_text().splitlines(keepends=True)[:300]))
            auditor.audit(few, Path(scratch) / f"few-{name}")  # what is loaded on first use
            read = spent(lambda path=path: [pair.pair_id for pair in PairReader(path)])
            whole = spent(lambda path=path, name=name: auditor.audit(path, Path(scratch) / name))
            found[f"rows, checks and ids, {name}"] = 1e6 * read / len(ids)
            found[f"a whole audit, {name}"] = 1e6 * whole / len(ids)
    return found


def line(folder: Path, pairs: int) -> dict[str, float]:
    from trl_attribution.pairs import PairReader
    from trl_attribution.scoring import score_view, write_scores
    from trl_attribution.store import VectorStore

    write_texts(folder / "line.jsonl", pairs)
    survey_pairs = lambda path: [pair.pair_id for pair in PairReader(path)]  # noqa: E731
    survey_pairs(folder / "line.jsonl")
    ids: list[str] = []
    found = {"read": spent(lambda: ids.extend(survey_pairs(folder / "line.jsonl")))}
    store = VectorStore.create(folder / "line-vectors", _settings())
    found["store"] = spent(lambda: fill(store, ids))
    probe = _probe(0)
    score = lambda: write_scores(folder / "s.parquet", score_view(store.view(), [probe], "response"), ["x"] * pairs)  # noqa: E731
    score()  # what is loaded on first use
    found["score"] = spent(score)
    return found


def audit(folder: Path, pairs: int) -> dict[str, float]:
    """A whole audit whose vectors are drawn."""
    import torch

    from trl_attribution.activations.engine import ActivationEngine, PairVectors
    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.models import load_model
    from trl_attribution.probes.probe import Probe

    def drawn(engine: ActivationEngine, some: list[Any], *_: object) -> PairVectors:
        vectors = torch.randn(len(some), len(engine.layers), engine.width)
        return PairVectors(vectors, vectors.flip(0))

    ActivationEngine.pair_vectors = drawn  # type: ignore[method-assign, assignment]
    save_model(folder / "m0")
    loaded = load_model(folder / "m0", dtype="float32")
    hidden = loaded.model.config.hidden_size
    own = {name: torch.randn(24, 1, hidden) for name in ("prompt_vectors", "contexts", "example_vectors")}
    probe = Probe("probe", (1,), torch.randn(1, hidden), 1, loaded.fingerprint, **own, example_prompts=torch.arange(24))
    auditor = DataAuditor(loaded, probes=[probe], dtype="float32")
    auditor.audit(write_texts(folder / "warm.jsonl", 300), folder / f"warm-{pairs}")  # what is loaded on first use
    begun, first = _most(), _processor()
    once_read: list[int] = []

    def tell(stage: str, _done: int, _total: int) -> None:
        if stage == "vectors" and not once_read:
            once_read.append(_most())

    auditor.audit(write_texts(folder / "audited.jsonl", pairs), folder / f"audit-{pairs}", on_progress=tell)
    return {"begun": begun, "read": once_read[0], "most": _most(), "spent": _processor() - first}


def make(folder: Path, pairs: int) -> dict[str, float]:
    from trl_attribution.store import VectorStore

    fill(VectorStore.create(folder / "vectors", _settings()), [f"{number:032x}" for number in range(pairs)], 10_000)
    return {}


def score(folder: Path, pairs: int) -> dict[str, float]:
    import numpy as np
    import torch

    from trl_attribution.scoring import score_view
    from trl_attribution.store import VectorStore

    store = VectorStore.open(folder / "vectors")
    shards = sorted((folder / "vectors" / "shards").glob("*"))
    probes = [_probe(number) for number in range(100)]
    target = np.empty(2 * HIDDEN * 10_000, dtype=np.uint8)

    def copy() -> None:
        for path in shards:
            mapped = np.memmap(path, dtype=np.uint8, mode="r")
            np.copyto(target, mapped[-2 * len(target) : -len(target)])

    rows, directions = torch.randn(2048, HIDDEN), torch.randn(HIDDEN, 100)

    def products() -> None:
        for _ in range(pairs // len(rows)):
            rows @ directions

    ways = {
        "copy": copy,
        "products": products,
        "one": lambda: score_view(store.view(), probes[:1], "response"),
        "hundred": lambda: score_view(store.view(), probes, "response"),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            taken[name].append(spent(way))
    return {name: _median(values) for name, values in taken.items()}


def make_index(folder: Path, pairs: int) -> dict[str, float]:
    import numpy as np
    import torch

    from trl_attribution.store import StoreSettings, VectorStore
    from trl_attribution.store.shards import write_shard

    settings, chance = StoreSettings("bench", (LAYER,), 1), random.Random(0)
    store = VectorStore.create(folder / "ids", settings)
    ones = torch.ones(100_000, 1, 1).half()
    (store.path / "shards").mkdir()
    for number in range(pairs // 100_000):  # not through a writer, which would sort all ids each time
        ids = np.frombuffer(chance.randbytes(16 * len(ones)), dtype="S16")
        write_shard(store.path / "shards" / f"main-{number:06d}.safetensors", ids, ones, ones, settings.digest)
    return {}


def index(folder: Path, pairs: int) -> dict[str, float]:
    import torch

    from trl_attribution.store import VectorStore

    chance, ones = random.Random(1), torch.ones(SHARD, 1, 1)
    begun = _anonymous()
    opened: list[Any] = []
    found = {"open": spent(lambda: opened.append(VectorStore.open(folder / "ids")))}
    found["bytes"] = (_anonymous() - begun) / pairs
    found["most"] = (_most() - begun) / pairs
    ids = _drawn(100_000, chance)
    found["find"] = spent(lambda: opened[0].holds(ids)) * pairs / len(ids)
    few = [_drawn(SHARD, chance) for _ in range(20)]
    with opened[0].writer() as writer:
        found["add"] = spent(lambda: [writer.add(ids, ones, ones) for ids in few]) / len(few)
    return found


def stored(folder: Path, pairs: int) -> dict[str, float]:
    """An audit folder of which every vector is stored: what an audit would have left, its vectors apart."""
    import numpy as np
    import pyarrow as pa

    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.audit.claim import FolderClaim
    from trl_attribution.pairs import PairReader
    from trl_attribution.pairs.dataset_pass import DatasetPass, PairIndex, survey
    from trl_attribution.pairs.kept_pass import keep_pass, pass_key

    write_texts(folder / "many.jsonl", pairs)
    save_model(folder / "m0")
    auditor = DataAuditor(str(folder / "m0"), layers=[1], dtype="float32")
    reader = PairReader(folder / "many.jsonl")
    key = pass_key(reader, auditor.model.encoder, auditor.config.encoding)
    assert key is not None
    seen: list[str] = []

    class Noting:
        skipped = ()

        def __iter__(self) -> Any:
            for pair in reader:
                seen.append(pair.pair_id)
                yield pair

    found = survey(Noting())  # type: ignore[arg-type]  # anything that iterates as a PairReader does
    ids = tuple(seen)
    sources = pa.array(["web"] * len(ids)).dictionary_encode()
    index = PairIndex(ids, np.arange(len(ids)), sources)
    data = DatasetPass(found, index, [], 60 * len(ids), 60, None, 100, 0, {}, ())
    audit = folder / "audit"
    settings = auditor.store_settings(auditor.new_engine())
    store = FolderClaim(audit, audit / "vectors", settings, found, reader.source.name).take()
    fill(store, list(ids), 10_000)
    keep_pass(audit, key, data)
    return {}


def resume(folder: Path, pairs: int) -> dict[str, float]:
    import torch

    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.models import load_model
    from trl_attribution.probes.probe import Probe

    loaded = load_model(folder / "m0", dtype="float32")
    hidden = loaded.model.config.hidden_size
    probe = Probe("probe", (1,), torch.randn(1, hidden), 1, loaded.fingerprint)
    auditor = DataAuditor(loaded, layers=[1], probes=[probe], dtype="float32")
    auditor.new_engine()
    begun = _anonymous()
    clock: dict[str, tuple[float, float]] = {}

    def tell(stage: str, done: int, _total: int) -> None:
        clock.setdefault(stage, (_processor(), time.perf_counter()))

    start = _processor(), time.perf_counter()
    auditor.audit(folder / "many.jsonl", folder / "audit", results=False, on_progress=tell)
    end = _processor(), time.perf_counter()
    assert "read" not in clock
    middle = clock["vectors"]
    return {
        "startup": middle[0] - start[0],
        "startup_wall": middle[1] - start[1],
        "rest": end[0] - middle[0],
        "rest_wall": end[1] - middle[1],
        "hidden": hidden,
        "megabytes": (folder / "many.jsonl").stat().st_size / 1e6,
        "begun": begun,
        "most": _most(),
    }


# ---- what the steps share


def write_texts(path: Path, pairs: int, chat: bool = False) -> Path:
    chance = random.Random(0)

    phrases = [" ".join(chance.choices(TEXT.split(), k=9)) for _ in range(1000)]
    with path.open("w") as file:
        for number in range(pairs):
            row = {
                "prompt": f"{number} {chance.choice(phrases)} and so on",
                "chosen": f"{chance.choice(phrases)} yes",
                "rejected": f"{chance.choice(phrases)} no",
                "source": "web",
            }
            if chat:
                roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
                row |= {name: [{"role": role, "content": row[name]}] for name, role in roles.items()}
            file.write(json.dumps(row) + "\n")
    return path


def save_real_tokenizer(folder: Path) -> None:
    """A tiny model with the tokenizer of a real one."""
    from tests.tiny import build_tiny_model
    from trl_attribution.models import embedded_gguf, load_model

    tokenizer, model = load_model(embedded_gguf()).tokenizer, build_tiny_model("llama")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_tokenizer(folder: Path) -> None:
    from tests.tiny import build_tiny_tokenizer

    build_tiny_tokenizer().save_pretrained(folder)


def save_model(folder: Path) -> None:
    from tests.tiny import build_tiny_model

    build_tiny_model("llama").save_pretrained(folder)
    save_tokenizer(folder)


def fill(store: Any, ids: list[str], size: int = SHARD) -> None:
    """Store the same random vectors for every shard."""
    import torch

    vectors = torch.randn(size, len(store.settings.layers), store.settings.hidden_size)
    with store.writer() as writer:
        for start in range(0, len(ids), size):
            some = ids[start : start + size]
            writer.add(some, vectors[: len(some)], vectors[: len(some)])


def _drawn(count: int, chance: random.Random) -> list[str]:
    """Ids as they come, in no order."""
    text = chance.randbytes(16 * count).hex()
    return [text[start : start + 32] for start in range(0, len(text), 32)]


def spent(work: Callable[[], object]) -> float:
    """Processor-seconds of ``work``."""
    before = _processor()
    work()
    return _processor() - before


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def _most() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _median(values: Any) -> float:
    ordered = sorted(values)
    return float(ordered[len(ordered) // 2])


def _settings() -> Any:
    from trl_attribution.store import StoreSettings

    return StoreSettings("bench", (LAYER,), HIDDEN)


def _probe(number: int) -> Any:
    import torch

    from trl_attribution.models.identity import ModelFingerprint
    from trl_attribution.probes.probe import Probe

    vector = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(number))
    return Probe(
        f"probe-{number}", (LAYER,), vector, LAYER, ModelFingerprint(config="b", weights="b", chat_template="b")
    )


STEPS = {step.__name__: step for step in (prepare, line, audit, make, score, make_index, index, stored, resume)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", type=int)
    chosen = parser.parse_args()
    print(json.dumps(STEPS[chosen.step](chosen.folder, chosen.pairs)))
