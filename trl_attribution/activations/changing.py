"""The residual stream of one layer changed while the model runs, for what is put into it: directions, activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from trl_attribution.activations.blocks import block_input, block_output, find_blocks
from trl_attribution.errors import SettingsError
from trl_attribution.utils.distributed import is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def changed_stream(
    model: PreTrainedModel, layer: int, change: Callable[[Tensor], Tensor], blocks_path: str | None = None
) -> Iterator[None]:
    """Put the residual stream ``[B, T, D]`` of ``layer`` through ``change`` in every pass within the block.

    The hook comes off when the block ends, whatever ended it.

    Raises:
        ModelError: the decoder blocks are not found, or there is no such layer.
        SettingsError: ranks share the model.
    """
    if is_sharded(model):
        raise SettingsError("ranks share this model: a layer is changed only in one that a process holds whole")
    blocks = find_blocks(model, blocks_path)
    blocks.check_layers((layer,))

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = change(block_input(args, kwargs))
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        changed = change(block_output(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    if layer == 0:
        handle = blocks.blocks[0].register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = blocks.blocks[layer - 1].register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
