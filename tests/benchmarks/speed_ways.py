"""The ways to compute pair vectors that the speed benchmark compares, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.benchmarks.gauges import one_by_one, useful_flops
from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.models import embedded_gguf, load_model, load_tokenizer
from trl_attribution.pairs import EncodedPair, Encoding, PairReader, Reading, RowFault, encode_pairs

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"

Compute = Callable[[Sequence[EncodedPair]], tuple[Tensor, Tensor]]
"""Pair and context vectors [n, D] of one layer."""


@dataclass(frozen=True)
class Way:
    """One way to compute pair vectors."""

    name: str
    dtype: str = "auto"
    one_by_one: bool = False
    workers: int | None = None
    environment: tuple[tuple[str, str], ...] = ()
    """Variables that its process has set."""


@dataclass(frozen=True)
class Task:
    """Pairs that every way computes: ``[start:stop]`` of the first ``pairs``."""

    pairs: int
    layer: int
    start: int
    stop: int


@dataclass(frozen=True)
class Done:
    """What a way did with a task."""

    seconds: float
    pair: NDArray[np.float32]
    context: NDArray[np.float32]
    dtype: str
    flops: float = 0.0
    """Useful work. Zero where it is not counted: one by one."""
    tokens: int = 0


class OwnProcess:
    """The process of one way. It lives as long as the benchmark, as that of an audit does, and waits for its turn."""

    def __init__(self, way: Way, executor: ProcessPoolExecutor) -> None:
        self.way = way
        self._executor = executor

    def compute(self, task: Task) -> Done:
        return self._executor.submit(_compute, self.way, task).result()


@contextmanager
def own_processes(ways: Sequence[Way]) -> Iterator[list[OwnProcess]]:
    """A process for each way: what another way left behind in the memory of its process slows down none."""
    with ExitStack() as stack:
        yield [OwnProcess(way, stack.enter_context(process(way.environment))) for way in ways]


def process(environment: Sequence[tuple[str, str]] = ()) -> ProcessPoolExecutor:
    """A process with these variables set, and as many threads of torch as this one."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, _prepare, (torch.get_num_threads(), environment))


def read_pairs(count: int) -> list[EncodedPair]:
    """The first ``count`` pairs that DPO training would keep."""
    pairs = list(islice(PairReader(DATA, Reading(on_bad_row="skip")), 2 * count))
    encoded = encode_pairs(pairs, load_tokenizer(embedded_gguf()), Encoding())
    return [one for one in encoded if not isinstance(one, RowFault)][:count]


def _prepare(threads: int, environment: Sequence[tuple[str, str]]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Loaded:
    """A way ready to run, in its process."""

    pairs: list[EncodedPair]
    dtype: torch.dtype
    compute: Compute
    engine: ActivationEngine | None


@cache
def _loaded(way: Way, pairs: int, layer: int) -> _Loaded:
    """Load the model once, and run the longest pair once (thread pools, self-check)."""
    model = load_model(embedded_gguf(), dtype=way.dtype).model
    dtype = next(model.parameters()).dtype
    encoded = read_pairs(pairs)
    if way.one_by_one:
        ready = _Loaded(encoded, dtype, lambda some: one_by_one(model, some, layer), None)
    else:
        engine = ActivationEngine(model, ActivationConfig(layers=(layer,), workers=way.workers))
        ready = _Loaded(encoded, dtype, _from_engine(engine), engine)
    ready.compute([max(encoded, key=_longest_side)])
    return ready


def _longest_side(pair: EncodedPair) -> int:
    return max(len(side.prompt_ids) + len(side.response_ids) for side in (pair.chosen, pair.rejected))


def _from_engine(engine: ActivationEngine) -> Compute:
    def compute(pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
        found = engine.pair_vectors(pairs)
        return found.pair[:, 0], found.context[:, 0]

    return compute


@torch.no_grad()
def _compute(way: Way, task: Task) -> Done:
    loaded = _loaded(way, task.pairs, task.layer)
    chunk = loaded.pairs[task.start : task.stop]
    before = loaded.engine.stats.tokens_computed if loaded.engine else 0
    start = time.perf_counter()
    pair, context = loaded.compute(chunk)
    seconds = time.perf_counter() - start
    tokens = loaded.engine.stats.tokens_computed - before if loaded.engine else 0
    return Done(
        seconds,
        pair.float().numpy(),
        context.float().numpy(),
        str(loaded.dtype).removeprefix("torch."),
        useful_flops(loaded.engine, chunk, tokens) if loaded.engine else 0.0,
        tokens,
    )
