"""Scores of the pairs that a probe knows, each by what the probe would be without them: what a new pair would get.

Axis letters: M prompts, E pairs of the behavior, C controls, Q pairs of controls, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trl_attribution.errors import ProbeError
from trl_attribution.scoring.decision import KnownPairs
from trl_attribution.scoring.kinds import Kind
from trl_attribution.scoring.protocols import OWN_CONTROLS, ProbeLike
from trl_attribution.scoring.recall import KnownScores
from trl_attribution.scoring.targets import LayerTargets, unit_rows

FEWEST_PROMPTS = 8
"""With fewer, folds leave too little to make a probe of."""
FOLDS = 5
_SEED = 0

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Part:
    """A probe of one layer made of some of another's prompts and controls."""

    name: str
    layer: int
    layers: tuple[int, ...]
    prompt_vectors: Tensor
    contexts: Tensor | None
    control_contexts: Tensor | None
    example_vectors: Tensor | None = None
    example_prompts: Tensor | None = None
    control_vectors: Tensor | None = None
    control_prompts: Tensor | None = None
    neutral_center: Tensor | None = None
    reference_scores: Tensor | None = None
    reference_center: Tensor | None = None

    @property
    def vector(self) -> Tensor:
        """The mean of the prompts' own vectors, ``[1, D]``."""
        return self.prompt_vectors.mean(dim=0)

    @property
    def built(self) -> Mapping[str, object]:
        """It was not: nothing is known of it."""
        return {}

    def without(self, prompts: Places | None = None, controls: Places | None = None) -> _Part:
        """The same without some of its prompts and controls."""
        return replace(
            self,
            prompt_vectors=_left(self.prompt_vectors, prompts),
            contexts=None if self.contexts is None else _left(self.contexts, prompts),
            control_contexts=None if self.control_contexts is None else _left(self.control_contexts, controls),
        )

    def score(self, kind: Kind, pairs: Tensor, contexts: Tensor, mean: Tensor | None) -> npt.NDArray[np.float64]:
        """[n] of pair vectors and contexts [n, D], by the very code that scores a dataset."""
        target = LayerTargets.build(self.layer, [(0, kind, self)], mean, pairs.shape[1])
        return np.asarray(target.score(pairs, contexts).scores[:, 0].double().numpy())


def knows_pairs(probe: ProbeLike) -> bool:
    """Whether a threshold with a stated recall can be taken from the probe: it keeps pairs of enough prompts."""
    there = probe.example_vectors is not None and probe.example_prompts is not None
    return there and probe.prompt_vectors is not None and len(probe.prompt_vectors) >= FEWEST_PROMPTS


def known_pairs(probe: ProbeLike, layer: int, kind: Kind, mean: Tensor | None) -> KnownPairs | None:
    """Cross-validated scores of ``probe``'s own pairs at ``layer``; None where it keeps no pairs or too few prompts.

    Examples are left out twice, with the prompts most like theirs and with prompts drawn at random: a dataset's prompts
    are less like the behavior's than those are like one another, and more than one cluster of them is like the others.
    Thresholds from the first alone were too low on real text, from the second alone too high on composed text
    (docs/method.md). Controls are left out at random, the project's own harmless requests by clusters: the look-alikes
    of a dataset are never as like those as they are like one another. Where controls came without responses, the
    examples' are read as answers to them.

    Args:
        probe: with its example pairs.
        layer: one of the probe's.
        kind: of score.
        mean: ``mu`` [D] of the dataset that the scores are to be compared with; None for response scores.
    """
    if not knows_pairs(probe):
        return None
    try:
        examples, controls = (part(probe, layer, kind, mean) for part in (_examples, _controls))
        assert examples is not None  # the probe knows some
        if kind == "one-sided":  # flips negate every other kind
            flips = [part(probe, layer, kind, mean, turn=-1) for part in (_examples, _controls)]
            examples, controls = _with_flips(examples, flips[0]), controls and _with_flips(controls, flips[1])
        return KnownPairs(examples, controls, are_controls_own=_are_own(probe))
    except ProbeError:
        return None  # what a fold leaves is no probe, such as one whose contexts all equal the mean


def _with_flips(known: KnownScores, flips: KnownScores | None) -> KnownScores:
    assert flips is not None  # the same pairs
    return replace(known, flips=flips.scores)


