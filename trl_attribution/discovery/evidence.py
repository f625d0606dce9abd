"""What stands behind a cluster: the pairs that push towards it, their sources, its words and its typical prompts.

Axis letters: P items, M exemplars, L layers, D hidden size, N pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trl_attribution.discovery.audited import AuditedPairs, ReadPairs
from trl_attribution.discovery.changes import Change
from trl_attribution.discovery.config import DiscoveryConfig
from trl_attribution.discovery.confirming import FoundCluster
from trl_attribution.discovery.keywords import Group, keywords
from trl_attribution.discovery.result import ClusterVectors, TopPair, TypicalPrompt
from trl_attribution.discovery.similarity import Items, Kind, Progress
from trl_attribution.pairs import Pair, whole_text
from trl_attribution.probes import Probe
from trl_attribution.scoring import Rule, Scores, SourceRow, flag, score_view, source_table
from trl_attribution.scoring.targets import unit_rows

FDR = 0.05
_EXCERPT = 300
_OTHERS = 200


@dataclass(frozen=True)
class Words:
    """Keywords of one cluster."""

    responses: tuple[str, ...]
    lost: tuple[str, ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class PairEvidence:
    """What the audited pairs say of one cluster."""

    top: tuple[TopPair, ...]
    """Without texts."""
    towards: int
    sources: tuple[SourceRow, ...]
    sources_by: str
    """The rule that ``sources`` counts by."""
    counted: Mapping[int, float]
    """Position among the N pairs -> score, of the pairs that ``sources`` counts."""


def exemplars(found: FoundCluster, count: int) -> list[int]:
    """The ``count`` members closest to the center, closest first."""
    order = np.argsort(-found.closeness, kind="stable")[:count]
    return [int(place) for place in found.members[order]]


def cluster_vectors(items: Items, places: Sequence[int], kind: Kind) -> ClusterVectors:
    """The exemplars' vectors, and the direction that they share."""
    own = items.take(places)
    return ClusterVectors(own.vectors.mean(dim=0), own.vectors, own.contexts if kind == "contextual" else None)


def consistency(items: Items, places: Sequence[int], row: int) -> float:
    """Length of the mean of the unit vectors of the items at ``places``, at layer number ``row``."""
    return float(unit_rows(items.vectors[list(places), row]).mean(dim=0).norm())


def vector_cosine(items: Items, places: Sequence[int], row: int) -> float:
    """Mean cosine between the vectors of two different items at ``places``; 1 for one alone."""
    count = len(places)
    length = consistency(items, places, row)
    return (count * length**2 - 1) / (count - 1) if count > 1 else 1.0


def scores_of(
    audited: AuditedPairs,
    clusters: Mapping[str, ClusterVectors],
    layers: Sequence[int],
    layer: int,
    means: Mapping[int, Tensor],
    scratch: Path,
    progress: Progress | None,
) -> Scores:
    """The score of every audited pair for every cluster, at ``layer``, as for pairs whatever the examples are."""
    probes = [
        Probe(name, tuple(layers), one.vector, layer, audited.model, one.prompt_vectors, one.contexts)
        for name, one in clusters.items()
    ]
    return score_view(audited.view, probes, "auto", [layer], scratch, context_means=means, progress=progress)


def pair_evidence(
    audited: AuditedPairs, scores: Scores, cluster: str, config: DiscoveryConfig, expected: int
) -> PairEvidence:
    """Top pairs of ``cluster``, how many push towards it, and which sources they come from.

    Pairs that train against a behavior hide those that teach it from the mirror null. Where no pair passes it, the
    ``expected`` number of top pairs is counted by source instead, or as many as are listed if that is more.
    """
    flags = flag(scores, Rule(fdr=FDR), cluster)
    top = flag(scores, Rule(top_k=min(config.top, len(audited))), cluster)
    towards = len(flags) - flags.not_towards
    most = min(max(config.top, expected), len(audited))
    counted = flags if towards else flag(scores, Rule(top_k=most), cluster)
    return PairEvidence(
        top=tuple(
            TopPair(
                pair_id=found.pair_id,
                row=int(audited.rows[found.position]),
                source=audited.sources[found.position].as_py(),
                rank=found.rank,
                score=round(found.score, 6),
                q_value=found.q_value,
            )
            for found in top
            if found.score > 0
        ),
        towards=towards,
        sources=tuple(source_table(counted, audited.sources)),
        sources_by=", ".join(f"{name} {value:g}" for name, value in counted.rule.as_dict().items()),
        counted={found.position: found.score for found in counted if found.score > 0},
    )


