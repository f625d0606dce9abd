"""A 2-D map of pairs: which ones push alike, on similar prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trl_attribution.discovery.audited import AuditedPairs
from trl_attribution.discovery.evidence import gather
from trl_attribution.discovery.result import MapPoint
from trl_attribution.discovery.similarity import Kind
from trl_attribution.scoring.targets import unit_rows, usable_contexts

_PERPLEXITY = 30
_COMPONENTS = 30


def map_places(audited: AuditedPairs, wanted: Sequence[int], count: int, seed: int) -> list[int]:
    """At most ``count`` pairs to draw: a quarter for the ``wanted``, a quarter for the flagged, the rest at random."""
    quarter = count // 4
    flagged = [place for place, pair_id in enumerate(audited.pair_ids) if pair_id in audited.flagged]
    random = np.random.default_rng([seed, 3]).permutation(len(audited)).tolist()
    chosen = dict.fromkeys([*list(dict.fromkeys(wanted))[:quarter], *flagged[:quarter], *random])
    return sorted(list(chosen)[:count])


def draw_map(
    audited: AuditedPairs,
    places: Sequence[int],
    layer: int,
    kind: Kind,
    mean: Tensor,
    counted: Mapping[str, Mapping[int, float]],
    seed: int,
) -> tuple[MapPoint, ...]:
    """Where the pairs at ``places`` lie.

    t-SNE of the pair's unit vector, beside it (contextually) the unit centred context, on their first 30 principal
    components; distances between far groups mean nothing.
    """
    items = gather(audited, places, [layer])
    parts = [unit_rows(items.vectors[:, 0])]
    if kind == "contextual":
        parts.append(unit_rows(usable_contexts(items.contexts[:, 0], mean)))
    xy = _flattened(torch.cat(parts, dim=1).double().numpy(), seed)
    best: dict[int, tuple[float, str]] = {}
    for cluster, scores in counted.items():
        for place, score in scores.items():
            best[place] = max(best.get(place, (0.0, "")), (score, cluster))
    return tuple(
        MapPoint(
            pair_id=audited.pair_ids[place],
            row=int(audited.rows[place]),
            source=audited.sources[place].as_py(),
            flagged=audited.pair_ids[place] in audited.flagged,
            cluster=best.get(place, (0.0, ""))[1],
            x=round(float(x), 3),
            y=round(float(y), 3),
        )
        for place, (x, y) in zip(places, xy, strict=True)
    )


def _flattened(rows: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(rows)
    if count < 4:
        return np.column_stack([np.arange(count, dtype=np.float64), np.zeros(count)])
    components = min(_COMPONENTS, count - 1, rows.shape[1])
    short: Any = PCA(components, svd_solver="full").fit_transform(rows)
    if not np.ptp(short):
        return np.zeros((count, 2))
    perplexity = min(_PERPLEXITY, (count - 1) / 3)
    start = short[:, :2] / max(float(short[:, 0].std()), 1e-12) * 1e-4
    found: npt.NDArray[np.float64] = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(short)
    return found
