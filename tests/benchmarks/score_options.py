"""What else a score could be: options of the scoring formula on the same vectors, by how well they rank known pairs.

Axis letters: N pairs, L layers, D hidden size, M behavior prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tests.benchmarks.score_vectors import Vectors
from trl_attribution.scoring.adjustments import mean_over_layers

Doubles = npt.NDArray[np.float64]
DRAWS = 6


@dataclass(frozen=True)
class Scene:
    """One dataset drawn from an organism, at one layer: all that a score may look at."""

    vectors: Vectors
    row: int
    """Of the layer, on the L axis."""
    keep: npt.NDArray[np.int64]
    """[N], places of its pairs among the organism's."""

    def _take(self, name: str) -> Doubles:
        return np.asarray(getattr(self.vectors, name)[self.keep, self.row].double().numpy())

    @cached_property
    def pair(self) -> Doubles:
        """[N, D]"""
        return self._take("pair")

    @cached_property
    def last(self) -> Doubles:
        """[N, D]"""
        return self._take("last")

    @cached_property
    def mean(self) -> Doubles:
        """[N, D]"""
        return self._take("mean")

    def behavior(self, name: str) -> Doubles:
        """[M, D] of the behavior's prompts, or [n, D] of its responses."""
        return np.asarray(getattr(self.vectors, name)[:, self.row].double().numpy())

    @property
    def lengths(self) -> Doubles:
        """[N, 2]"""
        return np.asarray(self.vectors.lengths[self.keep].double().numpy())

    @property
    def sources(self) -> npt.NDArray[np.int64]:
        """[N]"""
        return np.asarray(self.vectors.source[self.keep].numpy())

    @property
    def wanted(self) -> npt.NDArray[np.bool_]:
        """[N]; no score may look at it."""
        return np.asarray((self.vectors.truth[self.keep] == 1).numpy())

    def at(self, row: int) -> Scene:
        """The same pairs at another layer."""
        return Scene(self.vectors, row, self.keep)


Option = Callable[[Scene], Doubles]
"""Scores [N]: the higher, the earlier suspected."""


def unit(rows: Doubles) -> Doubles:
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1.0))


def response(scene: Scene) -> Doubles:
    """The paper's: cos(v_b, v_d)."""
    return np.asarray(unit(scene.pair) @ unit(scene.behavior("prompt_vectors").mean(axis=0)))


def similarity(scene: Scene, contexts: str = "last", center: str = "mean") -> Doubles:
    """[N, M], cosines of the pairs' contexts with those of the behavior's prompts."""
    rows = scene.last if contexts == "last" else scene.mean
    centers = {"mean": rows.mean(axis=0), "median": np.median(rows, axis=0), "none": np.zeros(rows.shape[1])}
    return np.asarray(unit(rows - centers[center]) @ unit(scene.behavior(f"prompt_{contexts}") - centers[center]).T)


def contextual(scene: Scene, contexts: str = "last", center: str = "mean") -> Doubles:
    """Ours: mean_i cos(v_i, v_d) max(0, cos(c_i - mu, c_d - mu))."""
    cosines = unit(scene.pair) @ unit(scene.behavior("prompt_vectors")).T
    return np.asarray((cosines * similarity(scene, contexts, center).clip(min=0)).mean(axis=1))


def averaged(scene: Scene) -> Doubles:
    """One mean behavior vector and one mean context in the place of the sum over prompts."""
    mu = scene.last.mean(axis=0)
    context = unit(scene.last - mu) @ unit((scene.behavior("prompt_last") - mu).mean(axis=0))
    return np.asarray(response(scene) * context.clip(min=0))


def mean_vector_kernel(scene: Scene) -> Doubles:
    """The mean behavior vector, but the contexts prompt by prompt."""
    return np.asarray(response(scene) * similarity(scene).clip(min=0).mean(axis=1))


def unclamped(scene: Scene) -> Doubles:
    """Unlike contexts count against."""
    cosines = unit(scene.pair) @ unit(scene.behavior("prompt_vectors")).T
    return np.asarray((cosines * similarity(scene)).mean(axis=1))


def squared(scene: Scene) -> Doubles:
    """The context counts twice."""
    cosines = unit(scene.pair) @ unit(scene.behavior("prompt_vectors")).T
    return np.asarray((cosines * similarity(scene).clip(min=0) ** 2).mean(axis=1))


