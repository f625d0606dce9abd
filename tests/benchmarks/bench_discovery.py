"""Does discovery find what was planted, does it keep quiet where nothing was, and what does it cost?

Run with ``python -m tests.benchmarks.bench_discovery [real] [seeds] [scale]``; without a name all three are run, and
docs/benchmarks/discovery.md is written.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from tests.benchmarks.discovery_real import LAYER, Labels, RealCase, flipped_audit, real_case
from tests.benchmarks.pages import Results, write_page
from tests.discovery_cases import build_case
from trl_attribution.discovery import (
    AuditedPairs,
    ChangeVectors,
    DiscoveryConfig,
    StoredDiscovery,
    discover_pairs,
    discover_prompts,
)
from trl_attribution.discovery.evidence import scores_of
from trl_attribution.discovery.similarity import Items
from trl_attribution.pairs.lookup import pairs_at_rows
from trl_attribution.report.discovery import discovery_view
from trl_attribution.store import VectorStore

PARTS = ("real", "seeds", "scale")
SIZES = (
    "10000x500x1024",
    "40000x500x1024",
    "10000x2000x1024",
    "40000x2000x1024",
    "10000x10000x1024",
    "10000x2000x4096",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="NxPxD", help="scale: pairs, prompts, hidden size")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print_step(*map(int, options.step))
        return
    console = Console(width=120)
    torch.set_num_threads(1)
    parts = options.parts or PARTS
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    tables: list[Results] = []
    with tempfile.TemporaryDirectory() as folder:
        if "real" in parts:
            tables += real(Path(folder), options.seeds, console)
    if "seeds" in parts:
        tables.append(seeds(options.seeds))
    if "scale" in parts:
        tables.append(scale(options.sizes))
    for table in tables:
        table.show(console)
    if set(parts) == set(PARTS):
        command = "OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_discovery"
        write_page(options.output / "discovery.md", "Discovery", LEAD, command, tables)


LEAD = (
    "`trl-attribution discover` on datasets whose answers are known. **No model was trained for this page.** The real "
    "check uses the real activations of SmolLM2-135M-Instruct on composed texts: responses before and after are the "
    "desired and the undesired responses of the organisms' held-out prompts, as they would be if training had taught "
    "both behaviors completely. It shows that the method separates two behaviors that are there; it does not show how "
    "faint a change of a trained model may be."
)


def real(folder: Path, count: int, console: Console) -> list[Results]:
    """Two planted behaviors on the embedded model, in both modes; then nothing planted."""
    start = time.perf_counter()
    case = real_case(folder)
    console.print(f"vectors: {time.perf_counter() - start:.0f} s")
    config = DiscoveryConfig(map_pairs=500, top=64)
    read = partial(pairs_at_rows, case.rows, case.audited.reading)
    by_prompts = discover_prompts(case.audited, case.changed, config, read=read)
    by_pairs = discover_pairs(case.audited, config, read=read)
    for found in (by_prompts, by_pairs):
        console.print(discovery_view(found.discovery, 2))
    rows = [
        *_real_rows("prompts", by_prompts, case, case.kinds),
        *_real_rows("pairs", by_pairs, case, case.truths),
    ]
    kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(case.kinds.tolist()).items())
    truths = ", ".join(f"{number} {truth}" for truth, number in Counter(case.truths.tolist()).items())
    note = (
        f"{len(case.rows)} pairs ({truths}) and {len(case.kinds)} prompts ({kinds}). Prompts of `chance` have two good "
        "or bad answers of which a coin said which one was before. Precision at k: share of the pairs of that truth "
        "among the k pairs that score highest for the cluster, k being their number; the truth shown is the one that "
        "the cluster finds best. Without prompts, a dataset's ordinary lessons (better answers, refusals) are clusters "
        "too: they are what it teaches. The contaminated pairs are those of the default organism, decoys included."
    )
    columns = ("mode", "cluster", "words", "effect", "held out +/-", "stability", "truth", "precision at k")
    return [
        Results("Two planted behaviors, SmolLM2-135M-Instruct", columns, tuple(rows), note),
        _agreement(by_prompts, case),
        _quiet(folder, case, count),
    ]


def _real_rows(mode: str, found: StoredDiscovery, case: RealCase, labels: Labels) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for one in found.discovery.clusters:
        values = cluster_scores(case.audited, found, one.cluster)
        truth, precision = best_truth(values, case.truths)
        held = f"{one.towards}/{one.against}"
        words = ", ".join(one.words[:4])
        rows.append(
            (mode, one.cluster, words, f"{one.effect:.3f}", held, f"{one.stability:.2f}", truth, f"{precision:.3f}")
        )
    return rows


def cluster_scores(audited: AuditedPairs, found: StoredDiscovery, cluster: str) -> npt.NDArray[np.float32]:
    """The scores [N] of all pairs for one cluster."""
    from trl_attribution.scoring import context_means

    layers = found.discovery.layers
    with tempfile.TemporaryDirectory() as scratch:
        scores = scores_of(
            audited,
            {cluster: found.vectors[cluster]},
            layers,
            found.discovery.of(cluster).layer,
            context_means(audited.view, layers),
            Path(scratch),
            None,
        )
        return np.array(scores.of(scores.column(cluster)))


def best_truth(values: npt.NDArray[np.float32], truths: Labels) -> tuple[str, float]:
    """The kind of pair that the scores find best, and the precision at its number."""
    order = np.argsort(-values, kind="stable")
    found = {}
    for truth in sorted(set(truths.tolist())):
        wanted = truths == truth
        found[truth] = float(wanted[order[: int(wanted.sum())]].mean())
    best = max(found, key=lambda truth: found[truth])
    return best, found[best]


def _agreement(found: StoredDiscovery, case: RealCase) -> Results:
    from sklearn.metrics import adjusted_rand_score

    predicted = predicted_labels(found, [one.location for one in case.changed.changes])
    value = adjusted_rand_score(case.kinds, predicted)
    table = Counter(zip(case.kinds.tolist(), predicted, strict=True))
    rows = tuple((kind, cluster or "none", str(number)) for (kind, cluster), number in sorted(table.items()))
    note = (
        f"Adjusted Rand index of the clusters with the truth, over all {len(predicted)} prompts: **{value:.3f}**. "
        "Prompts that joined no cluster count as a cluster of their own."
    )
    return Results("Which prompts are in which cluster", ("prompts", "cluster", "number"), rows, note)


def predicted_labels(found: StoredDiscovery, locations: Sequence[str]) -> list[str]:
    """The cluster of each prompt, empty for none, by the members that discovery lists."""
    label = {one.location: cluster.cluster for cluster in found.discovery.clusters for one in cluster.typical_prompts}
    return [label.get(location, "") for location in locations]


def _quiet(folder: Path, case: RealCase, count: int) -> Results:
    """Real vectors of which a coin says which way they point: nothing is taught, whatever structure they have."""
    reported = Counter[str]()
    config = DiscoveryConfig(map_pairs=10, resamples=10)
    items = case.changed.items
    for seed in range(count):
        generator = torch.Generator().manual_seed(1000 + seed)
        signs = torch.randint(0, 2, (len(items), 1, 1), generator=generator) * 2.0 - 1
        changed = ChangeVectors(case.changed.changes, Items(items.vectors * signs, items.contexts), {})
        seeded = DiscoveryConfig(**{**config.to_json(), "seed": seed})
        reported["prompts"] += bool(discover_prompts(case.audited, changed, seeded).discovery.clusters)
        flipped = flipped_audit(case.audited, folder / f"flipped-{seed}", generator)
        reported["pairs"] += bool(discover_pairs(flipped, seeded).discovery.clusters)
    rows = tuple((mode, str(count), str(reported[mode])) for mode in ("prompts", "pairs"))
    note = (
        "The same real vectors with signs drawn by a coin: before and after, or chosen and rejected, are names only. "
        f"Promised: a chance of at most {config.alpha:g} each."
    )
    return Results("Nothing planted, SmolLM2-135M-Instruct", ("mode", "seeds", "seeds with any cluster"), rows, note)


def seeds(count: int) -> Results:
    """Synthetic vectors, two planted behaviors or none, in both modes."""
    from sklearn.metrics import adjusted_rand_score

    found: dict[str, list[float]] = {"prompts": [], "pairs": []}
    precision: dict[str, list[float]] = {"prompts": [], "pairs": []}
    clusters: dict[str, Counter[int]] = {"prompts": Counter(), "pairs": Counter()}
    quiet: Counter[str] = Counter()
    for seed in range(count):
        config = DiscoveryConfig(seed=seed, map_pairs=10, top=200, resamples=10)
        with tempfile.TemporaryDirectory() as folder:
            case = build_case(Path(folder) / "planted", seed)
            audited = AuditedPairs.open(case.folder)
            by_mode = {
                "prompts": discover_prompts(audited, case.changed, config),
                "pairs": discover_pairs(audited, config),
            }
            truths = case.labels.astype(str)
            for mode, one in by_mode.items():
                clusters[mode][len(one.discovery.clusters)] += 1
                for cluster in one.discovery.clusters:
                    precision[mode].append(best_truth(cluster_scores(audited, one, cluster.cluster), truths)[1])
            locations = [change.location for change in case.changed.changes]
            predicted = predicted_labels(by_mode["prompts"], locations)
            found["prompts"].append(adjusted_rand_score(case.prompt_labels, predicted))
            label = dict.fromkeys(case.pair_ids, "")
            for cluster in by_mode["pairs"].discovery.clusters:
                label |= {pair.pair_id: cluster.cluster for pair in cluster.top_pairs[: cluster.pairs_towards]}
            found["pairs"].append(adjusted_rand_score(case.labels, list(label.values())))
            none = build_case(Path(folder) / "none", seed, planted=False)
            audited = AuditedPairs.open(none.folder)
            quiet["prompts"] += bool(discover_prompts(audited, none.changed, config).discovery.clusters)
            quiet["pairs"] += bool(discover_pairs(audited, config).discovery.clusters)
    rows = tuple(
        (
            mode,
            ", ".join(f"{number} in {times}" for number, times in sorted(clusters[mode].items())),
            _spread(found[mode]),
            _spread(precision[mode]),
            f"{quiet[mode]} of {count}",
        )
        for mode in ("prompts", "pairs")
    )
    note = (
        "400 pairs and 120 prompts in a real store: low-rank noise of either sign, 8 topics, a tenth of the pairs and "
        "a quarter of the prompts for each of two behaviors. Mean (least to most). For pairs, those that push towards "
        "a cluster at a false discovery rate of 5% count as its members."
    )
    columns = (
        "mode",
        "clusters found, in seeds",
        "adjusted Rand index",
        "precision at k",
        "nothing planted: seeds with any",
    )
    return Results(f"Synthetic vectors, {count} seeds", columns, rows, note)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "-"


def scale(sizes: Sequence[str]) -> Results:
    """Memory and time, each size in a process of its own."""
    rows = []
    for size in sizes:
        command = [sys.executable, "-m", "tests.benchmarks.bench_discovery", "--step", *size.split("x")]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(tuple(done.stdout.strip().split("|")))
    columns = ("pairs N", "prompts P", "D", "similarity s", "GFLOP/s", "clusters s", "+ MiB", "start MiB")
    return Results("Memory and time", columns, tuple(rows), FORMULA)


FORMULA = (
    "One thread of a machine that others used as well, so times are upper bounds. Similarity is `2 N P (2 D + P)` "
    "floating point operations contextually, `2 N P (D + P)` for response scores; the vectors are read three "
    "times (the mean of the contexts, similarity, scores for the clusters found), and the matrix of N x P is "
    "never held. Clusters: one Ward tree of half of the prompts and 20 of 80% of these. Memory: `16 P D` bytes "
    "for the prompts' vectors (half of them in `start` here) and their unit vectors, `4 P^2` for the cosines of "
    "rows, about `4 P^2` while half of the prompts are clustered (cosines, distances, scipy's copy of these), and "
    "at most two blocks of 256 MiB; what was measured stays below that, and grows with N only by mapped pages of "
    "the store, which the system takes back when it needs them. For P = 10,000, N = 378,000 and D = 4,096 the "
    "formula gives 1.4e14 operations (17 minutes at 133 GFLOP/s, what two cores of the development machine reach "
    "in fp32 when nobody else uses them), 6.2 GB of vectors on disk, and 0.7 + 0.4 + 0.4 + 0.5 = 2.0 GB of "
    "memory; **this size itself was not run**. Without prompts P is `--sample` (4,000). Reading the responses "
    "with M0, and sampling them, come on top: that costs what an audit of as many pairs does."
)


def print_step(pairs: int, prompts: int, hidden: int) -> None:
    """One size: a store on disk, then similarity and clusters."""
    from trl_attribution.discovery.confirming import find_clusters, split_items
    from trl_attribution.discovery.similarity import row_cosines
    from trl_attribution.scoring import context_means

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", _MAKE, folder, str(pairs), str(hidden)], check=True)
        view = VectorStore.open(folder).view()
        items = _planted_items(prompts, hidden, generator)
        import scipy.cluster.hierarchy  # noqa: F401  (so that its memory counts to the start)

        begin = _peak()
        means = context_means(view, [LAYER])
        start = time.perf_counter()
        rows = row_cosines(view, items, [LAYER], "contextual", means)
        middle = time.perf_counter()
        found = find_clusters(rows.cosine.numpy(), split_items(np.arange(prompts), 0), DiscoveryConfig())
        end = time.perf_counter()
    assert found  # without a candidate nothing would be resampled
    rate = 2 * pairs * prompts * (2 * hidden + prompts) / (middle - start) / 1e9
    sizes = (f"{pairs:,}", f"{prompts:,}", f"{hidden:,}")
    times = (f"{middle - start:.1f}", f"{rate:.0f}", f"{end - middle:.1f}")
    print("|".join([*sizes, *times, f"{_peak() - begin:.0f}", f"{begin:.0f}"]))


def _planted_items(prompts: int, hidden: int, generator: torch.Generator) -> Items:
    """Random vectors and contexts, a tenth of them alike."""
    vectors, contexts = (torch.randn(prompts, 1, hidden, generator=generator) for _ in range(2))
    vectors[: prompts // 10] += 3 * torch.randn(hidden, generator=generator)
    contexts[: prompts // 10] += 3 * torch.randn(hidden, generator=generator)
    return Items(vectors, contexts)


def _peak() -> float:
    """The most memory so far in MiB, of this program alone: getrusage would count that of the process it came from."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


_MAKE = """
import sys, torch
from trl_attribution.store import StoreSettings, VectorStore
folder, pairs, hidden = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
generator = torch.Generator().manual_seed(1)
store = VectorStore.create(folder, StoreSettings("bench", (20,), hidden))
with store.writer() as writer:
    for start in range(0, pairs, 2500):
        count = min(2500, pairs - start)
        vectors = (torch.randn(count, 1, hidden, generator=generator) for _ in range(2))
        writer.add([f"{number:032x}" for number in range(start + 1, start + count + 1)], *vectors)
"""


if __name__ == "__main__":
    main()
