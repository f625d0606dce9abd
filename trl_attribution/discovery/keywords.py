"""Words that set one group of texts apart from the others: class-based TF-IDF.

Axis letters: K groups, W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trl_attribution.utils.arrays import Doubles

_LONGEST = 4_000
# Two letters or more, no digits in front; "don't" is one word.
_WORD = r"(?u)\b[^\W\d_][\w'’]*\w\b"


@dataclass(frozen=True)
class Group:
    """Texts that something leads to, and texts that it leads away from."""

    towards: Sequence[str]
    away: Sequence[str] = ()


def keywords(groups: Sequence[Group], count: int = 8) -> list[list[str]]:
    """Up to ``count`` words for each group, the most telling first.

    A word weighs (share of the group's texts towards that have it, minus the share of those away) times
    log(1 + A / f): f is in how many texts of all groups it is, A how many that is on average. Words count once a text.
    Common English words and texts beyond 4,000 characters are left out of account; words with no weight are not listed.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [text[:_LONGEST] for group in groups for text in (*group.towards, *group.away)]
    vectorizer = CountVectorizer(binary=True, stop_words="english", token_pattern=_WORD)
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # not one word in all texts
        return [[] for _ in groups]
    words = vectorizer.get_feature_names_out()
    frequency_W = np.asarray(counts.sum(axis=0)).ravel()
    rarity_W = np.log1p(frequency_W.mean() / frequency_W)
    found, start = [], 0
    for group in groups:
        middle, end = start + len(group.towards), start + len(group.towards) + len(group.away)
        share_W = _share(counts[start:middle]) - _share(counts[middle:end])
        weight_W = share_W * rarity_W
        order = np.lexsort((words, -weight_W))[:count]
        found.append([str(words[place]) for place in order if weight_W[place] > 0])
        start = end
    return found


def _share(counts: Any) -> Doubles:
    """``[W]``: share of the texts (rows of a sparse matrix) that have each word."""
    share: Doubles = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel() / max(1, counts.shape[0])
    return share
