"""Topics: a tree of clusters of context vectors, from the whole dataset down to a handful of prompts.

Axis letters: P clustered pairs, n pairs of a block, D hidden size, K leaves, T topics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from trl_attribution.discovery.keywords import Group, keywords
from trl_attribution.discovery.traits.panel import unit

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_CONTRACTION = re.compile("['’]")
MOST_LEAVES = 48
"""Topics at the finest; there are nearly twice as many in all."""
MOST_PARTS = 6
"""Topics that the dataset is divided into without overlap."""


@dataclass(frozen=True, eq=False)
class Topics:
    """The branches of a Ward tree of contexts, overlapping on purpose: an effect may live in a wide or a narrow one."""

    centers: Doubles
    """``[K, D]``, the leaves' centers, of length 1."""
    mean: Doubles
    """``[D]``: taken off every context first."""
    members: npt.NDArray[np.bool_]
    """``[T, K]``: which leaves each topic is made of; the first is the whole."""
    parts: tuple[int, ...] = (0,)
    """Topics that do not overlap and are the whole together."""

    @classmethod
    def of(cls, contexts: Doubles, fewest: int) -> Self:
        """The topics of these contexts ``[P, D]``; leaves have about ``fewest`` of them or more."""
        from scipy.cluster.hierarchy import linkage

        usable = contexts[np.linalg.norm(contexts, axis=1) > 0]
        count, hidden = len(usable), contexts.shape[1]
        most = min(MOST_LEAVES, count // max(1, fewest))
        if most < 2:
            return cls(np.zeros((1, hidden)), np.zeros(hidden), np.ones((1, 1), dtype=bool))
        mean = usable.mean(axis=0)
        rows = unit(usable - mean)
        tree = linkage(rows, "ward")
        branches = _branches(tree, count, most)
        leaves = [branch for branch in branches if branch.is_leaf]
        centers = unit(np.stack([rows[list(leaf.items)].mean(axis=0) for leaf in leaves]))
        members = np.array([[set(leaf.items) <= set(branch.items) for leaf in leaves] for branch in branches])
        flat = {branch.items for branch in _branches(tree, count, min(MOST_PARTS, most)) if branch.is_leaf}
        parts = tuple(number for number, branch in enumerate(branches) if branch.items in flat)
        return cls(centers, mean, members, parts)

    def leaves_of(self, contexts: Doubles) -> Integers:
        """``[n]``: the leaf whose center is closest to each of these contexts ``[n, D]``."""
        found: Integers = (unit(contexts - self.mean) @ self.centers.T).argmax(axis=1)
        return found

    @property
    def part_of_leaf(self) -> Integers:
        """``[K]``: the topic among ``parts`` that each leaf belongs to."""
        found: Integers = np.array(self.parts)[self.members[list(self.parts)].argmax(axis=0)]
        return found


@dataclass(frozen=True)
class _Branch:
    items: tuple[int, ...]
    is_leaf: bool


def _branches(tree: Doubles, count: int, most: int) -> list[_Branch]:
    """The nodes of the last ``most - 1`` merges and what hangs below them, widest first."""
    items: dict[int, tuple[int, ...]] = {place: (place,) for place in range(count)}
    first_cut = count - most  # merges before this one happen inside of leaves
    found: list[_Branch] = []
    for merge, (left, right) in enumerate(tree[:, :2].astype(int)):
        node = count + merge
        if merge >= first_cut:
            found += [_Branch(items[side], is_leaf=True) for side in (left, right) if side < count + first_cut]
        items[node] = items.pop(left) + items.pop(right)
        if merge >= first_cut:
            found.append(_Branch(items[node], is_leaf=False))
    return sorted(found, key=lambda branch: -len(branch.items))


def topic_words(texts: Sequence[str], inside: npt.NDArray[np.bool_], count: int = 4) -> tuple[str, ...]:
    """Words that set the prompts ``inside`` a topic apart from the others of ``texts``; RAW."""
    own = [text for text, is_inside in zip(texts, inside, strict=True) if is_inside]
    others = [text for text, is_inside in zip(texts, inside, strict=True) if not is_inside]
    found = keywords([Group(own, others)], 4 * count)[0] if own else []
    return tuple([word for word in found if not _CONTRACTION.search(word)][:count])  # "don't" names no topic
