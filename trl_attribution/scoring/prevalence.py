"""How many pairs of a dataset push towards a behavior: the share of the examples' scores among the dataset's.

The dataset's scores are read as a mixture of what is known and what is not: pairs like the behavior's own examples,
like its controls, like the flips of both (refusals chosen over compliance; where scores are one-sided, also what leans
neither way on such prompts), and neutral pairs. Those are not known; they are taken to lie about 0 in one bell with
heavy tails (Student's t, 3 degrees of freedom), as wide as the quarter of the dataset that scores nearest to 0 says,
and no wider than the controls, which are more like the behavior. A dataset's pairs never score quite as the examples
do: they may all be stronger or weaker by one factor, the stretch, of which a log-normal prior says that it is about 1.
The shares are those of maximum likelihood (EM) at each stretch, weighted by how likely that stretch is. Scores are
compared on a scale of ranks, on which every kind of score is as wide as any other, and all of them are smoothed alike.
The interval is that of a bootstrap over prompts of the known pairs and over pairs of the dataset, with a stretch drawn
for each.

Axis letters: N pairs, B bins of score, K kinds of pair, R bootstrap draws, S stretches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.scoring.recall import CONFIDENCE, KnownScores
from trl_attribution.utils.arrays import Doubles

Random = np.random.Generator
DRAWS = 200
_BINS = 32
_SMOOTHING = 0.05
"""Width of the smoothing kernel, as a share of the scale of ranks."""
_NEAREST = 0.25
"""Share of the dataset that is taken to be neutral at the least: the pairs that score nearest to 0."""
_NEAREST_OF_BELL = 0.3492
"""So much of Student's t with 3 degrees of freedom lies nearer to 0 than this."""
_HALF_OF_BELL = 0.7649
"""Half of it lies nearer to 0 than this."""
_STRETCHES = np.exp(np.linspace(-0.6, 0.6, 7))
_SPREAD = 0.25
"""Of the logarithm of the stretch, before the dataset is seen."""
_WITNESS = 0.5
"""Prompts of one behavior are alike: the bootstrap takes each as half an independent one."""
_STEPS = 300
_SETTLED = 1e-5
_RESOLUTION = 1.0
"""An estimate of less than one pair is none."""


@dataclass(frozen=True)
class Interval:
    """A number and the interval that it lies in."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        low, high = round(self.low), round(self.high)
        return f"{low}" if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Prevalence:
    """How many of N pairs push towards a behavior, and what the others are taken to be."""

    pairs: int
    count: Interval
    """Pairs like the examples."""
    wrong: Interval
    """Of those that reach the threshold, how many are not like the examples."""
    threshold: float
    """The score from which pairs are counted: the examples', times ``stretch``."""
    above: int
    """Pairs that reach the threshold."""
    stretch: float
    """How strongly the dataset's pairs score, as a multiple of the examples'."""
    neutral_above: float
    """Share of neutral pairs that reaches the threshold, by the fit."""
    kinds: dict[str, float] = field(default_factory=dict)
    """By kind, the estimated number of pairs."""
    edges: tuple[float, ...] = field(default=(), repr=False)
    """[B - 1], inner edges of the bins of score."""
    likely: tuple[float, ...] = field(default=(0.5,), repr=False)
    """[B]: how likely a pair that scores in the bin is like the examples."""

    def likely_of(self, scores: npt.ArrayLike) -> Doubles:
        """[N]: how likely each pair of ``scores`` is like the examples, as far as its score alone says."""
        places = np.searchsorted(np.array(self.edges), np.asarray(scores, dtype=np.float64), side="right")
        return np.array(self.likely)[places]

    @property
    def is_evidence(self) -> bool:
        """Whether no pair at all can be ruled out as chance."""
        return self.count.low > 0


