"""One forward pass: a batch of prompt groups in, their mean activations out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trl_attribution.activations.attention import packed_layout
from trl_attribution.activations.blocks import DecoderBlocks, block_input, block_output, find_blocks
from trl_attribution.activations.packing import GroupActivations, PromptGroup, pack
from trl_attribution.activations.running import Runner
from trl_attribution.errors import ModelError

Layout = Literal["fused", "packed", "plain"]

_PADDING_ID = 0


@dataclass(frozen=True)
class BatchActivations:
    """What was found for some prompt groups."""

    groups: list[GroupActivations]
    tokens: int
    """That went through the model."""


class Lens(Protocol):
    """What is averaged in the place of the stream itself."""

    @property
    def width(self) -> int:
        """How many numbers it has for a token."""

    def average(self, readout: Tensor, tokens: Tensor) -> Tensor:
        """Tokens ``[T, D]``, averaged by ``readout`` ``[K, T]``: ``[K, width]``."""


class Pass(Protocol):
    """What is done with a batch: one batch at a time through one model."""

    runner: Runner

    def run(self, layout: Layout, groups: Sequence[PromptGroup]) -> BatchActivations:
        """What is found for ``groups``; ``plain`` takes groups of one response only."""

    def on(self, model: PreTrainedModel) -> Self:
        """The same through a copy of the model."""


class ForwardPass:
    """Passes through one model up to the last of ``layers``, read by hooks, through a lens if any; one at a time."""

    def __init__(self, runner: Runner, blocks: DecoderBlocks, layers: Sequence[int], lens: Lens | None = None) -> None:
        self.runner = runner
        self.blocks = blocks
        self.layers = tuple(layers)
        self.lens = lens

    def run(self, layout: Layout, groups: Sequence[PromptGroup]) -> BatchActivations:
        """Activations of ``groups``; ``plain`` takes groups of one response only."""
        return self._plain(groups) if layout == "plain" else self._packed(groups, fused=layout == "fused")

    def on(self, model: PreTrainedModel) -> Self:
        """The same layers of a copy of the model."""
        return type(self)(Runner(model), find_blocks(model, self.blocks.path), self.layers, self.lens)

    def streams(self, input_ids: Tensor) -> dict[int, Tensor]:
        """The stream ``[T, D]`` of one sequence ``[1, T]`` at each layer, float32 on the CPU."""
        found: dict[int, Tensor] = {}
        with self._captured(lambda layer, stream: found.__setitem__(layer, stream[0].float().cpu())):
            self.runner.forward(input_ids=input_ids)
        return found

    def seen(self, batch: dict[str, Tensor]) -> BatchActivations:
        """Activations of one pair with images, laid out as TRL's collator does: a chosen row and a rejected one."""
        batch = {name: value.to(self.runner.device) for name, value in batch.items()}
        response = batch.pop("completion_mask") * batch["attention_mask"]
        count, width = response.shape
        last_prompt = response.argmax(dim=1) - 1
        readout = torch.zeros(2 * count, count, width, device=response.device)
        for row, mask in enumerate(response):
            if last_prompt[row] >= 0:
                readout[row, row, last_prompt[row]] = 1.0
            readout[count + row, row] = mask / mask.sum()
        means = self._read(readout.flatten(1), **batch)
        return BatchActivations([GroupActivations(means[0], means[count:])], batch["input_ids"].numel())

    def _packed(self, groups: Sequence[PromptGroup], *, fused: bool) -> BatchActivations:
        layout = pack(groups, self.runner.device, fused=fused)
        with packed_layout(layout):
            means = self._read(layout.readout, input_ids=layout.input_ids, position_ids=layout.position_ids)
        found: list[GroupActivations] = []
        row = len(groups)
        for index, group in enumerate(groups):
            found.append(GroupActivations(means[index], means[row : row + len(group.responses)]))
            row += len(group.responses)
        return BatchActivations(found, layout.input_ids.numel())

    def _plain(self, singles: Sequence[PromptGroup]) -> BatchActivations:
        # Padding on the right: causal models, recurrent ones too, never look there.
        count, width = len(singles), max(single.tokens for single in singles)
        input_ids = torch.full((count, width), _PADDING_ID)
        attention_mask = torch.zeros(count, width, dtype=torch.long)
        readout = torch.zeros(2 * count, count * width)
        for row, single in enumerate(singles):
            prompt, total = len(single.prompt_ids), single.tokens
            input_ids[row, :total] = torch.tensor([*single.prompt_ids, *single.responses[0]])
            attention_mask[row, :total] = 1
            if prompt:
                readout[row, row * width + prompt - 1] = 1.0
            readout[count + row, row * width + prompt : row * width + total] = 1.0 / (total - prompt)
        device = self.runner.device
        means = self._read(readout.to(device), input_ids=input_ids.to(device), attention_mask=attention_mask.to(device))
        found = [GroupActivations(means[row], means[count + row : count + row + 1]) for row in range(count)]
        return BatchActivations(found, input_ids.numel())

    def _read(self, readout: Tensor, **inputs: Tensor) -> Tensor:
        """``readout`` [K, T] applied to the residual stream [T, D] at each layer: [K, L, D] float32 on the CPU.

        Through a lens, D is its width.
        """
        means: dict[int, Tensor] = {}

        def average(layer: int, stream: Tensor) -> None:
            tokens = stream.flatten(0, 1).float()
            means[layer] = readout @ tokens if self.lens is None else self.lens.average(readout, tokens)

        with self._captured(average):
            self.runner.forward(**inputs)
        missing = [layer for layer in self.layers if layer not in means]
        if missing:
            name = type(self.runner.model).__name__
            raise ModelError(
                f"layers {missing} of {name} do not run on text: their blocks attend to images alone, or blocks_path "
                "names others than the decoder's. Choose another layer."
            )
        return torch.stack([means[layer] for layer in self.layers], dim=1).cpu()

    @contextmanager
    def _captured(self, take: Callable[[int, Tensor], None]) -> Iterator[None]:
        """Hooks that hand each wanted layer's residual stream to ``take``."""
        handles = []
        for layer in self.layers:
            if layer == 0:
                handles.append(
                    self.blocks.blocks[0].register_forward_pre_hook(
                        lambda _module, args, kwargs: self._taken(take, 0, block_input(args, kwargs)),
                        with_kwargs=True,
                    )
                )
            else:
                handles.append(
                    self.blocks.blocks[layer - 1].register_forward_hook(
                        lambda _module, _args, output, layer=layer: self._taken(take, layer, block_output(output))
                    )
                )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _taken(self, take: Callable[[int, Tensor], None], layer: int, stream: Tensor) -> None:
        take(layer, stream)
        if layer == max(self.layers):
            self.runner.on_last_block()
