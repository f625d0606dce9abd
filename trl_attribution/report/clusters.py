"""A discovery as the page shows it: facts of clusters, and the numbers behind the heatmap and the map of pairs.

Axis letters: n items of the heatmap, M pairs on the map.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trl_attribution.discovery import Cluster, Discovery, StoredDiscovery
from trl_attribution.discovery.clustering import tree_of
from trl_attribution.report.facts import Fact
from trl_attribution.report.page_data import packed
from trl_attribution.utils.text import printable, shell_command

COLORS = 8
"""Clusters or sources that have a color of their own on charts; what comes later shares one."""
_LABEL = 40
_CLUSTER = re.compile(r"[bp][1-9][0-9]{0,5}")


def register_command(folder: Path, discovery: Path, cluster: Cluster) -> str:
    """The command that makes ``cluster`` a probe; see :func:`shell_command`."""
    if not _CLUSTER.fullmatch(cluster.cluster):
        return ""
    words: list[str | Path] = ["trl-attribution", "discover", folder]
    words += ["--register", f"{cluster.cluster}:{suggested_name(cluster)}", "--probes", folder / "probes"]
    words += [] if discovery == folder / "discovery" else ["--output", discovery]
    return shell_command(*words)


def suggested_name(cluster: Cluster) -> str:
    """A name for its probe, of letters, digits and hyphens: by its name or words, else by its id."""
    words = re.findall(r"[a-z0-9]+", (cluster.name or " ".join(cluster.words[:3])).lower())
    return "-".join(words)[:40].strip("-") or "cluster"


def discovery_data(stored: StoredDiscovery, listed: Mapping[str, int], flagged: int) -> dict[str, Any]:
    """What the charts of a discovery draw.

    Args:
        stored: the discovery.
        listed: the place of each pair in the page's list.
        flagged: how many of these, from the first on, are flagged now; when pairs were mapped, others may have been.
    """
    found = stored.discovery
    place = {one.cluster: number for number, one in enumerate(found.clusters)}
    return {
        "clusters": [_label(f"{one.cluster} {one.name or ', '.join(one.words[:3])}".strip()) for one in found.clusters],
        "heatmap": _heatmap(stored, place) if len(stored.heatmap) > 1 else None,
        "map": _map(found, place, [listed.get(one.pair_id, -1) for one in found.map], flagged),
    }


def cluster_facts(found: Discovery, one: Cluster) -> list[Fact]:
    """The numbers of one cluster, and the words besides its own."""
    items = "prompts" if found.mode == "prompts" else "pairs"
    held_out = "not known" if one.held_out_tightness is None else f"{one.held_out_tightness:.2f} among the held-out"
    facts = [
        ("instead of", ", ".join(printable(word, 30) for word in one.lost_words)),
        ("on prompts with", ", ".join(printable(word, 30) for word in one.prompt_words)),
        ("effect", f"{one.effect:.3f}: {one.share:.1%} of the held-out {items}, consistency {one.consistency:.2f}"),
        ("confirmed", f"{one.towards:,} held-out {items} joined it, {one.against:,} would turned round"),
        ("chance of that", f"p {one.p_value:.2g}, {one.adjusted_p:.2g} corrected for the number of clusters"),
        ("tightness", f"{one.tightness:.2f}; {held_out}"),
        ("stability", f"{one.stability:.2f} under resampling"),
        ("members", f"{one.members:,} {items}, {one.fit:,} of them in the half that clusters were made from"),
        ("pairs", f"{one.pairs_towards:,} push towards it at 5% false discoveries ({one.kind}, layer {one.layer})"),
    ]
    return [(name, value) for name, value in facts if value]


def _heatmap(stored: StoredDiscovery, place: Mapping[str, int]) -> dict[str, Any]:
    """Cosines ``[n, n]`` between the rows of the items in the order of their Ward tree, alike ones side by side.

    Of each branch the corners ``[n - 1, 4]``: along the rows, where 0.5 is the middle of the first, and away from them.
    """
    from scipy.cluster.hierarchy import dendrogram

    cosine = stored.heatmap.numpy()
    tree: dict[str, Any] = dendrogram(tree_of(cosine), no_plot=True)
    order = tree["leaves"]
    ordered = np.nan_to_num(cosine[np.ix_(order, order)]).clip(-1, 1)
    return {
        "size": len(cosine),
        "cosine": packed(np.round(127 * ordered), "<i1"),
        "cluster": [place.get(stored.discovery.heatmap[item], -1) for item in order],
        "places": packed(np.array(tree["icoord"]) / 10, "<f4"),  # scipy leaves 10 for each row
        "heights": packed(np.array(tree["dcoord"]), "<f4"),
    }


def _map(found: Discovery, place: Mapping[str, int], listed: Sequence[int], flagged: int) -> dict[str, Any]:
    points = found.map
    counts = Counter(one.source for one in points)
    sources = sorted(counts, key=lambda source: (-counts[source], source))[:COLORS]
    number = {name: index for index, name in enumerate(sources)}
    names = dict.fromkeys(one.source for one in points)
    label = {name: index for index, name in enumerate(names)}
    return {
        "x": packed(np.array([one.x for one in points]), "<f4"),
        "y": packed(np.array([one.y for one in points]), "<f4"),
        "row": packed(np.array([one.row for one in points]), "<u4"),
        "flagged": [int(0 <= at < flagged) for at in listed],
        "cluster": [place.get(one.cluster, -1) for one in points],
        "source": [number.get(one.source, -1) for one in points],
        "name": [label[one.source] for one in points],
        "listed": list(listed),
        "sources": [_label(name) for name in sources],
        "names": [_label(name) for name in names],
    }


def _label(text: str) -> str:
    return printable(text, _LABEL)