def prompt_words(
    changes: Sequence[Change], exemplars_of: Sequence[Sequence[int]], config: DiscoveryConfig
) -> list[Words]:
    """Words of each cluster's responses after against before, and of its prompts against other prompts."""
    said = [
        Group(
            [text for place in places for text in changes[place].after],
            [text for place in places for text in changes[place].before],
        )
        for places in exemplars_of
    ]
    everything = [whole_text(one.prompt) for one in changes]
    return _words(said, _asked(everything, exemplars_of, config.seed))


def typical_prompts(
    changes: Sequence[Change], found: FoundCluster, places: Sequence[int], count: int
) -> tuple[TypicalPrompt, ...]:
    """The prompts closest to the center, each with its first responses before and after."""
    close = dict(zip(found.members.tolist(), found.closeness.tolist(), strict=True))
    return tuple(
        TypicalPrompt(
            location=changes[place].location,
            closeness=round(close[place], 6),
            prompt=excerpt(changes[place].prompt),
            before=excerpt(changes[place].before[0]),
            after=excerpt(changes[place].after[0]),
        )
        for place in places[:count]
    )


@dataclass(frozen=True)
class PairTexts:
    """The texts of some audited pairs by id, as far as they were found."""

    pairs: Mapping[str, Pair]
    note: str = ""
    """What could not be read."""

    @classmethod
    def read(cls, audited: AuditedPairs, read: ReadPairs | None, wanted: Iterable[int]) -> PairTexts:
        """Read the pairs at the ``wanted`` places, all at once: a dataset on disk is gone through once."""
        if read is None:
            return cls({}, "texts of pairs were not read: there are no excerpts of them and no keywords")
        rows = audited.rows_of(sorted(set(wanted)))
        found = read(rows)
        missing = len(rows) - len(found)
        note = f"{missing:,} pairs were not found in the dataset: is it the one that was audited?" if missing else ""
        return cls(found, note)

    def filled(self, top: TopPair) -> TopPair:
        """``top`` with its texts."""
        pair = self.pairs.get(top.pair_id)
        if pair is None:
            return top
        prompt, chosen, rejected = (excerpt(side) for side in pair.shown)
        return replace(top, prompt=prompt, chosen=chosen, rejected=rejected)


def other_places(count: int, seed: int) -> list[int]:
    """Up to 200 of ``count`` places, drawn by ``seed``: what a cluster's prompts are compared with."""
    chosen = np.random.default_rng([seed, 2]).permutation(count)[:_OTHERS]
    return sorted(int(place) for place in chosen)


def pair_words(texts: PairTexts, exemplar_ids: Sequence[Sequence[str]], other_ids: Sequence[str]) -> list[Words]:
    """Words of each cluster's chosen against its rejected responses, and of its prompts against other prompts."""
    said, asked = [], []
    for ids in exemplar_ids:
        own = [texts.pairs[pair_id] for pair_id in ids if pair_id in texts.pairs]
        others = [texts.pairs[pair_id] for pair_id in other_ids if pair_id in texts.pairs and pair_id not in set(ids)]
        said.append(Group([whole_text(pair.chosen) for pair in own], [whole_text(pair.rejected) for pair in own]))
        asked.append(Group([whole_text(pair.prompt) for pair in own], [whole_text(pair.prompt) for pair in others]))
    return _words(said, asked)


def excerpt(content: str | Sequence[dict[str, Any]]) -> str:
    """The start of a text, or of the last message of a conversation."""
    text = content if isinstance(content, str) else whole_text(content[-1:])
    return text[:_EXCERPT]


def _asked(everything: Sequence[str], exemplars_of: Sequence[Sequence[int]], seed: int) -> list[Group]:
    some = other_places(len(everything), seed)
    return [
        Group(
            [everything[place] for place in places],
            [everything[place] for place in some if place not in set(places)],
        )
        for places in exemplars_of
    ]


def _words(said: Sequence[Group], asked: Sequence[Group]) -> list[Words]:
    turned = [Group(group.away, group.towards) for group in said]
    return [Words(*map(tuple, words)) for words in zip(keywords(said), keywords(turned), keywords(asked), strict=True)]


def gather(audited: AuditedPairs, places: Sequence[int], layers: Sequence[int]) -> Items:
    """The vectors of the audited pairs at ``places`` as items."""
    view = audited.store.select([audited.pair_ids[place] for place in places])
    blocks = list(view.blocks(layers, 1024))
    return Items(torch.cat([one.pair for one in blocks]), torch.cat([one.context for one in blocks]))