def nearest(scene: Scene, count: int = 5) -> Doubles:
    """Only the few prompts that are most alike."""
    cosines = unit(scene.pair) @ unit(scene.behavior("prompt_vectors")).T
    similar = similarity(scene).clip(min=0)
    kth = np.sort(similar, axis=1)[:, -min(count, similar.shape[1])][:, None]
    return np.asarray((cosines * np.where(similar >= kth, similar, 0.0)).sum(axis=1))


def undirected(scene: Scene) -> Doubles:
    """Inner products of pair vectors, not cosines: long vectors count more."""
    products = scene.pair @ unit(scene.behavior("prompt_vectors")).T
    return np.asarray((products * similarity(scene).clip(min=0)).mean(axis=1))


def context_only(scene: Scene) -> Doubles:
    """Is the prompt alone enough? (It cannot tell a refusal from compliance.)"""
    return np.asarray(similarity(scene).clip(min=0).mean(axis=1))


def whitener(rows: Doubles, shrinkage: float | None = None) -> Doubles:
    """[D, D], the inverse root of the shrunk second moment of ``rows``; by default shrunk as Ledoit and Wolf do."""
    from sklearn.covariance import ledoit_wolf, shrunk_covariance

    if shrinkage is None:
        covariance, _ = ledoit_wolf(rows, assume_centered=True)
    else:
        covariance = shrunk_covariance(rows.T @ rows / len(rows), shrinkage)
    values, directions = np.linalg.eigh(covariance)
    return np.asarray(directions / np.sqrt(np.maximum(values, values.max() * 1e-9)) @ directions.T)


def whitened(scene: Scene, *, pairs: bool, contexts: bool, shrinkage: float | None = None) -> Doubles:
    """Directions that vary much in the dataset count less."""
    behavior, pair = scene.behavior("prompt_vectors"), scene.pair
    mu = scene.last.mean(axis=0)
    rows, prompts = scene.last - mu, scene.behavior("prompt_last") - mu
    if pairs:
        white = whitener(pair, shrinkage)
        behavior, pair = behavior @ white, pair @ white
    if contexts:
        white = whitener(rows, shrinkage)
        rows, prompts = rows @ white, prompts @ white
    similar = (unit(rows) @ unit(prompts).T).clip(min=0)
    return np.asarray((unit(pair) @ unit(behavior).T * similar).mean(axis=1))


def residual(scores: Doubles, scene: Scene) -> Doubles:
    """What is left of ``scores`` after a straight line in both log lengths and their difference."""
    logs = np.log1p(scene.lengths)
    design = np.column_stack([np.ones(len(scores)), logs, scene.lengths[:, 0] - scene.lengths[:, 1]])
    fitted = design @ np.linalg.lstsq(design, scores, rcond=None)[0]
    return np.asarray(scores - fitted)


def layers(scene: Scene) -> range:
    return range(scene.vectors.pair.shape[1])


def mean_score(score: Option) -> Option:
    """Mean over all layers of scores brought to one scale."""

    def over_layers(scene: Scene) -> Doubles:
        return mean_over_layers({row: score(scene.at(row)) for row in layers(scene)}).scores

    return over_layers


def mean_rank(score: Option) -> Option:
    """Mean over all layers of ranks."""
    from scipy.stats import rankdata

    return lambda scene: np.asarray(np.mean([rankdata(score(scene.at(row))) for row in layers(scene)], axis=0))


def at_layer(score: Option, place: int) -> Option:
    """At one layer, whatever ``auto`` says."""
    return lambda scene: score(scene.at(place))


def logistic_response(scene: Scene, strength: float = 0.01) -> Doubles:
    """A logistic probe on the behavior's responses in the place of the mean difference."""
    return np.asarray(unit(scene.pair) @ unit(_logistic(scene, strength)))


def logistic_contextual(scene: Scene, strength: float = 0.01) -> Doubles:
    """The same, weighed by the contexts."""
    return np.asarray(logistic_response(scene, strength) * similarity(scene).clip(min=0).mean(axis=1))


