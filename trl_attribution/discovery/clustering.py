"""Ward clusters of items by the cosines of their rows, cut where they are tight and of one piece.

Axis letters: P items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trl_attribution.discovery.config import DiscoveryConfig
from trl_attribution.utils.arrays import Doubles, Floats, Integers


@dataclass(frozen=True)
class Candidate:
    """A tight cluster."""

    members: Integers
    """Places among the clustered items, ascending."""
    tightness: float
    """Mean cosine between two different members."""


def tree_of(cosine: Floats) -> Doubles:
    """The Ward tree of items with these cosines ``[P, P]`` between their rows, as scipy's linkage matrix.

    Rows are taken at length 1, so that the squared distance of two is 2 - 2 cos: a Euclidean one, as Ward needs it.
    """
    from scipy.cluster.hierarchy import linkage

    # Row by row: the indices of all pairs of items would take four times the memory of their cosines.
    distances = np.concatenate([row[place + 1 :] for place, row in enumerate(cosine)]).astype(np.float64)
    np.multiply(distances, -2.0, out=distances)
    np.add(distances, 2.0, out=distances)
    np.sqrt(np.clip(distances, 0.0, None, out=distances), out=distances)
    tree: Doubles = linkage(distances, "ward")
    return tree


def candidates(cosine: Floats, config: DiscoveryConfig, min_size: int | None = None) -> list[Candidate]:
    """The largest tight clusters of the Ward tree that are of one piece, largest first.

    From the root down: a node is a cluster if the mean cosine between its members is above ``config.tightness`` and its
    two halves are not clusters of their own, that is, their mean cosine with one another is at least
    ``config.separation`` times that within the tighter of them. Otherwise its halves are looked at. (Tightness alone
    would not do: two unrelated groups of equal size, each perfectly tight, have a mean cosine of 0.5 together.)
    """
    fewest = config.min_size if min_size is None else min_size
    if len(cosine) < max(2, fewest):
        return []
    tree = _Tree(tree_of(cosine))
    found = []
    waiting = [tree.root]
    while waiting:
        node = waiting.pop()
        if tree.size[node] < fewest:
            continue
        left, right = tree.halves(node)
        if tree.tightness(node) > config.tightness and not _apart(tree, node, config.separation):
            found.append(Candidate(tree.members(node), tree.tightness(node)))
        else:
            waiting += [left, right]
    return sorted(found, key=lambda one: (-len(one.members), int(one.members[0])))


def _apart(tree: _Tree, node: int, separation: float) -> bool:
    own = max(tree.tightness(half) for half in tree.halves(node))
    return tree.between(node) < separation * own


class _Tree:
    """A linkage matrix, with the squared length of every node's mean row."""

    def __init__(self, linkage: Doubles) -> None:
        self._leaves = len(linkage) + 1
        self._linkage = linkage
        self.root = 2 * self._leaves - 2
        self.size = np.concatenate([np.ones(self._leaves), linkage[:, 3]])
        self._square = np.ones(self.root + 1)
        self._dot = np.ones(self.root + 1)
        for row in range(len(linkage)):
            node = self._leaves + row
            left, right = self.halves(node)
            a, b = self.size[left], self.size[right]
            # Ward's height h: h^2 = 2ab / (a + b) |mean - mean|^2.
            apart = linkage[row, 2] ** 2 * (a + b) / (2 * a * b)
            self._dot[node] = (self._square[left] + self._square[right] - apart) / 2
            total = a * a * self._square[left] + b * b * self._square[right] + 2 * a * b * self._dot[node]
            self._square[node] = total / (a + b) ** 2

    def halves(self, node: int) -> tuple[int, int]:
        row = self._linkage[node - self._leaves]
        return int(row[0]), int(row[1])

    def tightness(self, node: int) -> float:
        """Mean cosine between different members; 1 for a leaf."""
        size = self.size[node]
        return float((size * self._square[node] - 1) / (size - 1)) if size > 1 else 1.0

    def between(self, node: int) -> float:
        """Mean cosine between the members of one half and those of the other."""
        return float(self._dot[node])

    def members(self, node: int) -> Integers:
        return np.array(sorted(self._leaves_under(node)), dtype=np.int64)

    def _leaves_under(self, node: int) -> Iterator[int]:
        waiting = [node]
        while waiting:
            here = waiting.pop()
            if here < self._leaves:
                yield here
            else:
                waiting += self.halves(here)
