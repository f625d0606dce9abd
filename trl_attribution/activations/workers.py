"""Several forward passes at a time on a CPU: a thread and a copy of the modules each, the weights shared.

Threads that each run a pass of their own do not wait for one another after every operation, as all threads in one
pass do.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from queue import SimpleQueue
from typing import Any

import torch
from transformers import PreTrainedModel

from trl_attribution.activations.packing import PromptGroup
from trl_attribution.activations.passes import BatchActivations, Layout, Pass
from trl_attribution.activations.running import Runner

logger = logging.getLogger(__name__)

# With the token budget of a CPU this is as many tokens at a time as the budget of an accelerator.
_MOST = 8
# A pass of fewer tokens is Python for the most part, which threads cannot share.
_LEAST_TOKENS = 512


class Workers:
    """What runs batches: ``count`` at a time, in any order."""

    def __init__(
        self,
        passes: Sequence[Pass],
        layout: Layout,
        executor: Executor,
        around: type[AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.count = len(passes)
        self._layout = layout
        self._executor = executor
        self._around = around
        self._idle: SimpleQueue[Pass] = SimpleQueue()
        for one in passes:
            self._idle.put(one)

    def submit(self, batch: Sequence[PromptGroup]) -> Future[BatchActivations]:
        """Compute ``batch`` now or as soon as one has the time."""
        return self._executor.submit(self._run, batch)

    def keep_one(self) -> None:
        """From now on one batch at a time, for want of memory."""
        self.count = 1

    def _run(self, batch: Sequence[PromptGroup]) -> BatchActivations:
        forward = self._idle.get()
        try:
            with self._around():
                return forward.run(self._layout, batch)
        finally:
            self._idle.put(forward)


@contextmanager
def workers_for(forward: Pass, layout: Layout, tokens: int, asked: int | None) -> Iterator[Workers]:
    """Workers for ``tokens`` tokens: ``asked`` of them, or one a thread where that is left open.

    It is one, in this thread, on other devices than a CPU, for ranks that share a model, and for a model that cannot
    be copied without side effects.
    """
    threads = torch.get_num_threads()
    wanted = min(threads, _MOST, tokens // _LEAST_TOKENS) if asked is None else asked
    copies = _copies(forward, wanted - 1) if wanted > 1 else []
    if not copies:
        yield Workers([forward], layout, _InThisThread())
        return
    count = 1 + len(copies)
    pool = ThreadPoolExecutor(count, "trl-attribution", torch.set_num_threads, (max(1, threads // count),))
    try:
        yield Workers([forward, *copies], layout, pool, torch.inference_mode)
    finally:
        pool.shutdown(cancel_futures=True)
        # What a worker sets is what threads to come start with, too.
        torch.set_num_threads(threads)


def _copies(forward: Pass, count: int) -> list[Pass]:
    if type(forward.runner) is not Runner or forward.runner.device.type != "cpu" or _has_hooks(forward.runner.model):
        return []
    try:
        models = [_with_shared_weights(forward.runner.model) for _ in range(count)]
    except (copy.Error, AttributeError, RuntimeError, TypeError, ValueError) as error:
        logger.info("one forward pass at a time: the model cannot be copied: %s: %s", type(error).__name__, error)
        return []
    return [forward.on(model) for model in models]


def _has_hooks(model: PreTrainedModel) -> bool:
    """Whether something else watches the modules or stands in for them: a copy would copy that, or escape it."""
    own = ("_forward_hooks", "_forward_pre_hooks", "forward")
    return any(vars(module).get(name) for module in model.modules() for name in own)


def _with_shared_weights(model: PreTrainedModel) -> PreTrainedModel:
    """New modules, so that two threads may run them, around the tensors of ``model``."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, tensors)


class _InThisThread(Executor):
    """Does at once what it is given; CUDA's device and inference mode belong to a thread."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # raised again by the future's result()
            future.set_exception(error)
        return future
