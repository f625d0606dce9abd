"""Read mean activations off the forward passes that a trainer runs on M0 anyway.

Axis letters: B pairs of a micro-batch, R = 2B sequences (chosen rows first, then rejected ones), T tokens, L layers,
D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trl_attribution.activations.blocks import block_input, block_output, find_blocks
from trl_attribution.callbacks.compat import ResponseMask
from trl_attribution.errors import AttributionError

_IGNORED = -100


class CaptureError(AttributionError):
    """A reference forward did not give exactly one activation for every layer and sequence."""


@dataclass(frozen=True)
class Tokens:
    """What one forward pass computes: R sequences of T tokens."""

    input_ids: Tensor
    """[R, T]"""
    attention_mask: Tensor
    """[R, T], 1 for tokens, 0 for padding."""
    response_mask: Tensor
    """[R, T], True for the tokens of a response."""
    pair_ids: Tensor | None = None
    """[R, 16] bytes, where the collator says which pairs these are; elsewhere their tokens tell."""


Describe = Callable[[tuple[Any, ...], dict[str, Any]], Tokens | None]
"""From a forward pass's arguments, what it computes; None where it is not to be read."""


def labeled(wanted: Callable[[], bool], response_mask: ResponseMask, pair_ids: Callable[[], Tensor | None]) -> Describe:
    """Reads the forward passes of TRL while ``wanted()`` is true.

    Their labels say which tokens are responses; ``response_mask`` is asked where there are none, and ``pair_ids`` for
    what the collator knows.
    """

    def describe(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tokens | None:
        labels, input_ids = kwargs.get("labels"), kwargs.get("input_ids", args[0] if args else None)
        if input_ids is None or not wanted():
            return None
        mask = response_mask(input_ids) if labels is None else labels != _IGNORED
        if mask is None:
            return None
        if len(input_ids) % 2:
            raise CaptureError(
                f"a reference forward over {len(input_ids)} sequences holds no chosen and rejected halves. "
                "Use TRL's own collator, or audit offline: trl-attribution audit"
            )
        attention_mask = kwargs.get("attention_mask")
        return Tokens(
            input_ids.detach(),
            (torch.ones_like(input_ids) if attention_mask is None else attention_mask).detach(),
            mask.detach(),
            pair_ids(),
        )

    return describe


@dataclass(frozen=True)
class CapturedBatch:
    """What one reference forward over B pairs showed; tensors lie on the model's device until they are needed."""

    tokens: Tokens
    means: Tensor
    """[R, L, D] float32, mean over each response's tokens."""
    contexts: Tensor
    """[R, L, D] float32, at the prompt's last token; zeros where there is no prompt."""


@dataclass(frozen=True)
class SeenPass:
    """A forward pass that was read, kept so that it can be run once more."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: tuple[str, bool, torch.dtype]
    """Device, whether it was on, and its dtype."""
    dtype: torch.dtype
    """Of the residual stream."""
    batch: CapturedBatch
    """What it showed."""

    def one_pair(self) -> SeenPass:
        """The pass over the first of its pairs alone (two sequences where it is half a batch); it showed the same."""
        rows = len(self.batch.means)
        if self.batch.tokens.pair_ids is not None:  # nothing tells which pixels are whose: the whole pass
            return self
        kept = torch.tensor([0, rows // 2])

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor) and value.dim() and len(value) == rows:
                return value[kept.to(value.device)]
            return value

        return replace(
            self,
            args=tuple(cut(value) for value in self.args),
            kwargs={name: cut(value) for name, value in self.kwargs.items()},
            batch=CapturedBatch(
                Tokens(*(cut(value) for value in vars(self.batch.tokens).values())),
                cut(self.batch.means),
                cut(self.batch.contexts),
            ),
        )


class ForwardCapture:
    """Hooks on one model that hand over each forward pass that ``describe`` wants read.

    The hook on the model itself says what is being computed and opens a pass; the hooks on its blocks answer only
    while a pass is open. A recomputation for gradient checkpointing calls blocks without the model around them, so it
    finds no pass open.

    Args:
        model: the causal language model that owns the blocks, without wrappers (DDP, engines, adapters).
        layers: layers to read, ascending.
        blocks_path: where the decoder blocks live, None to find them by structure.
        describe: asked at the start of each forward pass which tokens M0 computes; None leaves the pass alone.
        take: called at the end of each pass that was read.
        callers: modules that call the model, perhaps past its hooks; a call of one is a pass as well.

    Raises:
        ModelError: the decoder blocks are not found, or a layer is out of range.
    """

    def __init__(
        self,
        model: Any,
        layers: tuple[int, ...],
        blocks_path: str | None,
        describe: Describe,
        take: Callable[[CapturedBatch], None],
        callers: Sequence[nn.Module] = (),
    ) -> None:
        found = find_blocks(model, blocks_path)
        found.check_layers(layers)
        self._entries = [*callers, model]
        self._blocks = found.blocks
        self._layers = layers
        self._describe = describe
        self._take = take
        self._open: _Pass | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.last: SeenPass | None = None
        """The pass that was read last."""
        self.passes = 0
        """How many were read."""

    def attach(self) -> None:
        """Put the hooks on the model; :meth:`detach` takes them off again."""
        # Compiled models break their graph at these hooks rather than trace them into it.
        before, after = torch.compiler.disable(self._before), torch.compiler.disable(self._after)
        # Where a caller's hook has opened a pass, that of the model opens it anew and closes it first.
        for entry in self._entries:
            self._handles.append(entry.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(entry.register_forward_hook(after))
        for layer in self._layers:
            self._handles.append(self._hook(layer))

    def detach(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._open = [], None

    def again(self, seen: SeenPass, call: Callable[..., Any]) -> CapturedBatch:
        """What ``seen`` shows when ``call`` runs the model over the same tokens now."""
        found: list[CapturedBatch] = []
        kept = self._describe, self._take, self.last, self.passes
        self._describe, self._take = lambda _args, _kwargs: seen.batch.tokens, found.append
        device, is_enabled, dtype = seen.autocast
        try:
            with torch.no_grad(), torch.autocast(device, dtype, enabled=is_enabled):
                call(*seen.args, **seen.kwargs)
        finally:
            self._describe, self._take, self.last, self.passes = kept
        return found[0]

    def _hook(self, layer: int) -> torch.utils.hooks.RemovableHandle:
        if layer == 0:
            read = torch.compiler.disable(lambda _block, args, kwargs: self._read(0, block_input(args, kwargs)))
            return self._blocks[0].register_forward_pre_hook(read, with_kwargs=True)
        read = torch.compiler.disable(lambda _block, _args, output: self._read(layer, block_output(output)))
        return self._blocks[layer - 1].register_forward_hook(read)

    def _before(self, _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._open = None  # a pass that failed half-way never came to its end
        tokens = self._describe(args, kwargs)
        self._open = None if tokens is None else _Pass(tokens, args, kwargs)

    @torch.no_grad()
    def _read(self, layer: int, stream: Tensor) -> None:
        if self._open is not None:
            self._open.read(layer, stream.detach())

    def _after(self, _model: Any, _args: tuple[Any, ...], _output: Any) -> None:
        finished, self._open = self._open, None
        if finished is not None:
            self.last = finished.close(self._layers)
            self.passes += 1
            self._take(self.last.batch)


class _Pass:
    """One forward pass under way."""

    def __init__(self, tokens: Tokens, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._tokens = tokens
        # Copies: a loop may write its next batch into the same memory.
        self._args = tuple(_copy(value) for value in args)
        self._kwargs = {name: _copy(value) for name, value in kwargs.items()}
        device = tokens.input_ids.device.type
        self._dtype = torch.float32
        self._autocast = device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        self._means: dict[int, list[Tensor]] = {}
        self._contexts: dict[int, list[Tensor]] = {}
        first = tokens.response_mask.int().argmax(dim=1)
        self._last_prompt = (first - 1).clamp(min=0)
        rows = torch.arange(len(first), device=first.device)
        self._has_prompt = (first > 0) & (tokens.attention_mask[rows, self._last_prompt] != 0)
        self._rows = rows

    def read(self, layer: int, stream: Tensor) -> None:
        """Average the residual stream [R, T, D] of ``layer``."""
        self._dtype = stream.dtype
        if stream.shape[:2] != self._tokens.response_mask.shape:
            raise CaptureError(
                f"layer {layer} has a stream of shape {tuple(stream.shape)} for a batch of shape "
                f"{tuple(self._tokens.response_mask.shape)}: sequences are cut or extended inside the model (sequence "
                "parallelism, virtual tokens). Audit offline: trl-attribution audit"
            )
        mask = self._tokens.response_mask.to(stream.device)
        # Padding is set to zero rather than multiplied by it: it may hold values that are not finite.
        total = stream.masked_fill(~mask[..., None], 0).sum(dim=1, dtype=torch.float32)
        context = stream[self._rows.to(stream.device), self._last_prompt.to(stream.device)].float()
        self._means.setdefault(layer, []).append(total / mask.sum(dim=1, keepdim=True).clamp(min=1))
        self._contexts.setdefault(layer, []).append(
            context.masked_fill(~self._has_prompt.to(stream.device)[:, None], 0)
        )

    def close(self, layers: tuple[int, ...]) -> SeenPass:
        times = {layer: len(self._means.get(layer, ())) for layer in layers}
        wrong = {layer: count for layer, count in times.items() if count != 1}
        if wrong:
            told = ", ".join(f"layer {layer} {count} times" for layer, count in wrong.items())
            raise CaptureError(f"one reference forward read {told}, not once: the model skips or repeats blocks")
        device = self._means[layers[-1]][0].device
        batch = CapturedBatch(
            self._tokens,
            torch.stack([self._means[layer][0].to(device) for layer in layers], dim=1),
            torch.stack([self._contexts[layer][0].to(device) for layer in layers], dim=1),
        )
        return SeenPass(self._args, self._kwargs, self._autocast, self._dtype, batch)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