def _examples(probe: ProbeLike, layer: int, kind: Kind, mean: Tensor | None, turn: int = 1) -> KnownScores | None:
    assert probe.example_vectors is not None  # checked by the caller
    assert probe.example_prompts is not None
    part = _at(probe, layer)
    pairs = turn * probe.example_vectors[:, probe.layers.index(layer)]
    prompts = probe.example_prompts.numpy().astype(np.int64)
    folds = (
        _alike(part.contexts if part.contexts is not None else part.prompt_vectors),
        _drawn(len(part.prompt_vectors)),
    )
    scores = np.zeros((len(folds), len(pairs)))
    for way, places in enumerate(folds):
        for fold in places:
            held = np.isin(prompts, fold)
            contexts = _contexts(part, prompts[held])
            scores[way, held] = part.without(prompts=fold).score(kind, pairs[torch.from_numpy(held)], contexts, mean)
    return KnownScores(scores.ravel(), np.tile(prompts, len(folds)))


def _controls(probe: ProbeLike, layer: int, kind: Kind, mean: Tensor | None, turn: int = 1) -> KnownScores | None:
    part = _at(probe, layer)
    if part.control_contexts is None or probe.example_vectors is None or len(part.control_contexts) < FOLDS:
        return None
    row, count = probe.layers.index(layer), len(part.control_contexts)
    if probe.control_vectors is not None and probe.control_prompts is not None:
        pairs, prompts = probe.control_vectors[:, row], probe.control_prompts.numpy().astype(np.int64)
    else:
        prompts = np.arange(count)
        pairs = probe.example_vectors[torch.arange(count) % len(probe.example_vectors), row]
    scores = np.zeros(len(pairs))
    for fold in _alike(part.control_contexts) if _are_own(probe) else _drawn(count):
        held = np.isin(prompts, fold)
        if held.any():
            contexts = part.control_contexts[torch.from_numpy(prompts[held]), 0]
            chosen = turn * pairs[torch.from_numpy(held)]
            scores[held] = part.without(controls=fold).score(kind, chosen, contexts, mean)
    return KnownScores(scores, prompts)


def _are_own(probe: ProbeLike) -> bool:
    """Whether the probe's controls are the project's own harmless requests."""
    controls = probe.built.get("controls")
    return isinstance(controls, Mapping) and controls.get("from") == OWN_CONTROLS


def _at(probe: ProbeLike, layer: int) -> _Part:
    row = slice(probe.layers.index(layer), probe.layers.index(layer) + 1)
    assert probe.prompt_vectors is not None  # checked by the caller
    return _Part(
        name=probe.name,
        layer=layer,
        layers=(layer,),
        prompt_vectors=probe.prompt_vectors[:, row],
        contexts=None if probe.contexts is None else probe.contexts[:, row],
        control_contexts=None if probe.control_contexts is None else probe.control_contexts[:, row],
    )


def _contexts(part: _Part, prompts: Places) -> Tensor:
    """[n, D]; zeros where the probe knows none, which response scores do not look at."""
    if part.contexts is None:
        return torch.zeros(len(prompts), part.prompt_vectors.shape[2])
    return part.contexts[torch.from_numpy(prompts), 0]


def _alike(vectors: Tensor) -> Sequence[Places]:
    """Places of M ``vectors`` [M, 1, D] in clusters of those that are alike (Ward)."""
    from scipy.cluster.hierarchy import fcluster, linkage

    rows = vectors[:, 0]
    directions = unit_rows(rows - rows.mean(dim=0)).double().numpy()
    labels = fcluster(linkage(directions, "ward"), FOLDS, "maxclust")
    if len(np.unique(labels)) < 2:  # all of them are the same
        labels = np.arange(len(rows)) % FOLDS
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _drawn(count: int) -> Sequence[Places]:
    """``count`` places dealt into folds at random."""
    order = np.random.default_rng(_SEED).permutation(count)
    return [order[start::FOLDS] for start in range(FOLDS)]


def _left(rows: Tensor, places: Places | None) -> Tensor:
    if places is None:
        return rows
    keep = np.setdiff1d(np.arange(len(rows)), places)
    return rows[torch.from_numpy(keep)]


def why_no_pairs(probes: str) -> str:
    """What is lacking where :func:`knows_pairs` says no."""
    return (
        f"probe {probes} keeps no pairs of its own, or fewer than {FEWEST_PROMPTS} prompts, to take a threshold from. "
        "Build it again from a behavior file with more prompts, or flag by top_k, threshold or fdr."
    )