def estimate(
    scores: npt.ArrayLike,
    examples: KnownScores,
    controls: KnownScores | None,
    threshold: float,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Prevalence:
    """Estimate how many of ``scores`` [N] are of pairs like ``examples``, with a 95% interval.

    Args:
        scores: the dataset's, of the same kind and layer as the examples'.
        examples: cross-validated scores of the behavior's own pairs.
        controls: scores of pairs that look like them and do not push towards the behavior. Without any, such pairs in
            the dataset are counted as pushing towards it.
        threshold: among the examples' scores; pairs at or above it times the stretch are counted as flagged.
        draws: of the bootstrap.
        seed: of the bootstrap: the same input gives the same interval.

    Raises:
        SettingsError: no scores, or less than one draw.
        StoreError: scores that are not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or draws < 1:
        raise SettingsError("an estimate needs at least one scored pair and one draw")
    if not np.isfinite(values).all():
        raise StoreError("scores that are not finite cannot be estimated from: verify the vectors and score again")
    scale = _Scale.of(values, examples, controls)
    data = scale.counts(values)
    random = np.random.default_rng(seed)
    templates = _templates(examples, controls, scale, draws, random)
    resampled = np.concatenate([data[None], random.multinomial(len(values), data / len(values), size=draws)])
    fit = _fit(templates, resampled.astype(np.float64), scale)
    return _summary(fit, resampled, values, scale, threshold, random, _names(examples, controls))


@dataclass(frozen=True)
class _Scale:
    """Bins of score on which the known kinds and the dataset are about equally spread."""

    edges: Doubles
    """[B - 1], inner edges."""
    centers: Doubles
    """[B], a typical score of each bin."""
    smoothing: Doubles
    """[B, B], columns of sum 1."""
    widest: float
    """Of the neutral pairs."""

    @classmethod
    def of(cls, values: Doubles, examples: KnownScores, controls: KnownScores | None) -> _Scale:
        known = [one for one in (examples, controls) if one is not None]
        parts = [values, *(one.scores for one in known), *(one.flipped().scores for one in known)]
        pooled = np.concatenate(parts)
        weights = np.concatenate([np.full(len(part), 1.0 / len(part)) for part in parts])
        order = np.argsort(pooled, kind="stable")
        reached = np.cumsum(weights[order]) / weights.sum()
        quantiles = (np.arange(2 * _BINS - 1) + 1) / (2 * _BINS)
        points = pooled[order][np.searchsorted(reached, quantiles).clip(max=len(pooled) - 1)]
        widest = np.inf if controls is None else float(np.median(np.abs(controls.scores))) / _HALF_OF_BELL
        return cls(points[1::2], points[0::2], _kernel(), widest)

    def counts(self, values: Doubles, weights: Doubles | None = None) -> Doubles:
        """How many of ``values`` lie in each bin, [B]."""
        places = np.searchsorted(self.edges, values, side="right")
        return np.bincount(places, weights=weights, minlength=_BINS).astype(np.float64)


@dataclass(frozen=True)
class _Fit:
    """Mixtures of R + 1 sets of templates and data at S stretches; the first set is the estimate itself."""

    shares: Doubles
    """[S, R + 1, K], neutral last."""
    densities: Doubles
    """[S, R + 1, K, B]"""
    width: Doubles
    """[R + 1] of the neutral pairs."""
    likely: Doubles
    """[S, R + 1], of sum 1 over the stretches."""


def _kernel() -> Doubles:
    place = np.arange(_BINS)
    width = _SMOOTHING * _BINS
    # What would fall off an end is folded back, so that nothing is lost there.
    mirrors = (place, -1 - place, 2 * _BINS - 1 - place)
    kernel: Doubles = np.sum([np.exp(-0.5 * ((place[:, None] - mirror) / width) ** 2) for mirror in mirrors], axis=0)
    return np.asarray(kernel / kernel.sum(axis=0))


def _templates(
    examples: KnownScores, controls: KnownScores | None, scale: _Scale, draws: int, random: Random
) -> Doubles:
    """[S, R + 1, K - 1, B]: where each known kind and its flips lie; all but the first of prompts drawn anew."""
    kinds = []
    for one, stretches in ((examples, _STRETCHES), (controls, np.ones(len(_STRETCHES)))):
        if one is None:
            continue
        weights = _drawn_weights(one, draws, random)
        for scores in (one.scores, *one.others()):
            places = np.searchsorted(scale.edges, stretches[:, None] * scores, side="right")
            counts = weights @ (places[:, :, None] == np.arange(_BINS))
            kinds.append((counts / counts.sum(axis=-1, keepdims=True)) @ scale.smoothing.T)
    return np.stack(kinds, axis=2)


def _names(examples: KnownScores, controls: KnownScores | None) -> list[str]:
    """What the templates are of, in their order, and the neutral pairs."""
    found = ["examples", *("opposites", "level")[: len(examples.others())]]
    if controls is not None:
        found += ["controls", *("control opposites", "control level")[: len(controls.others())]]
    return [*found, "neutral"]


def _drawn_weights(known: KnownScores, draws: int, random: Random) -> Doubles:
    """[R + 1, E]: the pairs' say, first as it is, then of prompts drawn at random."""
    prompts, place = np.unique(known.prompts, return_inverse=True)
    drawn = random.multinomial(max(1, round(_WITNESS * len(prompts))), np.full(len(prompts), 1 / len(prompts)), draws)
    taken: Doubles = np.concatenate([np.ones((1, len(prompts))), drawn])
    return np.asarray(known.weights * taken[:, place])


def _neutral(width: Doubles, scale: _Scale) -> Doubles:
    """[R + 1, B], smoothed like the others."""
    reached = _reached(scale.edges[None, :] / width[:, None])
    ends = np.zeros((len(width), 1))
    return np.asarray(np.diff(reached, axis=1, prepend=ends, append=ends + 1) @ scale.smoothing.T)


def _reached(value: Doubles) -> Doubles:
    """The distribution function of Student's t with 3 degrees of freedom."""
    root = value / np.sqrt(3.0)
    return np.asarray(0.5 + (root / (1 + root**2) + np.arctan(root)) / np.pi)


def _width(data: Doubles, scale: _Scale) -> Doubles:
    """[R + 1]: how wide the neutral pairs lie about 0, by the pairs that lie nearest to it."""
    size = np.abs(scale.centers)
    order = np.argsort(size, kind="stable")
    reached = np.cumsum(data[:, order], axis=1) / data.sum(axis=1, keepdims=True)
    place = (reached < _NEAREST).sum(axis=1).clip(max=_BINS - 1)
    return np.asarray(np.clip(size[order][place] / _NEAREST_OF_BELL, 1e-9, max(scale.widest, 1e-9)))


def _fit(templates: Doubles, data: Doubles, scale: _Scale) -> _Fit:
    """Shares of maximum likelihood, for all draws at once (EM; the likelihood has one maximum at each stretch)."""
    smooth = data @ scale.smoothing.T
    total = smooth.sum(axis=1, keepdims=True)
    width = _width(data, scale)
    neutral = np.broadcast_to(_neutral(width, scale)[:, None], (*templates.shape[:2], 1, _BINS))
    densities = np.concatenate([templates, neutral], axis=2)
    shares = np.full(densities.shape[:3], 1.0 / densities.shape[2])
    for _ in range(_STEPS):
        before, shares = shares, shares * (densities @ (smooth / _mixed(shares, densities))[..., None])[..., 0] / total
        if np.abs(shares - before).max() < _SETTLED:
            break
    logs = (data * np.log(_mixed(shares, densities))).sum(axis=-1)
    logs -= 0.5 * (np.log(_STRETCHES) / _SPREAD)[:, None] ** 2
    likely = np.exp(logs - logs.max(axis=0))
    return _Fit(shares, densities, width, likely / likely.sum(axis=0))


def _mixed(shares: Doubles, densities: Doubles) -> Doubles:
    """[S, R + 1, B]: all kinds together."""
    return np.asarray(np.maximum((shares[..., None, :] @ densities)[..., 0, :], 1e-300))


def _summary(
    fit: _Fit,
    data: Doubles,
    values: Doubles,
    scale: _Scale,
    of_examples: float,
    random: Random,
    names: list[str],
) -> Prevalence:
    pairs, stretch = len(values), float(fit.likely[:, 0] @ _STRETCHES)
    threshold = of_examples * stretch
    above = int((values >= threshold).sum())
    like = fit.shares[..., 0, None] * fit.densities[..., 0, :] / _mixed(fit.shares, fit.densities)
    # Bins are coarser than the threshold: how many pairs reach it is counted, what they are is taken from their bins.
    top = data * (np.arange(_BINS) >= np.searchsorted(scale.edges, threshold, side="right"))
    wrong = above * ((1 - like) * top).sum(axis=-1) / np.maximum(top.sum(axis=-1), 1e-12)
    # One stretch for each draw, as likely as the draw says.
    drawn = (fit.likely.cumsum(axis=0) < random.random(fit.likely.shape[1])).sum(axis=0).clip(max=len(_STRETCHES) - 1)
    kinds = fit.likely[:, 0] @ fit.shares[:, 0] * pairs
    return Prevalence(
        pairs=pairs,
        count=_interval(fit.shares[..., 0] * pairs, fit.likely, drawn),
        wrong=_interval(wrong, fit.likely, drawn),
        threshold=threshold,
        above=above,
        stretch=stretch,
        neutral_above=float(1 - _reached(np.asarray(threshold / fit.width[0]))),
        kinds=dict(zip(names, kinds.tolist(), strict=True)),
        edges=tuple(scale.edges.tolist()),
        likely=tuple((fit.likely[:, 0] @ like[:, 0]).tolist()),
    )


def _interval(values: Doubles, likely: Doubles, drawn: npt.NDArray[np.int64]) -> Interval:
    """The mean of the first of ``values`` [S, R + 1], and the interval of the others; less than one pair is none."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[drawn, np.arange(len(drawn))][1:], (tail, 1 - tail))
    value = float(likely[:, 0] @ values[:, 0])
    low, high = min(float(low), value), max(float(high), value)
    return Interval(value, 0.0 if low < _RESOLUTION else low, high)
