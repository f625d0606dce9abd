"""The matrices that a block of pairs is scored against: all probes of one layer, their prompts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trl_attribution.errors import ProbeError
from trl_attribution.scoring.controlled import ContextClassifier, ControlledTarget
from trl_attribution.scoring.kinds import Kind
from trl_attribution.scoring.protocols import ProbeLike

# A centred context smaller than this share of the context is the rounding error of float32, not a direction.
_NO_DIRECTION = 4 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class BlockScores:
    """Scores [n, columns] of one block at one layer, and how many of its pairs could not be scored."""

    scores: Tensor
    zero_pairs: int
    no_context: int


@dataclass(frozen=True)
class LayerTargets:
    """The probes of one layer: K prompts of those scored contextually, behavior vectors, and those with controls."""

    layer: int
    columns: tuple[int, ...]
    """Where each column of the result belongs: contextual ones first, then response ones, then those with weights."""
    directions: Tensor
    """Unit rows [K + R, D]: the prompts' behavior vectors, then the R behavior vectors of response scores."""
    contexts: Tensor
    """Unit rows [K, D]: the prompts' centred context vectors, zero where a prompt has none."""
    prompts: tuple[int, ...]
    """How many of the K rows belong to each contextual column."""
    mean: Tensor | None
    """``mu`` [D]; None where no column looks at contexts."""
    controlled: tuple[ControlledTarget, ...] = ()

    @classmethod
    def build(
        cls,
        layer: int,
        asked: Sequence[tuple[int, Kind, ProbeLike]],
        mean: Tensor | None,
        hidden_size: int,
    ) -> LayerTargets:
        """Concatenate what the probes of ``layer`` are scored with: each column's number, its kind of score, its probe.

        Raises:
            ProbeError: a probe of another hidden size, with a zero vector, or without any prompt that can be used.
        """
        contextual, response = (
            [(index, probe) for index, kind, probe in asked if kind == wanted] for wanted in ("contextual", "response")
        )
        weighed = [one for one in asked if one[1] in ("controlled", "one-sided")]
        controlled = [(index, probe) for index, _, probe in weighed]
        counts = tuple(_check(probe, layer, hidden_size, is_contextual=True) for _, probe in contextual)
        for _, probe in (*response, *controlled):
            _check(probe, layer, hidden_size, is_contextual=False)
        directions = torch.zeros(sum(counts) + len(response), hidden_size)
        contexts = torch.zeros(sum(counts), hidden_size)
        start = 0
        for (_, probe), count in zip(contextual, counts, strict=True):
            rows = slice(start, start + count)
            directions[rows], contexts[rows] = _prompt_rows(probe, layer, mean)
            start += count
        for row, (_, probe) in enumerate(response, start):
            directions[row] = _behavior_row(probe, layer)
        columns = tuple(index for index, _ in (*contextual, *response, *controlled))
        special = tuple(_controlled(probe, layer, mean, kind) for _, kind, probe in weighed)
        return cls(layer, columns, directions, contexts, counts, mean if contextual or controlled else None, special)

    def __len__(self) -> int:
        return len(self.directions) + sum(len(one.contexts) for one in self.controlled)

    def score(self, pair: Tensor, context: Tensor | None) -> BlockScores:
        """Score pair vectors [n, D] with contexts [n, D] (None where ``mean`` is); what is not finite gives NaN."""
        rows = pair.float()
        size = largest(rows)
        directions = unit_rows(rows, size)
        cosines = directions @ self.directions.T
        prompts = len(self.contexts)
        without = 0
        special: list[Tensor] = []
        if self.mean is not None:
            assert context is not None  # which mypy cannot know
            contexts = context.float()
            usable = usable_contexts(contexts, self.mean)
            left = largest(usable)
            centred = unit_rows(usable, left)
            without = int((left == 0).sum())
            cosines[:, :prompts] *= (centred @ self.contexts.T).clamp_(min=0)
            special = [one.score(directions, contexts, centred).unsqueeze(1) for one in self.controlled]
        parts = torch.split(cosines[:, :prompts], list(self.prompts), dim=1) if self.prompts else ()
        scores = torch.cat([*(part.mean(dim=1, keepdim=True) for part in parts), cosines[:, prompts:], *special], dim=1)
        return BlockScores(scores.clamp_(-1, 1), int((size == 0).sum()), without)


