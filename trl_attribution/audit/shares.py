"""Which pairs a rank or a job computes: blocks of the dataset's pairs, dealt out in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trl_attribution.errors import SettingsError
from trl_attribution.store.ids import IdIndex, parse_ids
from trl_attribution.utils.distributed import Ranks
from trl_attribution.utils.text import printable, whole_number

if TYPE_CHECKING:
    from trl_attribution.pairs import Pair
    from trl_attribution.pairs.dataset_pass import PairIndex
    from trl_attribution.store import VectorStore


@dataclass(frozen=True)
class Share:
    """Every ``count``-th block of pairs, from block ``index`` on (both from 0).

    Dealt out in turn, shares take alike times even where a dataset is sorted by length or source.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise SettingsError(f"shard: {self} is not there; give i/n with i from 1 to n, such as 3/8")

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Share:
        """``3/8`` is the third of eight.

        Raises:
            SettingsError: it is not of this form, or there is no such share.
        """
        index, _, count = (whole_number(part) for part in text.partition("/"))
        if index is None or count is None:
            raise SettingsError(
                f"shard: {printable(text, 40)!r} is not of the form i/n, such as 3/8 for the third of eight jobs"
            )
        return cls(index - 1, count)

    def owns(self, block: int) -> bool:
        """Whether block number ``block`` (from 0) belongs to this share."""
        return block % self.count == self.index

    def of_rank(self, ranks: Ranks) -> Share:
        """What one rank takes of this share; jobs of one split never take one another's numbers."""
        return Share(self.index + self.count * ranks.rank, self.count * ranks.world)


class Blocks:
    """Deals a dataset's pairs out while they are read: which of them belong to a share and are still to be computed.

    A block is ``shard_size`` pairs in dataset order, counted over the different pairs that ``base`` lacks: what a
    single process would write as one shard. So vectors do not depend on how many ranks or jobs there are.

    Args:
        base: the store that all shares end up in, as it was before any of them began; None where there is none yet.
        parts: what was computed by shares so far, of whatever split.
        share: None looks at all shares.
        shard_size: pairs in a block.
    """

    def __init__(
        self, base: VectorStore | None, parts: Sequence[VectorStore], share: Share | None, shard_size: int
    ) -> None:
        self.base = base
        self._parts = parts
        self._share = share
        self._shard_size = shard_size
        self._seen = IdIndex()
        self._count = 0
        self.missing: dict[str, int] = {}
        """The share's pairs that no part holds, with the number of each one's block."""

    def add(self, pairs: Sequence[Pair]) -> list[bool]:
        """Take in the next pairs of the dataset; for each, whether it is now in :attr:`missing` for the first time."""
        ids = [pair.pair_id for pair in pairs]
        new = self._seen.take_new(parse_ids(ids))
        if self.base is not None:
            new &= ~self.base.holds(ids)
        done = held_by_any(self._parts, ids)
        known = zip(ids, new.tolist(), done.tolist(), strict=True)
        return [is_new and self._add(pair_id, held) for pair_id, is_new, held in known]

    def numbers(self, index: PairIndex) -> npt.NDArray[np.int64]:
        """The number of the block of each pair of ``index`` [N] that is :attr:`missing`, -1 of the others."""
        if not self.missing:
            return np.full(len(index), -1)
        return np.fromiter((self.missing.get(pair_id, -1) for pair_id in index.pair_ids), np.int64, len(index))

    def _add(self, pair_id: str, in_parts: bool) -> bool:
        block = self._count // self._shard_size
        self._count += 1
        if in_parts or (self._share is not None and not self._share.owns(block)):
            return False
        self.missing[pair_id] = block
        return True


def held_by_any(parts: Sequence[VectorStore], pair_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
    """For each pair, whether one of ``parts`` has it."""
    found = np.zeros(len(pair_ids), dtype=bool)
    for part in parts:
        found |= part.holds(pair_ids)
    return found
