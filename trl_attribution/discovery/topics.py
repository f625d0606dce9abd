"""Topics: a tree of clusters of prompts, by M0's context vectors and by their words, down to a handful of them.

Axis letters: P clustered pairs, n pairs, D hidden size, V tokens, W dimensions of wording, K leaves, T topics.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from trl_attribution.discovery.keywords import Group, keywords
from trl_attribution.discovery.traits.panel import unit
from trl_attribution.utils.arrays import Doubles, Floats, Integers

_CONTRACTION = re.compile("['’]")
_WORDING = 100
_CONTEXT = 0.7
"""How much contexts count beside words: alone they part prompts by how they ask more than by what they are about."""
MOST_LEAVES = 96
"""Topics at the finest; there are nearly twice as many in all."""
MOST_PARTS = 6
"""Topics that the dataset is divided into without overlap."""


@dataclass(frozen=True, eq=False)
class Wording:
    """What prompts are worded like, in few dimensions: rare tokens count more, and those that go together are one."""

    counter: Any
    """A fitted ``CountVectorizer``; None where there are no tokens."""
    basis: Doubles
    """``[V, W]``: tokens, weighed by the log of how rare they are, onto the first singular vectors."""

    @classmethod
    def of(cls, texts: Sequence[str], tokens: Callable[[str], list[str]]) -> Self:
        """The wording of these texts, of which M0's tokenizer makes ``tokens``, in whatever language."""
        from scipy.sparse import diags
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.preprocessing import normalize

        counter = CountVectorizer(analyzer=tokens)
        try:
            counts = counter.fit_transform(texts)
        except ValueError:  # not one token in all texts
            return cls(None, np.zeros((0, 0)))
        rarity = diags(np.log(len(texts) / np.asarray((counts > 0).sum(axis=0)).ravel()))
        dimensions = min(_WORDING, *counts.shape)
        svd = TruncatedSVD(dimensions, random_state=0)
        return cls(counter, rarity @ svd.fit(normalize(counts @ rarity)).components_.T)

    def vectors(self, texts: Sequence[str]) -> Doubles:
        """``[n, W]``, of length 1; zero for texts without a token that is known."""
        if self.counter is None:
            return np.zeros((len(texts), 0))
        return unit(self.counter.transform(texts) @ self.basis)


@dataclass(frozen=True, eq=False)
class Topics:
    """The branches of a Ward tree of prompts, overlapping on purpose: an effect may live in a wide or a narrow one."""

    centers: Doubles
    """``[K, W + D]``, the leaves' centers, of length 1."""
    context: Doubles
    """``[D]``: mean, taken off every context first."""
    middle: Doubles
    """``[W + D]``: mean of wording and context together."""
    members: npt.NDArray[np.bool_]
    """``[T, K]``: which leaves each topic is made of; the first is the whole."""
    parts: tuple[int, ...] = (0,)
    """Topics that do not overlap and are the whole together."""

    @classmethod
    def of(cls, contexts: Doubles, wording: Doubles | Floats, fewest: int) -> Self:
        """The topics of these contexts ``[P, D]`` and wordings ``[P, W]``; leaves have about ``fewest`` or more."""
        from scipy.cluster.hierarchy import linkage

        usable = np.linalg.norm(contexts, axis=1) > 0
        count, size = int(usable.sum()), contexts.shape[1] + wording.shape[1]
        most = min(MOST_LEAVES, count // max(1, fewest))
        if most < 2:
            return cls(np.zeros((1, size)), np.zeros(contexts.shape[1]), np.zeros(size), np.ones((1, 1), dtype=bool))
        context = contexts[usable].mean(axis=0)
        rows = _beside(contexts[usable] - context, wording[usable])
        middle = rows.mean(axis=0)
        rows = unit(rows - middle)
        tree = linkage(rows, "ward")
        branches = _branches(tree, count, most)
        leaves = [branch for branch in branches if branch.is_leaf]
        centers = unit(np.stack([rows[list(leaf.items)].mean(axis=0) for leaf in leaves]))
        members = np.array([[set(leaf.items) <= set(branch.items) for leaf in leaves] for branch in branches])
        flat = {branch.items for branch in _branches(tree, count, min(MOST_PARTS, most)) if branch.is_leaf}
        parts = tuple(number for number, branch in enumerate(branches) if branch.items in flat)
        return cls(centers, context, middle, members, parts)

    def leaves_of(self, contexts: Doubles, wording: Doubles | Floats) -> Integers:
        """``[n]``: the leaf whose center is closest to each of these contexts ``[n, D]`` and wordings ``[n, W]``."""
        rows = unit(_beside(contexts - self.context, wording) - self.middle)
        found: Integers = (rows @ self.centers.T).argmax(axis=1)
        return found

    @property
    def part_of_leaf(self) -> Integers:
        """``[K]``: the topic among ``parts`` that each leaf belongs to."""
        found: Integers = np.array(self.parts)[self.members[list(self.parts)].argmax(axis=0)]
        return found


def _beside(contexts: Doubles, wording: Doubles | Floats) -> Doubles:
    """``[n, W + D]``: wordings, and contexts without their mean, as topics compare them."""
    return np.concatenate([wording, _CONTEXT * unit(contexts)], axis=1)


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