def logistic_context(scene: Scene, strength: float = 0.01) -> Doubles:
    """A logistic probe of the behavior's contexts against all of the dataset's in the place of cosines."""
    from sklearn.linear_model import LogisticRegression

    mu = scene.last.mean(axis=0)
    rows, prompts = unit(scene.last - mu), unit(scene.behavior("prompt_last") - mu)
    model = LogisticRegression(C=100 * strength, class_weight="balanced", max_iter=1000)
    model.fit(np.concatenate([prompts, rows]), [1] * len(prompts) + [0] * len(rows))
    return np.asarray(response(scene) * model.predict_proba(rows)[:, 1])


def _logistic(scene: Scene, strength: float) -> Doubles:
    from sklearn.linear_model import LogisticRegression

    undesired, desired = scene.behavior("undesired"), scene.behavior("desired")
    rows = np.concatenate([undesired, desired])
    scale = rows.std(axis=0)
    scale[scale == 0] = 1.0
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    model.fit((rows - rows.mean(axis=0)) / scale, [1] * len(undesired) + [0] * len(desired))
    return np.asarray(model.coef_[0] / scale)


def shrunk_to_source(scores: Doubles, scene: Scene, weight: float = 0.3) -> Doubles:
    """Each score moved towards its source's mean, itself shrunk to the dataset's by the source's size."""
    found = scores.copy()
    for source in np.unique(scene.sources):
        here = scene.sources == source
        trust = here.sum() / (here.sum() + 10)
        found[here] += weight * (trust * scores[here].mean() + (1 - trust) * scores.mean() - scores[here])
    return found


def both_contexts(scene: Scene) -> Doubles:
    """Last token and prompt mean, each with the same say."""
    each = [contextual(scene, "last"), contextual(scene, "mean")]
    return np.asarray(sum(one / (one.std() or 1.0) for one in each))


OPTIONS: dict[str, Option] = {
    "response score (the paper's)": response,
    "contextual score (the default)": contextual,
    "context: mean over the prompt": lambda scene: contextual(scene, "mean"),
    "context: last token and mean, summed": both_contexts,
    "centering: median": lambda scene: contextual(scene, center="median"),
    "centering: none": lambda scene: contextual(scene, center="none"),
    "unlike contexts count against (not clamped)": unclamped,
    "context similarity squared": squared,
    "nearest 5 prompts only": nearest,
    "averaged vectors, both": averaged,
    "averaged behavior vector, contexts prompt by prompt": mean_vector_kernel,
    "inner product in the place of the cosine": undirected,
    "context alone": context_only,
    "whitened pair vectors": lambda scene: whitened(scene, pairs=True, contexts=False),
    "whitened contexts, half shrunk": lambda scene: whitened(scene, pairs=False, contexts=True, shrinkage=0.5),
    "whitened pair vectors and contexts": lambda scene: whitened(scene, pairs=True, contexts=True),
    "length-residualized": lambda scene: residual(contextual(scene), scene),
    "length-residualized, response score": lambda scene: residual(response(scene), scene),
    "contextual score, first of the four layers": at_layer(contextual, 0),
    "contextual score, third of the four layers": at_layer(contextual, 2),
    "contextual score, last of the four layers": at_layer(contextual, 3),
    "all layers, mean of scores": mean_score(contextual),
    "all layers, mean of ranks": mean_rank(contextual),
    "all layers, mean of scores, response score": mean_score(response),
    "logistic probe, response score": logistic_response,
    "logistic probe, contextual": logistic_contextual,
    "logistic probe of contexts": logistic_context,
    "all layers, logistic probe, contextual": mean_score(logistic_contextual),
    "all layers, both contexts": mean_score(both_contexts),
    "shrunk to the source's mean": lambda scene: shrunk_to_source(contextual(scene), scene),
}


def scenes(vectors: Vectors, rate: float, row: int, draws: int = DRAWS, *, decoys: bool = True) -> Iterator[Scene]:
    """Datasets in which ``rate`` of the pairs are contaminated: all clean pairs, and contaminated ones drawn anew."""
    truth = vectors.truth.numpy()
    clean = np.flatnonzero((truth == 0) | ((truth == 2) & decoys))
    bad = np.flatnonzero(truth == 1)
    count = min(len(bad), max(2, round(rate / (1 - rate) * len(clean))))
    generator = np.random.default_rng(0)
    for _ in range(1 if count == len(bad) else draws):
        chosen = generator.choice(bad, count, replace=False)
        yield Scene(vectors, row, np.sort(np.concatenate([clean, chosen])))


def average_precision(scores: Doubles, wanted: npt.NDArray[np.bool_]) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(wanted, scores))
