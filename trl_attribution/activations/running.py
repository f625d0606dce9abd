"""How one forward pass is run: the whole model stops early by itself, pieces of one are run by all ranks in step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trl_attribution.activations.blocks import DecoderBlocks
from trl_attribution.activations.packing import PromptGroup
from trl_attribution.models.loading import evaluating
from trl_attribution.utils.allocator import freed_memory_kept
from trl_attribution.utils.distributed import (
    OutOfStepError,
    RankError,
    Ranks,
    current_ranks,
    is_sharded,
    root_gathered,
    working_device,
)

_SHARED = 4


class EnoughLayersError(Exception):
    """Raised by the hook on the last wanted layer: the rest of the model need not run."""


class Runner:
    """Runs a model that this process holds whole, and leaves each pass after the last wanted block."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device: torch.device = next(model.parameters()).device

    @contextmanager
    def session(self) -> Iterator[None]:
        """Evaluation mode without gradients; everything comes back as it was."""
        memory = freed_memory_kept() if self.device.type == "cpu" else nullcontext()
        with evaluating(self.model), torch.inference_mode(), memory:
            yield

    def forward(self, **inputs: Tensor) -> None:
        """One pass up to the last wanted block, read by hooks."""
        with suppress(EnoughLayersError):
            self.model(**inputs, use_cache=False)

    def on_last_block(self) -> None:
        """To be called by the hook on the last wanted block."""
        raise EnoughLayersError

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Around all passes of an audit: what ranks that share one model need in order to stay together."""
        yield

    def shared(self, sample: Sequence[PromptGroup]) -> list[PromptGroup]:  # noqa: ARG002  # of interest to several
        """Of the samples of all ranks that share one model, the longest; empty where they do not share one."""
        return []

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Around passes that are the same on all ranks, so that all meet an error together and it may be handled."""
        yield


def runner_for(model: PreTrainedModel, blocks: DecoderBlocks, last: int) -> Runner:
    """The way to run ``model`` up to layer ``last``."""
    return StepRunner(model, blocks, last, current_ranks()) if is_sharded(model) else Runner(model)


class StepRunner(Runner):
    """Runs a model of which every rank holds a piece: all ranks go through it the same number of times.

    A pass begins with an exchange: who has something to compute, who has not, who has failed. As long as anybody has,
    all run one; ranks without work run one token. No exception may leave the model half-way, so the blocks above the
    last wanted one are taken out for the time of a session and the LM head is left out altogether.
    """

    def __init__(self, model: PreTrainedModel, blocks: DecoderBlocks, last: int, ranks: Ranks) -> None:
        self.model = model
        self._decoder: torch.nn.Module = model.base_model
        self._blocks = blocks
        self._last = max(last, 1)
        self._ranks = ranks
        self._ended = False
        self._alike = False
        self._is_root_gathered = False
        self.device = working_device()

    @contextmanager
    def session(self) -> Iterator[None]:
        """Evaluation mode without gradients and without the blocks that nobody reads."""
        # Sharded parameters are gathered in place, which tensors made in inference mode do not allow.
        with (
            evaluating(self.model),
            torch.no_grad(),
            self._root(),
            self._blocks.cut_after(self.model, self._last),
        ):
            yield

    def forward(self, **inputs: Tensor) -> None:
        """One pass, once all ranks are ready for one."""
        self._exchange("busy")
        self._run(inputs)

    def on_last_block(self) -> None:
        """Nothing: no exception may leave the model."""

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Keep running until the last rank has nothing left; an error on one rank ends all.

        Raises:
            RankError: another rank failed.
            OutOfStepError: this rank failed inside the model.
        """
        self._ended = False
        with self._root():
            try:
                yield
            except OutOfStepError:
                raise
            except Exception:
                if not self._ended:
                    self._ranks.gather("failed")
                raise
            idle = {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=self.device)}
            with self.session():
                while "busy" in self._exchange("idle"):
                    self._run(idle)

    @contextmanager
    def _root(self) -> Iterator[None]:
        """Gather what only the outermost module would: a collective, so once for all sessions that are in step."""
        if self._is_root_gathered:
            yield
            return
        self._is_root_gathered = True
        try:
            with root_gathered(self.model):
                yield
        finally:
            self._is_root_gathered = False

    def shared(self, sample: Sequence[PromptGroup]) -> list[PromptGroup]:
        """The longest few of all ranks' samples, the same on all of them."""
        plain = [(list(group.prompt_ids), [list(response) for response in group.responses]) for group in sample]
        groups = [PromptGroup(*group) for found in self._ranks.gather(plain) for group in found]
        return sorted(groups, key=lambda group: -group.longest)[:_SHARED]

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Let errors of the model through as they are."""
        self._alike = True
        try:
            yield
        finally:
            self._alike = False

    def _exchange(self, state: str) -> list[str]:
        states = self._ranks.gather(state)
        if "failed" in states:
            self._ended = True
            raise RankError(f"rank {states.index('failed')} failed")
        return states

    def _run(self, inputs: dict[str, Tensor]) -> None:
        try:
            self._decoder(**inputs, use_cache=False)
        except Exception as error:
            if self._alike and not is_out_of_memory(error):
                raise
            self._ended = True
            if is_out_of_memory(error):
                tokens = inputs["input_ids"].numel()
                raise OutOfStepError(
                    f"out of memory on rank {self._ranks.rank} in a pass of {tokens:,} tokens. Ranks that share one "
                    "model cannot try again with less: lower --token-budget (token_budget), or use more ranks."
                ) from error
            raise OutOfStepError(
                f"rank {self._ranks.rank}: the model failed amid a pass of all ranks: {type(error).__name__}: {error}"
            ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a device's or the system's out-of-memory failure."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error))
