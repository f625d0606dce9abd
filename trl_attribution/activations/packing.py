"""Lay prompts and their responses out as one stream of tokens, each prompt once.

Axis letters: G prompt groups, R responses, T tokens of the stream, M tokens of the longest group, L layers, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

PROMPT_SEGMENT = 0
PADDING_SEGMENT = -1


@dataclass(frozen=True)
class PromptGroup:
    """One prompt and the responses that continue it; the prompt's tokens are computed once for all of them."""

    prompt_ids: Sequence[int]
    responses: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        """Tokens to compute: the prompt once, and every response."""
        return len(self.prompt_ids) + sum(len(response) for response in self.responses)

    @property
    def longest(self) -> int:
        """Tokens of the longest single sequence, prompt plus response."""
        return len(self.prompt_ids) + max(len(response) for response in self.responses)


@dataclass(frozen=True)
class GroupActivations:
    """What M0's residual stream holds for one group, in float32 on the CPU."""

    context: Tensor
    """[L, D], at the prompt's last token; zeros for an empty prompt."""
    responses: Tensor
    """[R, L, D], mean over each response's tokens."""


@dataclass
class PackedLayout:
    """Where every token of a packed stream belongs."""

    input_ids: Tensor
    """[1, T]"""
    position_ids: Tensor
    """[1, T], counted from each group's first token; responses of one prompt share positions."""
    gather: Tensor
    """[G, M], index into the stream for each group's padded row."""
    scatter: Tensor
    """[T], index into the flattened [G * M] rows for each token of the stream."""
    segments: Tensor
    """[G, M], 0 prompt, j the j-th response, -1 padding."""
    positions: Tensor
    """[G, M], position ids in padded rows."""
    readout: Tensor
    """[G + R, T] float32: rows that average the stream into contexts (first G) and responses (then R)."""
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def attention_mask(self, sliding_window: int | None) -> Tensor:
        """[G, 1, M, M] bool: a response sees its prompt and itself, causally; never another response."""
        if sliding_window not in self.masks:
            self.masks[sliding_window] = self._build_mask(sliding_window)
        return self.masks[sliding_window]

    def _build_mask(self, sliding_window: int | None) -> Tensor:
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        distance = self.positions[:, :, None] - self.positions[:, None, :]
        allowed = (key == query) | (key == PROMPT_SEGMENT)
        allowed &= (distance >= 0) & (key != PADDING_SEGMENT)
        if sliding_window is not None:
            allowed &= distance < sliding_window
        # A padding row must attend to something: softmax over nothing is NaN, and NaN spreads.
        allowed |= torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)
        return allowed[:, None]


def pack(groups: Sequence[PromptGroup], device: torch.device) -> PackedLayout:
    """Concatenate ``groups`` into one stream, with the indices that attention and averaging need."""
    total = sum(group.tokens for group in groups)
    width = max(group.tokens for group in groups)
    responses = sum(len(group.responses) for group in groups)
    ids: list[int] = []
    positions: list[int] = []
    gather = torch.zeros(len(groups), width, dtype=torch.long)
    segments = torch.full((len(groups), width), PADDING_SEGMENT)
    padded_positions = torch.zeros(len(groups), width, dtype=torch.long)
    readout = torch.zeros(len(groups) + responses, total)
    scatter = torch.empty(total, dtype=torch.long)
    row = len(groups)
    for index, group in enumerate(groups):
        start, prompt = len(ids), len(group.prompt_ids)
        ids.extend(group.prompt_ids)
        positions.extend(range(prompt))
        labels = [PROMPT_SEGMENT] * prompt
        if prompt:
            readout[index, start + prompt - 1] = 1.0
        for number, response in enumerate(group.responses, start=1):
            readout[row, len(ids) : len(ids) + len(response)] = 1.0 / len(response)
            row += 1
            ids.extend(response)
            positions.extend(range(prompt, prompt + len(response)))
            labels.extend([number] * len(response))
        gather[index, : group.tokens] = torch.arange(start, len(ids))
        segments[index, : group.tokens] = torch.tensor(labels)
        padded_positions[index, : group.tokens] = torch.tensor(positions[start:])
        scatter[start : len(ids)] = index * width + torch.arange(group.tokens)
    return PackedLayout(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        gather=gather.to(device),
        scatter=scatter.to(device),
        segments=segments.to(device),
        positions=padded_positions.to(device),
        readout=readout.to(device),
    )


def batches(sizes: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices grouped so that sizes are alike within a batch and sum to at most ``token_budget``.

    A single item over the budget gets a batch of its own. Deterministic: longest first, ties by index, so an
    out-of-memory failure shows in the first batch rather than after an hour.
    """
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    out: list[list[int]] = []
    used = 0
    for index in order:
        if not out or used + sizes[index] > token_budget:
            out.append([])
            used = 0
        out[-1].append(index)
        used += sizes[index]
    return out


def split_group(group: PromptGroup, token_budget: int) -> list[PromptGroup]:
    """``group`` in parts that fit ``token_budget`` where they can, each with at least one response."""
    parts: list[list[Sequence[int]]] = []
    used = 0
    for response in group.responses:
        if not parts or used + len(response) > token_budget:
            parts.append([])
            used = len(group.prompt_ids)
        parts[-1].append(response)
        used += len(response)
    return [PromptGroup(group.prompt_ids, part) for part in parts]