def largest(rows: Tensor) -> Tensor:
    """The largest absolute value of each row, [n, 1]; four times as fast as the infinity norm, which is the same."""
    return torch.maximum(rows.amax(dim=1, keepdim=True), -rows.amin(dim=1, keepdim=True))


def unit_rows(rows: Tensor, size: Tensor | None = None) -> Tensor:
    """``rows`` [n, D] scaled to length 1; zero rows stay zero, rows that are not finite become NaN.

    Rows are first divided by their ``largest`` entry (``size``), so that no square overflows or vanishes.
    """
    scale = largest(rows) if size is None else size
    scaled = rows / scale.where(scale != 0, 1.0)
    norm: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    scaled /= norm.where(norm != 0, 1.0)
    return scaled


def usable_contexts(contexts: Tensor, mean: Tensor) -> Tensor:
    """``contexts`` [n, D] minus ``mean`` [D]; zero rows where there is no context or it equals the mean."""
    size = largest(contexts)
    centred = contexts - mean
    left = largest(centred)
    return centred.masked_fill_((size == 0) | (left < _NO_DIRECTION * size), 0.0)


def _check(probe: ProbeLike, layer: int, hidden_size: int, *, is_contextual: bool) -> int:
    """How many prompts the probe has (0 for a response score), after checking that it can be used."""
    found = probe.vector.shape[-1]
    if found != hidden_size:
        raise ProbeError(
            f"probe {probe.name!r} has vectors of size {found}, the pairs' vectors have size {hidden_size}: "
            "it was built with another model"
        )
    if not is_contextual or probe.prompt_vectors is None:
        return 0
    if len(probe.prompt_vectors) == 0:
        raise ProbeError(
            f"probe {probe.name!r} has no prompts at layer {layer}: build it again, or use response scores"
        )
    return len(probe.prompt_vectors)


def _prompt_rows(probe: ProbeLike, layer: int, mean: Tensor | None) -> tuple[Tensor, Tensor]:
    """Unit behavior vectors and unit centred contexts [M, D] of the probe's prompts."""
    index = probe.layers.index(layer)
    if probe.prompt_vectors is None or probe.contexts is None or mean is None:
        raise ProbeError(f"probe {probe.name!r} lacks the prompts or the context mean that layer {layer} needs")
    vectors = unit_rows(probe.prompt_vectors[:, index].float())
    contexts = unit_rows(usable_contexts(probe.contexts[:, index].float(), mean))
    for what, rows in (("vectors", vectors), ("context vectors", contexts)):
        if not torch.isfinite(rows).all():
            raise ProbeError(f"probe {probe.name!r} has {what} that are not finite at layer {layer}: build it again")
    if not (vectors.any(dim=1) & contexts.any(dim=1)).any():
        raise ProbeError(
            f"probe {probe.name!r} has no prompt with both a behavior vector and a context at layer {layer}: "
            "every contextual score would be 0; build it again, or use response scores"
        )
    return vectors, contexts


def _behavior_row(probe: ProbeLike, layer: int) -> Tensor:
    """The probe's unit behavior vector [D]."""
    row = unit_rows(probe.vector[probe.layers.index(layer)].float().unsqueeze(0))[0]
    if not torch.isfinite(row).all():
        raise ProbeError(f"probe {probe.name!r} has a vector that is not finite at layer {layer}: build it again")
    if not row.any():
        raise ProbeError(f"probe {probe.name!r} has a zero vector at layer {layer}: it points nowhere; build it again")
    return row


def _controlled(probe: ProbeLike, layer: int, mean: Tensor | None, kind: Kind) -> ControlledTarget:
    """What the probe's controlled or one-sided scores are taken with."""
    index, known, one_sided = probe.layers.index(layer), probe.control_contexts, kind == "one-sided"
    if probe.contexts is None or (known is None and not one_sided):
        raise ProbeError(f"probe {probe.name!r} has no controls, which the controlled score needs: build it with some")
    _, contexts = _prompt_rows(probe, layer, mean)
    classifier = None if known is None else ContextClassifier.fit(probe.contexts[:, index], known[:, index])
    return ControlledTarget(_behavior_row(probe, layer), contexts, classifier, one_sided)
