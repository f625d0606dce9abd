"""Discovery from end to end: over the prompts of a behavior change, or over the pairs alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from trl_attribution.discovery import evidence
from trl_attribution.discovery.audited import AuditedPairs, ReadPairs
from trl_attribution.discovery.changes import ChangeVectors
from trl_attribution.discovery.comparing import Compared, DiscoveryRun, Kept
from trl_attribution.discovery.config import DiscoveryConfig
from trl_attribution.discovery.confirming import FoundCluster
from trl_attribution.discovery.evidence import PairTexts, Words
from trl_attribution.discovery.naming import Naming
from trl_attribution.discovery.pair_map import draw_map, map_places
from trl_attribution.discovery.result import Cluster, Discovery, MapPoint, Rejected, StoredDiscovery, TypicalPrompt
from trl_attribution.utils.progress import OnProgress, silent
from trl_attribution.utils.text import printable

Namer = Callable[[Cluster], Naming]


def discover_prompts(
    audited: AuditedPairs,
    changed: ChangeVectors,
    config: DiscoveryConfig,
    *,
    read: ReadPairs | None = None,
    namer: Namer | None = None,
    on_progress: OnProgress | None = None,
) -> StoredDiscovery:
    """Behaviors that training changed, as tight clusters of prompts by what their change has in common with the pairs.

    Args:
        audited: the audit.
        changed: the prompts' vectors on M0 at ``audited.layers(config.layers)``.
        config: what a cluster has to be.
        read: reads the texts of pairs; without it there are none beside the pairs.
        namer: names a cluster.
        on_progress: called with (stage, done, in all).

    Raises:
        SettingsError: a layer is not stored, or there are too few prompts.
        StoreError: a vector is not finite.
    """
    run = DiscoveryRun(audited, config, "prompts", on_progress or silent, dict(changed.left_out))
    compared = run.compare(changed.items)
    texts = _read(run, compared, read, [])
    words = evidence.prompt_words(changed.changes, [one.exemplars for one in compared.kept], config)
    typical = [evidence.typical_prompts(changed.changes, one.found, one.exemplars, config.top) for one in compared.kept]
    return _stored(run, compared, words, typical, texts, namer)


def discover_pairs(
    audited: AuditedPairs,
    config: DiscoveryConfig,
    *,
    read: ReadPairs | None = None,
    namer: Namer | None = None,
    on_progress: OnProgress | None = None,
) -> StoredDiscovery:
    """What the dataset teaches, by size of effect, as tight clusters of pairs; nobody has to have trained on it.

    Up to ``config.sample`` pairs stand in the place of prompts: each is compared with all others by what it has in
    common with every pair of the dataset. All N pairs are then scored for each cluster found.

    Args:
        audited: the audit; it needs no probes.
        config: what a cluster has to be.
        read: reads the texts of pairs; without it there are neither texts nor keywords.
        namer: names a cluster.
        on_progress: called with (stage, done, in all).

    Raises:
        SettingsError: a layer is not stored, or there are too few pairs.
        StoreError: a vector is not finite.
    """
    run = DiscoveryRun(audited, config, "pairs", on_progress or silent)
    drawn = np.random.default_rng([config.seed, 4]).permutation(len(audited))[: config.sample]
    places = sorted(int(place) for place in drawn)
    compared = run.compare(evidence.gather(audited, places, run.layers))
    exemplars = [[places[item] for item in one.exemplars] for one in compared.kept]
    others = evidence.other_places(len(audited), config.seed)
    texts = _read(run, compared, read, [*others, *(place for own in exemplars for place in own)])
    ids = [[audited.pair_ids[place] for place in own] for own in exemplars]
    words = evidence.pair_words(texts, ids, [audited.pair_ids[place] for place in others])
    return _stored(run, compared, words, [()] * len(compared.kept), texts, namer)


def _read(run: DiscoveryRun, compared: Compared, read: ReadPairs | None, further: Sequence[int]) -> PairTexts:
    """The texts of the top pairs and of ``further`` places."""
    with run.watch.timed("texts"):
        wanted = [*_top_places(run, compared), *further] if compared.kept else []
        return PairTexts.read(run.audited, read, wanted)


def _top_places(run: DiscoveryRun, compared: Compared) -> list[int]:
    place_of = {pair_id: place for place, pair_id in enumerate(run.audited.pair_ids)}
    return [place_of[top.pair_id] for one in compared.kept for top in one.pairs.top]


def _stored(
    run: DiscoveryRun,
    compared: Compared,
    words: Sequence[Words],
    typical: Sequence[tuple[TypicalPrompt, ...]],
    texts: PairTexts,
    namer: Namer | None,
) -> StoredDiscovery:
    """Everything together; lists are in the order of ``compared.kept``."""
    notes = [texts.note] if texts.note else []
    clusters = []
    for place, one in enumerate(compared.kept):
        run.on_progress("Describing clusters", place + 1, len(compared.kept))
        cluster = _described(run, one, words[place], typical[place], texts)
        clusters.append(cluster if namer is None else _named(cluster, namer, notes))
    with run.watch.timed("map"):
        points = _map(run, compared)
    info = run.audited.info
    discovery = Discovery(
        mode=run.mode,
        dataset=info.dataset.model_dump(include={"name", "fingerprint", "pairs"}),
        model=info.model.model_dump(include={"name", "digest"}),
        settings=run.config.to_json(),
        layers=run.layers,
        kind=run.kind,
        items=len(compared.split.fit) + len(compared.split.held_out),
        fit=len(compared.split.fit),
        held_out=len(compared.split.held_out),
        left_out={reason: count for reason, count in run.left_out.items() if count},
        clusters=tuple(clusters),
        rejected=tuple(map(_rejected, compared.rejected)),
        heatmap=compared.heatmap_labels,
        map=points,
        notes=tuple(notes),
        seconds=run.watch.rounded(),
    )
    return StoredDiscovery(discovery, {one.name: one.vectors for one in compared.kept}, compared.heatmap)


def _described(
    run: DiscoveryRun, one: Kept, words: Words, typical: tuple[TypicalPrompt, ...], texts: PairTexts
) -> Cluster:
    found, pairs = one.found, one.pairs
    return Cluster(
        cluster=one.name,
        name="",
        words=words.responses,
        lost_words=words.lost,
        prompt_words=words.prompts,
        effect=one.effect,
        share=one.share,
        consistency=one.consistency,
        members=len(found.members),
        fit=len(found.fit),
        towards=len(found.towards),
        against=found.against,
        p_value=found.p_value,
        adjusted_p=found.adjusted_p,
        tightness=found.tightness,
        held_out_tightness=found.held_out_tightness,
        vector_cosine=one.vector_cosine,
        stability=found.stability,
        layer=run.layer,
        kind=run.kind,
        pairs_towards=pairs.towards,
        typical_prompts=typical,
        top_pairs=tuple(map(texts.filled, pairs.top)),
        sources=pairs.sources,
        sources_by=pairs.sources_by,
    )


def _named(cluster: Cluster, namer: Namer, notes: list[str]) -> Cluster:
    naming = namer(cluster)
    if naming.fault:
        notes.append(f"{cluster.cluster} has no name: {printable(naming.fault, 300)}")
    return replace(cluster, name=naming.name)


def _map(run: DiscoveryRun, compared: Compared) -> tuple[MapPoint, ...]:
    places = map_places(run.audited, _top_places(run, compared), run.config.map_pairs, run.config.seed)
    run.on_progress("Drawing the map", 0, len(places))
    mean = run.means.get(run.layer, torch.zeros(run.audited.view.hidden_size))
    counted = {one.name: one.pairs.counted for one in compared.kept}
    points = draw_map(run.audited, places, run.layer, run.kind, mean, counted, run.config.seed)
    run.on_progress("Drawing the map", len(places), len(places))
    return points


def _rejected(one: FoundCluster) -> Rejected:
    return Rejected(
        fault=str(one.fault),
        members=len(one.fit),
        tightness=one.tightness,
        stability=one.stability,
        towards=len(one.towards),
        against=one.against,
        adjusted_p=one.adjusted_p,
    )


__all__ = ["Namer", "discover_pairs", "discover_prompts"]
