"""Lay sequences out as one stream of tokens in which every distinct prefix stands once.

Two responses to one prompt share its tokens; prompts under one system message share that; so do answers that open
alike. Linear layers, norms and experts see the stream alone. Attention sees whole sequences again, gathered from it,
or, fused, the stream with a mask of who sees whom.

Axis letters: G prompt groups, R sequences (one a response), T tokens of the stream, Q and K the most queries and keys
of a sequence in a bucket, L layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trl_attribution.activations.fused import BLOCK, Visibility

Ids = npt.NDArray[np.int64]

# Share of a batch's padded attention that a further bucket has to save.
_WORTH_A_BUCKET = 0.04
# Queries of a span: fewer skip more of the keys that causality hides, and make smaller matrix products.
_SPAN = 128


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
class Span:
    """Neighboring queries of a bucket's sequences, and how many keys they can see at most."""

    start: int
    stop: int
    keys: int


@dataclass
class Bucket:
    """Sequences whose attention is computed together, padded on the right to one size.

    The queries of a sequence are its tokens that no sequence before it holds; its keys are all of its tokens.
    """

    queries: Tensor
    """[R, Q], index into the stream; padding points anywhere."""
    keys: Tensor
    """[R, K], index into the stream; padding points anywhere."""
    positions: Tensor
    """[R, Q], position of each query in its sequence; 0 for padding, which must see something too."""
    spans: tuple[Span, ...]
    """All Q queries, cut up: of a sequence's keys, the early ones of its queries see few."""
    _biases: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[R, 1, Q, K], 0 where a query sees a key and -inf where not: causal, at most ``window`` tokens back.

        Keys that are padding stand behind every query, so causality hides them.
        """
        if (window, dtype) not in self._biases:
            distance = self.positions[:, :, None] - torch.arange(self.keys.shape[1], device=self.keys.device)
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            self._biases[window, dtype] = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(
                hidden, -torch.inf
            )[:, None]
        return self._biases[window, dtype]


@dataclass(frozen=True)
class Gathered:
    """The attention of a stream of T tokens in a few buckets."""

    buckets: tuple[Bucket, ...]
    scatter: Tensor
    """[T], index of each token of the stream into the flattened queries of all buckets."""


@dataclass(frozen=True)
class PackedLayout:
    """Where every token of a packed stream belongs."""

    input_ids: Tensor
    """[1, T]"""
    position_ids: Tensor
    """[1, T], counted from the start of the sequences that a token is part of."""
    attention: Gathered | Visibility
    """What the attention layers go by: sequences gathered from the stream, or the stream as it is, fused."""
    readout: Tensor
    """[G + R, T] float32: rows that average the stream into contexts (first G) and responses (then R)."""
    rows: tuple[Ids, ...]
    """For each of the R sequences, the index into the stream of each of its tokens."""


def pack(groups: Sequence[PromptGroup], device: torch.device, *, fused: bool = False) -> PackedLayout:
    """Merge the sequences of ``groups`` into one stream, with the indices that attention and averaging need."""
    owners = [index for index, group in enumerate(groups) for _ in group.responses]
    stream = _merge(
        [np.array([*group.prompt_ids, *response], dtype=np.int64) for group in groups for response in group.responses]
    )
    stream = stream.padded(BLOCK) if fused else stream
    readout = torch.zeros(len(groups) + len(owners), len(stream.ids))
    for number, (row, owner) in enumerate(zip(stream.rows, owners, strict=True)):
        prompt = len(groups[owner].prompt_ids)
        if prompt:
            readout[owner, row[prompt - 1]] = 1.0
        readout[len(groups) + number, row[prompt:]] = 1.0 / (len(row) - prompt)
    return PackedLayout(
        input_ids=torch.from_numpy(stream.ids)[None].to(device),
        position_ids=torch.from_numpy(stream.positions)[None].to(device),
        attention=Visibility(stream.ends, stream.positions, device) if fused else _gathered(stream, device),
        readout=readout.to(device),
        rows=tuple(stream.rows),
    )


@dataclass(frozen=True)
class _Stream:
    ids: Ids
    """[T]"""
    positions: Ids
    """[T]"""
    rows: list[Ids]
    """For each sequence, the index into the stream of each of its tokens."""
    shared: list[int]
    """For each sequence, how many of its first tokens an earlier sequence put there."""
    ends: Ids
    """[T], the place behind the last token that continues the prefix which each token ends."""

    def padded(self, block: int) -> _Stream:
        """Tokens that only see themselves behind the others, up to a multiple of ``block``."""
        padding = np.arange(len(self.ids), -(-len(self.ids) // block) * block)
        none = np.zeros_like(padding)
        return replace(
            self,
            ids=np.concatenate([self.ids, none]),
            positions=np.concatenate([self.positions, none]),
            ends=np.concatenate([self.ends, padding + 1]),
        )


def _merge(sequences: Sequence[Ids]) -> _Stream:
    """Every distinct prefix of ``sequences`` once.

    In sorted order a sequence shares its longest prefix with the one before it, so one comparison with that one finds
    all that is there already.
    """
    rows: dict[int, Ids] = {}
    shared: dict[int, int] = {}
    new_ids: list[Ids] = []
    positions: list[Ids] = []
    closed: list[tuple[Ids, int]] = []
    total = 0
    previous: int | None = None
    for number in sorted(range(len(sequences)), key=lambda number: sequences[number].tolist()):
        sequence = sequences[number]
        known = 0 if previous is None else _shared_prefix(sequences[previous], sequence)
        if previous is not None:
            closed.append((rows[previous][known:], total))
        new = np.arange(total, total + len(sequence) - known)
        rows[number] = new if previous is None else np.concatenate([rows[previous][:known], new])
        shared[number] = known
        new_ids.append(sequence[known:])
        positions.append(np.arange(known, len(sequence)))
        total += len(new)
        previous = number
    ends = np.full(total, total)
    for places, end in closed:
        ends[places] = end
    order = range(len(sequences))
    return _Stream(
        np.concatenate(new_ids),
        np.concatenate(positions),
        [rows[number] for number in order],
        [shared[number] for number in order],
        ends,
    )


def _shared_prefix(left: Ids, right: Ids) -> int:
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if len(different) else length


def _gathered(stream: _Stream, device: torch.device) -> Gathered:
    queries = [row[known:] for row, known in zip(stream.rows, stream.shared, strict=True)]
    numbers = sorted((n for n, new in enumerate(queries) if len(new)), key=lambda n: (-len(queries[n]), n))
    scatter = np.zeros(len(stream.ids), dtype=np.int64)
    buckets: list[Bucket] = []
    offset = 0
    for members in _split([(len(queries[n]), len(stream.rows[n])) for n in numbers]):
        chosen = [numbers[place] for place in members]
        width = max(len(queries[n]) for n in chosen)
        index = np.zeros((len(chosen), width), dtype=np.int64)
        position = np.zeros((len(chosen), width), dtype=np.int64)
        keys = np.zeros((len(chosen), max(len(stream.rows[n]) for n in chosen)), dtype=np.int64)
        for place, n in enumerate(chosen):
            new = queries[n]
            index[place, : len(new)] = new
            position[place, : len(new)] = stream.positions[new]
            keys[place, : len(stream.rows[n])] = stream.rows[n]
            scatter[new] = offset + place * width + np.arange(len(new))
        offset += index.size
        q, k, p = (torch.from_numpy(array).to(device) for array in (index, keys, position))
        buckets.append(Bucket(queries=q, keys=k, positions=p, spans=_spans(position)))
    return Gathered(tuple(buckets), torch.from_numpy(scatter).to(device))


def _spans(positions: Ids) -> tuple[Span, ...]:
    """The queries of a bucket [R, Q] in about equal spans."""
    width = positions.shape[1]
    step = -(-width // max(1, round(width / _SPAN)))
    cuts = [(start, min(start + step, width)) for start in range(0, width, step)]
    return tuple(Span(start, stop, int(positions[:, start:stop].max()) + 1) for start, stop in cuts)


def _split(sizes: Sequence[tuple[int, int]]) -> list[range]:
    """Cuts through (queries, keys) sorted by queries, as long as each leaves clearly less padding.

    First sequences bring their whole prompt as queries, later ones only a response, so one cut always pays; each
    further bucket costs some calls a layer.
    """
    size = np.array(sizes, dtype=np.int64)
    whole = range(len(sizes))
    least = _WORTH_A_BUCKET * _area(size, whole)
    waiting, buckets = [whole], []
    while waiting:
        members = waiting.pop()
        cut, saving = _best_cut(size, members)
        if saving > least:
            waiting += [members[cut:], members[:cut]]
        else:
            buckets.append(members)
    return buckets


def _area(size: Ids, members: range) -> int:
    chosen = size[members.start : members.stop]
    return int(len(chosen) * chosen[:, 0].max() * chosen[:, 1].max())


def _best_cut(size: Ids, members: range) -> tuple[int, int]:
    """Where to cut ``members`` in two, and how much padded area that saves."""
    queries, keys = size[members.start : members.stop].T
    count = len(members)
    if count < 2:
        return 0, 0
    # Sorted by queries: the first of a side has the most. Keys need running maxima from both ends.
    cuts = np.arange(1, count)
    before = cuts * queries[0] * np.maximum.accumulate(keys)[:-1]
    after = (count - cuts) * queries[1:] * np.maximum.accumulate(keys[::-1])[::-1][1:]
    best = int((before + after).argmin())
    return best + 1, _area(size, members) - int(before[best] + after[best])
