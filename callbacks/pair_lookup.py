"""Finds the pair that a row of a batch is by a digest of its tokens, which are all that reaches a batch of texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from trl_attribution.pairs import EncodedPair

Digest = bytes


def token_digest(
    chosen_prompt: Sequence[int], chosen: Sequence[int], rejected_prompt: Sequence[int], rejected: Sequence[int]
) -> Digest:
    """16 bytes that stand for the four token sequences, lengths included."""
    digest = hashlib.blake2b(digest_size=16)
    for ids in (chosen_prompt, chosen, rejected_prompt, rejected):
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(np.asarray(ids, dtype=np.int64).tobytes())
    return digest.digest()


class PairLookup:
    """Token digest -> pair ids. Different pairs can come to the same tokens, and then have the same vectors."""

    def __init__(self) -> None:
        self._first: dict[Digest, str] = {}
        self._more: dict[Digest, list[str]] = {}

    def add(self, encoded: EncodedPair) -> None:
        """Make ``encoded`` known by its tokens; with images, which tokens do not tell apart, by its id."""
        sides = encoded.chosen.prompt_ids, encoded.chosen.response_ids
        others = encoded.rejected.prompt_ids, encoded.rejected.response_ids
        digest = token_digest(*sides, *others) if encoded.collate is None else bytes.fromhex(encoded.pair_id)
        if self._first.setdefault(digest, encoded.pair_id) != encoded.pair_id:
            self._more.setdefault(digest, []).append(encoded.pair_id)

    def find(self, digest: Digest) -> list[str]:
        """The ids of all pairs with these tokens; none where no pair has them."""
        first = self._first.get(digest)
        return [] if first is None else [first, *self._more.get(digest, ())]
