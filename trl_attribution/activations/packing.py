"""Lay sequences out as one stream of tokens in which every distinct prefix stands once.

Two responses to one prompt share its tokens; prompts under one system message share that; so do answers that open
alike. Linear layers, norms and experts see the stream alone. Attention sees whole sequences again, gathered from it.

Axis letters: G prompt groups, R sequences (one a response), T tokens of the stream, M tokens of the longest sequence,
L layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PromptGroup:
    """One prompt and the responses that continue it."""

    prompt_ids: Sequence[int]
    responses: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        """The prompt's tokens once, and those of every response: what is computed at most."""
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


@dataclass(frozen=True)
class PackedLayout:
    """Where every token of a packed stream belongs."""

    input_ids: Tensor
    """[1, T]"""
    position_ids: Tensor
    """[1, T], counted from the start of the sequences that a token is part of."""
    gather: Tensor
    """[R, M], index into the stream for each token of each sequence; padding on the right points anywhere."""
    scatter: Tensor
    """[T], index into the flattened [R * M] sequences of one occurrence of each token of the stream."""
    readout: Tensor
    """[G + R, T] float32: rows that average the stream into contexts (first G) and responses (then R)."""


def pack(groups: Sequence[PromptGroup], device: torch.device) -> PackedLayout:
    """Merge the sequences of ``groups`` into one stream, with the indices that attention and averaging need."""
    owners = [index for index, group in enumerate(groups) for _ in group.responses]
    sequences = [
        np.array([*group.prompt_ids, *response], dtype=np.int64) for group in groups for response in group.responses
    ]
    width = max(len(sequence) for sequence in sequences)
    stream = _merge(sequences)
    gather = np.zeros((len(sequences), width), dtype=np.int64)
    scatter = np.zeros(len(stream.ids), dtype=np.int64)
    readout = torch.zeros(len(groups) + len(sequences), len(stream.ids))
    for number, (row, owner) in enumerate(zip(stream.rows, owners, strict=True)):
        gather[number, : len(row)] = row
        # A token of several sequences is written once for each; the copies are equal, so any one serves.
        scatter[row] = number * width + np.arange(len(row))
        prompt = len(groups[owner].prompt_ids)
        if prompt:
            readout[owner, row[prompt - 1]] = 1.0
        readout[len(groups) + number, row[prompt:]] = 1.0 / (len(row) - prompt)
    return PackedLayout(
        input_ids=torch.from_numpy(stream.ids)[None].to(device),
        position_ids=torch.from_numpy(stream.positions)[None].to(device),
        gather=torch.from_numpy(gather).to(device),
        scatter=torch.from_numpy(scatter).to(device),
        readout=readout.to(device),
    )


@dataclass(frozen=True)
class _Stream:
    ids: Ids
    """[T]"""
    positions: Ids
    """[T]"""
    rows: list[Ids]
    """For each sequence, the index into the stream of each of its tokens."""


def _merge(sequences: Sequence[Ids]) -> _Stream:
    """Every distinct prefix of ``sequences`` once.

    In sorted order a sequence shares its longest prefix with the one before it, so one comparison with that one finds
    all that is there already.
    """
    rows: dict[int, Ids] = {}
    ids: list[Ids] = []
    positions: list[Ids] = []
    total = 0
    previous: int | None = None
    for number in sorted(range(len(sequences)), key=lambda number: sequences[number].tolist()):
        sequence = sequences[number]
        shared = 0 if previous is None else _shared_prefix(sequences[previous], sequence)
        known = rows[previous][:shared] if previous is not None else np.empty(0, dtype=np.int64)
        rows[number] = np.concatenate([known, np.arange(total, total + len(sequence) - shared)])
        ids.append(sequence[shared:])
        positions.append(np.arange(shared, len(sequence)))
        total += len(sequence) - shared
        previous = number
    return _Stream(np.concatenate(ids), np.concatenate(positions), [rows[number] for number in range(len(sequences))])


def _shared_prefix(left: Ids, right: Ids) -> int:
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if len(different) else length


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
