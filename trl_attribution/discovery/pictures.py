"""Pictures of a discovery for papers and pages: the clusters' heatmap with its dendrogram, and the map of pairs.

Text of the dataset (sources) is drawn as plain ASCII with escapes, never as mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trl_attribution.discovery.clustering import tree_of
from trl_attribution.discovery.result import Discovery, MapPoint, StoredDiscovery
from trl_attribution.utils.figures import COLORS, FORMATS, check_matplotlib, label, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OTHER = "#9a9a9a"


def save_pictures(stored: StoredDiscovery, folder: str | Path) -> list[Path]:
    """Draw ``clusters`` (if any item was compared) and ``map`` into ``folder``, as PNG and SVG; gives the paths.

    Raises:
        SettingsError: matplotlib is not installed.
        AttributionError: the folder cannot be written.
    """
    figures = {"clusters": draw_heatmap(stored)} if len(stored.heatmap) > 1 else {}
    figures["map"] = draw_map(stored.discovery)
    paths = {Path(folder, f"{name}.{one}"): figure for name, figure in figures.items() for one in sorted(FORMATS)}
    for path, figure in paths.items():
        save_figure(figure, path)
    return list(paths)


@dataclass(frozen=True, eq=False)
class OrderedHeatmap:
    """The heatmap in the order of its Ward tree."""

    cosine: npt.NDArray[np.float32]
    """``[n, n]``."""
    clusters: tuple[str, ...]
    """``[n]``: the cluster of each row, empty for none."""
    places: npt.NDArray[np.float64]
    """``[n - 1, 4]``: corners of each branch along the rows, in rows: 0.5 is the middle of the first."""
    heights: npt.NDArray[np.float64]
    """``[n - 1, 4]``: and away from them."""


def ordered_heatmap(stored: StoredDiscovery) -> OrderedHeatmap:
    """Cosines between the rows of the items, alike ones side by side; there have to be two or more."""
    from scipy.cluster.hierarchy import dendrogram

    cosine = stored.heatmap.numpy()
    tree: dict[str, Any] = dendrogram(tree_of(cosine), no_plot=True)
    order = tree["leaves"]
    return OrderedHeatmap(
        cosine=cosine[np.ix_(order, order)],
        clusters=tuple(stored.discovery.heatmap[item] for item in order),
        places=np.array(tree["icoord"]) / 10,  # scipy leaves 10 for each row
        heights=np.array(tree["dcoord"]),
    )


def draw_heatmap(stored: StoredDiscovery) -> Figure:
    """Cosines between the rows of the items, in the order of their Ward tree, with the tree and the clusters beside."""
    figure = _figure(8.0, 7.0)
    grid = figure.add_gridspec(1, 3, width_ratios=(2, 0.25, 8), wspace=0.03)
    tree_axes, strip, heat = (figure.add_subplot(grid[0, place]) for place in range(3))
    found = ordered_heatmap(stored)
    cosine = found.cosine
    for places, heights in zip(found.places, found.heights, strict=True):
        tree_axes.plot(heights, places, color="#444444", linewidth=0.6)
    tree_axes.set_ylim(len(cosine), 0)
    tree_axes.invert_xaxis()
    tree_axes.set_axis_off()
    colors = _cluster_colors(stored.discovery)
    strip.imshow(
        [[_rgb(colors.get(name, "#ffffff"))] for name in found.clusters], aspect="auto", interpolation="nearest"
    )
    strip.set_axis_off()
    drawn = heat.imshow(cosine, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    heat.set_xticks([])
    heat.set_yticks([])
    figure.colorbar(drawn, ax=heat, fraction=0.046, label="cosine of rows")
    kind = "prompts" if stored.discovery.mode == "prompts" else "pairs"
    heat.set_title(f"{len(cosine)} {kind}, by what they have in common with all pairs", fontsize=10)
    _legend(heat, [(_title(stored.discovery, name), color, "s") for name, color in colors.items()])
    return figure


def draw_map(discovery: Discovery) -> Figure:
    """The pairs by source (color) and flag (a ring), and again by the cluster that they push towards."""
    figure = _figure(13.0, 6.2)
    by_source, by_cluster = (figure.add_subplot(1, 2, place) for place in (1, 2))
    sources = frequent([one.source for one in discovery.map], len(COLORS))
    source_colors = dict(zip(sources, COLORS, strict=False))
    _scatter(by_source, discovery.map, lambda one: source_colors.get(one.source, _OTHER), with_rings=True)
    shown = [(label(name), color, "o") for name, color in source_colors.items()]
    if any(one.source not in source_colors for one in discovery.map):
        shown.append(("other sources", _OTHER, "o"))
    if any(one.flagged for one in discovery.map):
        shown.append(("flagged", "none", "o"))
    _legend(by_source, shown)
    by_source.set_title("by source" + ("; flagged pairs ringed" if any(one.flagged for one in discovery.map) else ""))
    colors = _cluster_colors(discovery)
    _scatter(by_cluster, discovery.map, lambda one: colors.get(one.cluster, _OTHER), with_rings=False)
    _legend(
        by_cluster,
        [(_title(discovery, name), color, "o") for name, color in colors.items()] + [("none", _OTHER, "o")],
    )
    by_cluster.set_title("by the cluster that they push towards")
    layers = ", ".join(map(str, discovery.layers))
    figure.suptitle(f"{len(discovery.map):,} of {int(discovery.dataset['pairs']):,} pairs, layer {layers}")
    return figure


def _figure(width: float, height: float) -> Figure:
    check_matplotlib("drawing pictures")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _scatter(axes: Axes, points: Sequence[MapPoint], color: Callable[[MapPoint], str], *, with_rings: bool) -> None:
    # Gray points first, so that they do not hide the others.
    ordered = sorted(points, key=lambda one: color(one) != _OTHER)
    axes.scatter(
        [one.x for one in ordered], [one.y for one in ordered], s=9, c=[color(one) for one in ordered], linewidths=0
    )
    ringed = [one for one in points if one.flagged] if with_rings else []
    if ringed:
        axes.scatter(
            [one.x for one in ringed], [one.y for one in ringed], s=36, facecolors="none", edgecolors="#222222",
            linewidths=0.7,
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])


def _legend(axes: Axes, entries: Sequence[tuple[str, str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker=marker, linestyle="none", markerfacecolor=color, markeredgecolor=_edge(color))
        for _, color, marker in entries
    ]
    if not handles:
        return
    axes.legend(
        handles, [name for name, _, _ in entries], loc="upper left", bbox_to_anchor=(0, -0.01), fontsize=8, ncols=2,
        frameon=False,
    )  # fmt: skip


def _edge(color: str) -> str:
    return "#222222" if color == "none" else color


def _cluster_colors(discovery: Discovery) -> Mapping[str, str]:
    return dict(zip([one.cluster for one in discovery.clusters], COLORS, strict=False))


def _title(discovery: Discovery, cluster: str) -> str:
    one = discovery.of(cluster)
    return label(f"{cluster} {one.name or ', '.join(one.words[:3])}".strip())


def _rgb(color: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def frequent(values: Sequence[str], count: int) -> list[str]:
    """The ``count`` values that come most often, most frequent first, ties by name."""
    names, counts = np.unique(np.array(values, dtype=object), return_counts=True)
    order = np.lexsort((names.astype(str), -counts))
    return [str(names[place]) for place in order[:count]]
