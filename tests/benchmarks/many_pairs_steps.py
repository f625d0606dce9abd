"""The steps of many_pairs.py, each in a process of its own that prints what it measured as JSON.

Of the checkout nothing is imported by name but what older ones have too: `prepare` runs in them as well.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXT = "a and at bread by can come could day do find for from garden go have help in is it list made me no of out"
LAYER, HIDDEN, ROUNDS, SHARD = 20, 576, 3, 512


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
    target = np.empty(max(path.stat().st_size for path in shards), dtype=np.uint8)

    def copy() -> None:
        for path in shards:
            mapped = np.memmap(path, dtype=np.uint8, mode="r")
            vectors = mapped[len(mapped) // 2 :]  # of one kind: as many bytes as the other kind's
            np.copyto(target[: len(vectors)], vectors)

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
    return {name: median(values) for name, values in taken.items()}


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


def median(values: Any) -> float:
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
