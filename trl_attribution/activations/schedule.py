"""Run prompt groups in batches of a token budget; out of memory takes fewer at a time, and smaller ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

import torch

from trl_attribution.activations.packing import GroupActivations, PromptGroup
from trl_attribution.activations.passes import BatchActivations
from trl_attribution.activations.running import is_out_of_memory
from trl_attribution.activations.workers import Workers
from trl_attribution.errors import ModelError

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]
"""Called with the responses done so far and their total."""


@dataclass
class TokenBudget:
    """How many tokens one forward pass may hold; shrinks as memory runs out."""

    tokens: int
    halvings: int = 0

    def halve(self, failed: int) -> None:
        """After a pass of ``failed`` tokens ran out of memory."""
        self.tokens = max(1, min(self.tokens, failed) // 2)
        self.halvings += 1
        logger.warning("out of memory: going on with a token budget of %d", self.tokens)


@dataclass(frozen=True)
class _Part:
    """Some responses of one group: those from ``first`` on."""

    owner: int
    first: int
    group: PromptGroup

    def split(self, size: int) -> list[_Part]:
        """Parts of at most ``size`` responses."""
        responses = self.group.responses
        return [
            _Part(self.owner, self.first + start, PromptGroup(self.group.prompt_ids, responses[start : start + size]))
            for start in range(0, len(responses), size)
        ]


@dataclass(frozen=True)
class _Started:
    batch: list[_Part]
    alone: bool
    """Whether it has all memory to itself."""


def run_in_batches(
    groups: Sequence[PromptGroup], budget: TokenBudget, workers: Workers, *, padded: bool, on_progress: OnProgress
) -> BatchActivations:
    """What ``workers`` find for batches of ``groups``, in the groups' order.

    Args:
        groups: what to compute; one over the budget is split between its responses.
        budget: of one batch, shared between calls, so that memory is not run out of twice.
        workers: run the batches, several at a time.
        padded: every sequence takes a row of its own, as long as the longest of its batch.
        on_progress: see :data:`OnProgress`.

    Raises:
        ModelError: one sequence alone does not fit into memory.
    """
    total = sum(len(group.responses) for group in groups)
    done: dict[tuple[int, int], GroupActivations] = {}
    count = tokens = 0
    running: dict[Future[BatchActivations], _Started] = {}
    pending = _plan([_Part(index, 0, group) for index, group in enumerate(groups)], budget, padded)
    while pending or running:
        while pending and len(running) < workers.count:
            batch = pending.pop(0)
            running[workers.submit([part.group for part in batch])] = _Started(batch, alone=workers.count == 1)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            started = running.pop(future)
            try:
                found = future.result()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                again = _with_less(started, budget, workers, error)
                rest = [part for parts in pending for part in parts]
                pending = _plan(again + rest, budget, padded)
                continue
            done.update(((part.owner, part.first), one) for part, one in zip(started.batch, found.groups, strict=True))
            tokens += found.tokens
            count += sum(len(part.group.responses) for part in started.batch)
            on_progress(count, total)
    return BatchActivations(_joined(done, len(groups)), tokens)


def batches(sizes: Sequence[int], token_budget: int, padded: bool = False) -> list[list[int]]:
    """Indices in batches that cost at most ``token_budget``: their sum, or rows times the longest if ``padded``.

    A single item over the budget gets a batch of its own. The batches cost about the same, so that no worker waits
    long for the last one. Deterministic, and the same for any number of workers: longest first, ties by index, so sizes
    are alike within a batch and an out-of-memory failure shows in the first batch rather than after an hour.
    """
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    filled = _cut(order, sizes, token_budget, padded, math.inf)
    return _cut(order, sizes, token_budget, padded, filled.cost / max(1, len(filled.batches))).batches


@dataclass
class _Cut:
    batches: list[list[int]]
    cost: int
    """Of all batches."""


def _cut(order: Sequence[int], sizes: Sequence[int], token_budget: int, padded: bool, share: float) -> _Cut:
    """``order`` in batches of at most ``token_budget``, each closed where its ``share`` of all costs is reached."""
    out: list[list[int]] = []
    used = spent = 0
    for index in order:
        cost = sizes[out[-1][0]] if padded and out else sizes[index]
        if not out or used + cost > token_budget or spent + cost / 2 > share * len(out):
            out.append([])
            used, cost = 0, sizes[index]
        out[-1].append(index)
        used += cost
        spent += cost
    return _Cut(out, spent)


def _plan(parts: Sequence[_Part], budget: TokenBudget, padded: bool) -> list[list[_Part]]:
    fitting = [small for part in parts for small in _fit(part, budget.tokens, padded)]
    found = batches([part.group.tokens for part in fitting], budget.tokens, padded)
    return [[fitting[index] for index in batch] for batch in found]


def _fit(part: _Part, token_budget: int, padded: bool) -> list[_Part]:
    """``part`` in halves until each fits the budget, or is one response; one response a part if ``padded``."""
    count = len(part.group.responses)
    if count == 1 or (part.group.tokens <= token_budget and not padded):
        return [part]
    size = 1 if padded else -(-count // 2)
    return [small for half in part.split(size) for small in _fit(half, token_budget, padded)]


def _with_less(started: _Started, budget: TokenBudget, workers: Workers, error: Exception) -> list[_Part]:
    """What to try instead of a batch that ran out of memory: the same alone first, then under a halved budget."""
    batch = started.batch
    if not started.alone:
        if workers.count > 1:
            logger.warning("out of memory: going on with one forward pass at a time")
        workers.keep_one()
        return batch
    tokens = sum(part.group.tokens for part in batch)
    if len(batch) == 1 and len(batch[0].group.responses) == 1:
        raise ModelError(
            f"out of memory on a single sequence of {tokens} tokens: lower max_length, use a 16-bit dtype, "
            "or a device with more memory"
        ) from error
    budget.halve(tokens)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # A lone group that fits the halved budget nominally did not fit in fact: split it whatever the budget says.
    return batch[0].split(-(-len(batch[0].group.responses) // 2)) if len(batch) == 1 else batch


def _joined(done: dict[tuple[int, int], GroupActivations], count: int) -> list[GroupActivations]:
    parts: list[list[GroupActivations]] = [[] for _ in range(count)]
    for (owner, _), result in sorted(done.items(), key=lambda item: item[0]):
        parts[owner].append(result)
    return [
        GroupActivations(found[0].context, torch.cat([one.responses for one in found])) if len(found) > 1 else found[0]
        for found in parts
    ]
