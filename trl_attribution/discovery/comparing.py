"""From items to the clusters to report, with the pairs that push towards each.

Axis letters: P items, N pairs, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from trl_attribution.discovery import evidence
from trl_attribution.discovery.audited import AuditedPairs
from trl_attribution.discovery.config import DiscoveryConfig, Mode
from trl_attribution.discovery.confirming import FoundCluster, Split, find_clusters, split_items
from trl_attribution.discovery.evidence import PairEvidence
from trl_attribution.discovery.result import ClusterVectors
from trl_attribution.discovery.similarity import Items, Kind, RowCosines, row_cosines
from trl_attribution.errors import SettingsError
from trl_attribution.scoring import context_means
from trl_attribution.utils.progress import OnProgress, Stopwatch
from trl_attribution.utils.text import tally

_HEATMAP = 300


@dataclass(frozen=True, eq=False)
class Kept:
    """One cluster to report."""

    name: str
    found: FoundCluster
    share: float
    """Of the held-out items, how many joined it."""
    consistency: float
    vector_cosine: float
    exemplars: tuple[int, ...]
    """Places of its most typical members among the items, closest first."""
    vectors: ClusterVectors
    pairs: PairEvidence

    @property
    def effect(self) -> float:
        """The size that clusters are ordered by."""
        return self.share * self.consistency


@dataclass(frozen=True, eq=False)
class Compared:
    """All that came of comparing the items."""

    split: Split
    kept: tuple[Kept, ...]
    """Largest effect first."""
    rejected: tuple[FoundCluster, ...]
    heatmap: Tensor
    """``[n, n]``."""
    heatmap_labels: tuple[str, ...]


@dataclass
class DiscoveryRun:
    """One discovery under way: what it is about, and what it has counted and timed so far."""

    audited: AuditedPairs
    config: DiscoveryConfig
    mode: Mode
    on_progress: OnProgress
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> items."""
    watch: Stopwatch = field(default_factory=Stopwatch)
    kind: Kind = "response"
    means: dict[int, Tensor] = field(default_factory=dict)
    """``mu`` by layer; empty where responses alone are compared."""

    def __post_init__(self) -> None:
        self.layers = self.audited.layers(self.config.layers)
        self._row = (len(self.layers) - 1) // 2
        self.layer = self.layers[self._row]

    def compare(self, items: Items) -> Compared:
        """The clusters of ``items``, with the pairs that push towards them.

        Raises:
            SettingsError: the items do not fit the layers, or are too few.
            StoreError: a vector is not finite.
        """
        self._check(items)
        rows = self._rows(items)
        usable = np.flatnonzero(rows.usable.numpy())
        self.left_out["alike to no pair"] = len(items) - len(usable)
        self._refuse_too_few(len(usable))
        split = split_items(usable, self.config.seed)
        with self.watch.timed("clusters"):
            found = find_clusters(rows.cosine.numpy(), split, self.config)
        kept = self._kept([one for one in found if one.fault is None], items, split)
        shown, labels = self._heatmap(kept, split)
        return Compared(
            split=split,
            kept=kept,
            rejected=tuple(one for one in found if one.fault is not None),
            heatmap=rows.cosine[shown][:, shown],
            heatmap_labels=labels,
        )

    def _check(self, items: Items) -> None:
        if items.vectors.shape[1:] != (len(self.layers), self.audited.view.hidden_size):
            raise SettingsError(
                f"the items' vectors have shape {list(items.vectors.shape)}; expected [P, {len(self.layers)}, "
                f"{self.audited.view.hidden_size}] for layers {', '.join(map(str, self.layers))}"
            )
        has_contexts = bool(items.contexts.any())
        if self.config.score == "contextual" and not has_contexts:
            raise SettingsError("score: contextual similarities need prompts, and there are none; give response")
        self.kind = "contextual" if has_contexts and self.config.score != "response" else "response"

    def _rows(self, items: Items) -> RowCosines:
        view = self.audited.view
        with self.watch.timed("similarity"):
            if self.kind == "contextual":
                self.means = context_means(view, self.layers)
            return row_cosines(
                view,
                items,
                self.layers,
                self.kind,
                self.means,
                progress=lambda done, total: self.on_progress("Comparing with all pairs", done, total),
            )

    def _refuse_too_few(self, usable: int) -> None:
        least = 4 * self.config.min_size
        if usable < least:
            reasons = tally({reason: count for reason, count in self.left_out.items() if count})
            raise SettingsError(
                f"{usable} {self.mode} can be compared{f' ({reasons})' if reasons else ''}, but at least {least} are "
                f"needed to find clusters of {self.config.min_size} in one half and confirm them in the other. Give "
                f"more {self.mode}, or a smaller min_size (--min-size)."
            )

    def _kept(self, found: Sequence[FoundCluster], items: Items, split: Split) -> tuple[Kept, ...]:
        """The clusters by size of effect, named in that order."""
        shares = [len(one.towards) / len(split.held_out) for one in found]
        lengths = [evidence.consistency(items, one.members.tolist(), self._row) for one in found]
        order = sorted(range(len(found)), key=lambda place: -shares[place] * lengths[place])
        letter = "b" if self.mode == "prompts" else "p"
        names = {f"{letter}{number}": place for number, place in enumerate(order, start=1)}
        exemplars = {name: evidence.exemplars(found[place], self.config.exemplars) for name, place in names.items()}
        vectors = {name: evidence.cluster_vectors(items, places, self.kind) for name, places in exemplars.items()}
        pairs = self._pairs(vectors, {name: shares[place] for name, place in names.items()})
        return tuple(
            Kept(
                name=name,
                found=found[place],
                share=shares[place],
                consistency=lengths[place],
                vector_cosine=evidence.vector_cosine(items, found[place].members.tolist(), self._row),
                exemplars=tuple(exemplars[name]),
                vectors=vectors[name],
                pairs=pairs[name],
            )
            for name, place in names.items()
        )

    def _pairs(self, vectors: Mapping[str, ClusterVectors], shares: Mapping[str, float]) -> dict[str, PairEvidence]:
        """What the audited pairs say of each cluster."""
        if not vectors:
            return {}
        with self.watch.timed("scores"):
            scores = evidence.scores_of(
                self.audited,
                vectors,
                self.layers,
                self.layer,
                self.means,
                self.audited.folder,
                lambda done, total: self.on_progress("Scoring all pairs", done, total),
            )
            # A share of prompts does not say how many pairs to expect.
            pairs = len(self.audited) if self.mode == "pairs" else 0
            return {
                name: evidence.pair_evidence(self.audited, scores, name, self.config, round(shares[name] * pairs))
                for name in vectors
            }

    def _heatmap(self, kept: Sequence[Kept], split: Split) -> tuple[list[int], tuple[str, ...]]:
        """Up to 300 items to draw, and the cluster of each: members in equal shares, others for the rest."""
        label = {int(item): one.name for one in kept for item in one.found.members}
        share = max(1, _HEATMAP * 2 // 3 // max(1, len(kept)))
        members = [int(item) for one in kept for item in one.found.members[:share]]
        others = [int(item) for item in np.concatenate([split.fit, split.held_out]) if int(item) not in label]
        drawn = np.random.default_rng([self.config.seed, 5]).permutation(len(others))
        shown = [*members, *(others[place] for place in drawn)][:_HEATMAP]
        return shown, tuple(label.get(item, "") for item in shown)
