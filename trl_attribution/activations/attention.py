"""Attention over a packed stream: linear layers see every distinct prefix once, attention sees whole sequences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from trl_attribution.activations.packing import PackedLayout

IMPLEMENTATION = "trl_attribution_packed"

_layout: ContextVar[PackedLayout | None] = ContextVar("packed_layout", default=None)

# What an attention layer may pass that changes its result in ways this function does not compute.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache")


class UnsupportedAttentionError(Exception):
    """The model's attention asks for something that the packed layout does not compute."""


@contextmanager
def packed_layout(layout: PackedLayout) -> Iterator[None]:
    """Let :func:`packed_attention` read ``layout`` for the forward passes inside."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


@contextmanager
def attention_replaced(model: PreTrainedModel) -> Iterator[None]:
    """Route the model's attention through :func:`packed_attention`; its own setting comes back whatever happens.

    Raises:
        UnsupportedAttentionError: the model does not use transformers' attention interface.
    """
    if not getattr(model, "_supports_attention_backend", False) and not getattr(model, "_supports_sdpa", False):
        raise UnsupportedAttentionError(f"{type(model).__name__} has no exchangeable attention")
    AttentionInterface.register(IMPLEMENTATION, packed_attention)
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    previous = [
        (config, config._attn_implementation) for config in configs.values() if hasattr(config, "_attn_implementation")
    ]
    try:
        for config, _ in previous:
            config._attn_implementation = IMPLEMENTATION
        yield
    finally:
        for config, implementation in previous:
            config._attn_implementation = implementation


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  # the layout knows who sees whom
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal scaled dot-product attention within each sequence of the current layout.

    Args:
        module: the attention layer.
        query: [1, H, T, d] over the whole stream, rotary positions already applied.
        key: [1, K, T, d] with K key-value heads, a divisor of H.
        value: [1, K, T, d].
        attention_mask: ignored; the layout knows who sees whom.
        scaling: factor on the scores, ``d ** -0.5`` when None.
        sliding_window: how many tokens back a token sees, itself included.
        **kwargs: refused where they would change the result.

    Returns:
        The attention output [1, T, H, d], and no weights.
    """
    layout = _layout.get()
    if layout is None or query.shape[0] != 1 or query.shape[2] != layout.scatter.shape[0]:
        raise UnsupportedAttentionError("the attention layer's input is not the packed stream")
    unsupported = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if unsupported or kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedAttentionError(f"{type(module).__name__} passes {unsupported or 'is_causal=False'}")
    width = layout.gather.shape[1]
    window = sliding_window if sliding_window is not None and sliding_window < width else None
    attended = F.scaled_dot_product_attention(
        _sequences(query, layout.gather),
        _sequences(key, layout.gather),
        _sequences(value, layout.gather),
        attn_mask=None if window is None else _window_mask(width, window, query.device),
        # Padding stands on the right, where no token looks.
        is_causal=window is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    count, heads, _, size = attended.shape
    flat = attended.transpose(1, 2).reshape(count * width, heads, size)
    return flat.index_select(0, layout.scatter)[None], None


def _sequences(stream: Tensor, gather: Tensor) -> Tensor:
    """[1, H, T, d] over the stream -> [R, H, M, d], whole sequences."""
    count, width = gather.shape
    heads, size = stream.shape[1], stream.shape[3]
    return stream[0].index_select(1, gather.flatten()).view(heads, count, width, size).transpose(0, 1)


def _window_mask(width: int, window: int, device: torch.device) -> Tensor:
    """[M, M] bool: which of the ``window`` tokens up to itself each token sees."""
    position = torch.arange(width, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)
