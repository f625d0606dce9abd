"""Keep what reference forwards showed: rows become pairs, new pairs go to the store, and everything is counted.

Axis letters: n pairs, B pairs of a micro-batch, L layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from trl_attribution.callbacks.capture import CapturedBatch, CaptureError, Tokens
from trl_attribution.callbacks.pair_lookup import Digest, PairLookup, token_digest
from trl_attribution.store import ShardWriter, VectorStore

# Of pair and context vectors in one shard; those that wait to be looked at take up to twice as much.
_WRITE_BYTES = 8 * 2**20


@dataclass
class CaptureCounts:
    """Rows of training batches, by what became of them; counted on one rank."""

    rows: int = 0
    """All rows seen, each pair as often as it was trained on."""
    captured: int = 0
    """Pairs whose vectors were read and stored."""
    repeats: int = 0
    """Rows of pairs that were there already: further epochs, the sampler's padding, pairs before a restart."""
    unaudited: int = 0
    """Rows that are no valid pair (see ``skipped`` in the dataset's report) or have a response without tokens."""

    def to_json(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


def added(counts: Sequence[dict[str, int]]) -> CaptureCounts:
    """The sum of several ranks' counts."""
    return CaptureCounts(**{name: sum(one[name] for one in counts) for name in counts[0]})


def without_copies(counts: CaptureCounts, parts: Sequence[VectorStore]) -> CaptureCounts:
    """``counts`` with pairs that several ranks have (the sampler's padding) as repeats, but for one of each."""
    stored = [pair_id for part in parts for pair_id in part.pair_ids]
    copies = min(len(stored) - len(set(stored)), counts.captured)
    return replace(counts, captured=counts.captured - copies, repeats=counts.repeats + copies)


@dataclass(frozen=True)
class Resolved:
    """Pairs of captured batches, on the CPU: n rows, in the order they were seen."""

    pair_ids: list[str]
    rows: list[int]
    """[n], each pair's row in its batch."""
    pair: Tensor
    """[n, L, D]"""
    context: Tensor
    """[n, L, D]"""


@dataclass
class _Buffer:
    pair_ids: list[str] = field(default_factory=list)
    pair: list[Tensor] = field(default_factory=list)
    context: list[Tensor] = field(default_factory=list)

    def split(self, pairs: int) -> tuple[_Buffer, _Buffer]:
        """The first ``pairs`` and the others."""
        first = _Buffer(self.pair_ids[:pairs], self.pair[:pairs], self.context[:pairs])
        return first, _Buffer(self.pair_ids[pairs:], self.pair[pairs:], self.context[pairs:])


class Recorder:
    """Turns captured batches into pair vectors and writes each pair's once, when it is told to.

    Args:
        lookup: the dataset's pairs by their tokens.
        store: this rank's part of the audit's vectors; pairs that it holds are not written again.
        writer: of that store; :meth:`close` gives it back.
        unreadable: how many rows of the dataset are no valid pairs: so many unknown rows are no surprise.
        shard_size: pairs a shard.
    """

    def __init__(
        self, lookup: PairLookup, store: VectorStore, writer: ShardWriter, unreadable: int, shard_size: int
    ) -> None:
        self.counts = CaptureCounts()
        self.is_strict = True
        """Whether rows that are not in the dataset are counted, and too many of them an error."""
        self._lookup = lookup
        self._unreadable = unreadable
        self._unknown: set[Digest] = set()
        self._stored = list(store.pair_ids)
        self._found = len(self._stored)
        self._known = set(self._stored)
        self._writer = writer
        row_bytes = 8 * len(store.layers) * store.hidden_size
        self._shard_size = max(1, min(shard_size, _WRITE_BYTES // row_bytes))
        self._waiting: list[CapturedBatch] = []
        self._buffer = _Buffer()

    @property
    def waiting_rows(self) -> int:
        """Pairs of the batches that were not resolved yet."""
        return sum(len(batch.means) for batch in self._waiting) // 2

    @property
    def waits(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._waiting or self._buffer.pair_ids)

    def add(self, batch: CapturedBatch) -> None:
        """Keep ``batch`` on its device: looking at its tokens now would make the device wait."""
        self._waiting.append(batch)

    @property
    def is_full(self) -> bool:
        """Whether :meth:`resolve` should be called for the memory's sake."""
        return self.waiting_rows >= self._shard_size

    def keep(self, pair_ids: list[str], pair: Tensor, context: Tensor) -> None:
        """Take over pair vectors [n, L, D] and contexts [n, L, D] that were computed otherwise."""
        for row, pair_id in enumerate(pair_ids):
            self._keep([pair_id], pair[row], context[row])
        self.write_full_shards()

    def forget(self) -> None:
        """Drop all that is not on disk: it was not M0's."""
        self._waiting, self._buffer = [], _Buffer()
        self._known = set(self._stored)
        self.counts = replace(self.counts, captured=len(self._stored) - self._found)

    def resolve(self) -> Resolved:
        """All pairs seen since the last call; those not stored yet are kept for the next shard.

        Raises:
            CaptureError: a batch holds pairs that the dataset does not.
        """
        found = []
        while self._waiting:
            found.append(self._resolve(self._waiting.pop(0)))
        if not found:
            return Resolved([], [], torch.empty(0), torch.empty(0))
        return Resolved(
            [pair_id for one in found for pair_id in one.pair_ids],
            [row for one in found for row in one.rows],
            torch.cat([one.pair for one in found]),
            torch.cat([one.context for one in found]),
        )

    def write(self) -> None:
        """Resolve and write all that is not on disk yet.

        Raises:
            CaptureError: as for :meth:`resolve`.
            AttributionError: the disk is full or the folder cannot be written; what was read so far is kept for
                another attempt.
        """
        self.resolve()
        self._write(1)

    def write_full_shards(self) -> None:
        """Write what has been resolved, as far as it fills shards."""
        self._write(self._shard_size)

    def close(self) -> None:
        """Let go of the store; what was not written is lost, so :meth:`write` comes before."""
        self._writer.close()

    def _resolve(self, batch: CapturedBatch) -> Resolved:
        chosen, rejected = batch.means.cpu().chunk(2)
        pair = chosen - rejected
        contexts = batch.contexts.cpu().chunk(2)
        rows: list[int] = []
        pair_ids: list[str] = []
        context = contexts[0].clone()
        for row, digest, same_prompt in _digests(batch.tokens):
            self.counts.rows += 1
            if not same_prompt:  # each side was cut by itself (truncation_mode="keep_end")
                context[row] = (contexts[0][row] + contexts[1][row]) / 2
            found = self._lookup.find(digest) if digest is not None else []
            if not found:
                self._count_unknown(digest)
                continue
            self._keep(found, pair[row], context[row])
            rows += [row] * len(found)
            pair_ids += found
        return Resolved(pair_ids, rows, pair[rows], context[rows])

    def _keep(self, pair_ids: list[str], pair: Tensor, context: Tensor) -> None:
        new = [pair_id for pair_id in pair_ids if pair_id not in self._known]
        self.counts.repeats += not new
        self.counts.captured += len(new)
        for pair_id in new:
            self._known.add(pair_id)
            self._buffer.pair_ids.append(pair_id)
            self._buffer.pair.append(pair)
            self._buffer.context.append(context)

    def _count_unknown(self, digest: Digest | None) -> None:
        if not self.is_strict:
            self.counts.rows -= 1
            return
        self.counts.unaudited += 1
        if digest is None:
            return
        self._unknown.add(digest)
        if len(self._unknown) > self._unreadable:
            raise CaptureError(
                f"{len(self._unknown)} different rows of the training batches are not in the dataset"
                + (f", though only {self._unreadable} of its rows are no valid pairs" if self._unreadable else "")
                + ": their vectors would have no pair to belong to. Give the callback the dataset that the trainer was "
                "given (dataset=...), unchanged, and no collator of your own; in a loop of your own, tokenize and cut "
                "as TRL does (trl_attribution.pairs.encode_pairs) and leave evaluation batches out."
            )

    def _write(self, at_least: int) -> None:
        while len(self._buffer.pair_ids) >= at_least:
            shard, rest = self._buffer.split(self._shard_size)
            self._writer.add(shard.pair_ids, torch.stack(shard.pair), torch.stack(shard.context))
            self._stored += shard.pair_ids
            self._buffer = rest


def _digests(tokens: Tokens) -> list[tuple[int, Digest | None, bool]]:
    """Each pair's row, its tokens' digest (None without response tokens), and whether its prompts are the same."""
    named = None if tokens.pair_ids is None else tokens.pair_ids.cpu()
    ids = tokens.input_ids.cpu()
    attended = tokens.attention_mask.cpu() != 0
    response = tokens.response_mask.cpu() & attended
    prompts = [ids[row][attended[row] & ~response[row]].tolist() for row in range(len(ids))]
    responses = [ids[row][response[row]].tolist() for row in range(len(ids))]
    half = len(ids) // 2
    found: list[tuple[int, Digest | None, bool]] = []
    for row in range(half):
        other = row + half
        digest = None
        if responses[row] and responses[other]:
            sides = prompts[row], responses[row], prompts[other], responses[other]
            digest = token_digest(*sides) if named is None else bytes(named[row].tolist())
        found.append((row, digest, prompts[row] == prompts[other]))
    return found
