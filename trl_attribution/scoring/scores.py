"""How strongly training on each pair pushes towards each behavior: scores of every kind, in blocks.

Axis letters: N pairs, n pairs of a block, L layers, D hidden size, C score columns (one per probe and layer),
M prompts of a probe, K prompts of several probes together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.scoring.asked import Column, plan_columns, reference_for
from trl_attribution.scoring.calibration import Calibration, calibrate
from trl_attribution.scoring.columns import ColumnFile
from trl_attribution.scoring.decision import KnownPairs
from trl_attribution.scoring.held_out import known_pairs
from trl_attribution.scoring.kinds import AskedKind
from trl_attribution.scoring.protocols import ProbeLike, VectorBlockLike, VectorViewLike
from trl_attribution.scoring.targets import LayerTargets
from trl_attribution.utils.allocator import freed_memory_kept
from trl_attribution.utils.finite import all_finite

Progress = Callable[[int, int], None]

MEMORY_BUDGET = 256 * 2**20
"""Bytes that a block of vectors, and the probes' matrices beside it, may each take."""
NEUTRAL_PAIRS = 8
"""So many pairs the everyday prompts count for in the center of contexts (docs/benchmarks/control-sources.md)."""
_MOST_ROWS = 2048


@dataclass(frozen=True)
class Scores:
    """The scores of N pairs in C columns, kept on disk; a positive score pushes towards the behavior."""

    pair_ids: pa.Array
    """The N pair ids (strings), in the view's order."""
    columns: tuple[Column, ...]
    flag_layers: Mapping[str, int]
    """Each probe's own choice of layer, scored or not."""
    references: Mapping[Column, npt.NDArray[np.float64]]
    """Scores of clean pairs [R], for the columns whose probe has some of the same kind."""
    context_means: Mapping[int, Tensor]
    """The dataset's mean context [D] at each layer that scores with contexts were taken at, but for probes with a
    center of their own."""
    zero_pairs: Mapping[int, int]
    """By layer, how many pairs have a zero pair vector: they score 0."""
    no_context: Mapping[int, int]
    """By layer, how many pairs have no context, or one equal to ``mu``: they score 0 contextually."""
    file: ColumnFile
    centers: Mapping[Column, Tensor] = field(default_factory=dict)
    """``mu`` [D] of each column whose scores use contexts."""
    known: Mapping[Column, KnownPairs] = field(default_factory=dict)
    """Cross-validated scores of the pairs that the column's probe knows, for the columns whose probe knows some."""
    flipped: Mapping[Column, int] = field(default_factory=dict)
    """Where ``file`` holds the scores of the same pairs flipped, for one-sided columns: a flip negates the others."""

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes' names, in the order they were given."""
        return tuple(dict.fromkeys(column.probe for column in self.columns))

    def column(self, probe: str, layer: int | None = None) -> Column:
        """The column of ``probe`` at ``layer``; by default its own layer where scored, else its only one.

        Raises:
            SettingsError: no such column, or several and none of them is the probe's own; the choices are listed.
        """
        choices = [column for column in self.columns if column.probe == probe]
        if not choices:
            raise SettingsError(f"no scores for probe {probe!r}: scored probes are {', '.join(self.probes)}")
        wanted = self.flag_layers.get(probe) if layer is None else layer
        for column in choices:
            if column.layer == wanted:
                return column
        if layer is None and len(choices) == 1:
            return choices[0]
        scored = ", ".join(str(column.layer) for column in choices)
        raise SettingsError(
            f"probe {probe!r} has no scores at layer {wanted}: choose one of the scored layers, {scored}"
        )

    def of(self, column: Column) -> npt.NDArray[np.float32]:
        """The scores [N] of ``column``, memory-mapped and read-only."""
        return self.file.read(self.columns.index(column))

    def flips_of(self, column: Column) -> npt.NDArray[np.float32]:
        """The scores [N] that the pairs would have flipped."""
        return self.file.read(self.flipped[column]) if column in self.flipped else -self.of(column)

    def worth(self, column: Column) -> Calibration:
        """Rank, p- and q-values of ``column``, by the clean pairs of its probe, else by the mirror null."""
        flips = self.flips_of(column) if column in self.flipped else None
        return calibrate(np.array(self.of(column)), self.references.get(column), flips)


@freed_memory_kept()  # what one block frees, the next takes: fetched anew, its pages cost as much as the arithmetic
def score_view(
    view: VectorViewLike,
    probes: Sequence[ProbeLike],
    kind: AskedKind = "auto",
    layers: Sequence[int] | None = None,
    scratch: str | Path | None = None,
    *,
    context_means: Mapping[int, Tensor] | None = None,
    means_of: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: Progress | None = None,
) -> Scores:
    """Score every pair of ``view`` with every probe at every layer that both have.

    The response score is ``cos(v_b, v_d)``. The contextual score is the mean over the behavior's prompts i of
    ``cos(v_i, v_d) * max(0, cos(c_i - mu, c_d - mu))``. The controlled score is ``cos(v_b, v_d) * sqrt(k * P)``,
    where ``k`` is the mean over i of ``max(0, cos(c_i - mu, c_d - mu))`` and ``P`` the likelihood that ``c_d`` is a
    context of the behavior rather than of its controls. All lie in -1..1, and flipping a pair negates them exactly.
    The one-sided score, for examples that have no flip, is ``(1/3 + cos(v_b, v_d)) / (4/3) * sqrt(k * P)``; ``P`` is 1
    without controls.
    ``mu`` is the probe's own where it is calibrated (:func:`reference_for`), so that its scores, p- and q-values depend
    on nothing else that is scored. Else it is the mean of the dataset's contexts and of the everyday prompts that the
    probe was built with, which count for ``NEUTRAL_PAIRS`` pairs: a few pairs say little of what is usual.

    Args:
        view: pair and context vectors of N pairs.
        probes: the behaviors to score for; names are unique.
        kind: ``auto`` is controlled for probes that know controls, contextual for others that know their prompts, and
            response for the rest; ``one-sided`` is that for all that know their prompts.
        layers: the layers to score at; by default all that the view and the probe share.
        scratch: folder for the scores while they are in use; by default the system's temporary folder.
        context_means: a dataset's mean context [D] by layer, for the other probes; by default the mean of the view's
            own context vectors that are not zero.
        means_of: how many pairs the given means are of; by default so many that nothing has to be added.
        memory_budget: bytes for a block of vectors, and again for the probes' matrices; more passes over the view
            are made where the matrices do not fit. Scores of other budgets agree up to float32 rounding.
        progress: called with the pairs read so far and the pairs to read, over all passes.

    Raises:
        SettingsError: unknown kind, no probes, repeated names, layers that cannot be scored, or a given context mean
            of another shape.
        ProbeError: a probe with a zero vector, of another hidden size, or without the prompts that its kind needs.
        StoreError: vectors that are not finite; the pairs are named.
        AttributionError: the scratch folder cannot hold the scores.
    """
    columns = plan_columns(view, probes, kind, layers)
    by_name = {probe.name: probe for probe in probes}
    passes = _plan_passes(columns, by_name, view.hidden_size, memory_budget)
    references = {column: found for column in columns if (found := reference_for(by_name[column.probe], column))}
    centers = {column: found.center for column, found in references.items() if found.center is not None}
    contextual = sorted({column.layer for column in columns if column.uses_contexts and column not in centers})
    means = _given_means(context_means or {}, contextual, view.hidden_size)
    missing = [layer for layer in contextual if layer not in means]
    one_sided = [column for column in columns if column.kind == "one-sided"]
    flipped = {column: len(columns) + place for place, column in enumerate(one_sided)}
    file = ColumnFile(len(columns) + len(flipped), len(view), scratch)
    report = _Counter(len(view) * (len(passes) + bool(missing)), progress)
    counts: dict[int, float] = dict.fromkeys(means, math.inf if means_of is None else means_of)
    if missing:
        rows = _block_rows(len(missing), view.hidden_size, 0, memory_budget)
        found_means, found_counts = _context_means(view, missing, rows, report)
        means, counts = means | found_means, counts | found_counts
    for column in columns:
        if column.uses_contexts and column not in centers:
            probe = by_name[column.probe]
            centers[column] = with_neutral(means[column.layer], counts[column.layer], probe, column.layer)
    pair_ids = pa.array(view.pair_ids, pa.string())
    run = _Run(view, columns, flipped, by_name, centers, pair_ids, file, report)
    for part in passes:
        run.score(part, memory_budget)
    return Scores(
        pair_ids=pair_ids,
        columns=columns,
        flag_layers={probe.name: probe.layer for probe in probes},
        references={column: found.scores for column, found in references.items()},
        context_means=means,
        zero_pairs=run.zero_pairs,
        no_context=run.no_context,
        file=file,
        centers=centers,
        known={
            column: pairs
            for column in columns
            if (pairs := known_pairs(by_name[column.probe], column.layer, column.kind, centers.get(column)))
        },
        flipped=flipped,
    )


def context_means(view: VectorViewLike, layers: Sequence[int], memory_budget: int = MEMORY_BUDGET) -> dict[int, Tensor]:
    """``mu`` [D] by layer: the mean over the view's context vectors that are not zero, accumulated in float64."""
    size = _block_rows(len(layers), view.hidden_size, 0, memory_budget)
    return _context_means(view, layers, size, _Counter(len(view), None))[0]


def with_neutral(mean: Tensor, pairs: float, probe: ProbeLike, layer: int) -> Tensor:
    """``mu`` [D]: the ``mean`` context of so many ``pairs``, and the probe's everyday prompts where it knows any."""
    if probe.neutral_center is None or math.isinf(pairs):
        return mean
    neutral = probe.neutral_center[probe.layers.index(layer)]
    return (pairs * mean + NEUTRAL_PAIRS * neutral) / (pairs + NEUTRAL_PAIRS)


class _Counter:
    """Counts pairs read, for the progress display."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, pairs: int) -> None:
        self._done += pairs
        if self._progress is not None:
            self._progress(self._done, self._total)


class _Run:
    """One call of :func:`score_view` under way."""

    def __init__(
        self,
        view: VectorViewLike,
        columns: tuple[Column, ...],
        flipped: Mapping[Column, int],
        probes: Mapping[str, ProbeLike],
        centers: Mapping[Column, Tensor],
        pair_ids: pa.Array,
        file: ColumnFile,
        report: _Counter,
    ) -> None:
        self.view, self.columns, self.probes, self.centers = view, columns, probes, centers
        self.flipped = {columns.index(column): place for column, place in flipped.items()}
        self.pair_ids, self.file, self.report = pair_ids, file, report
        self.zero_pairs: dict[int, int] = {}
        self.no_context: dict[int, int] = {}

    def score(self, part: Sequence[Column], memory_budget: int) -> None:
        """One pass over the view, for the columns of ``part``."""
        layers = list(dict.fromkeys(column.layer for column in part))
        targets = [target for layer in layers for target in self._targets(layer, part)]
        size = _block_rows(len(layers), self.view.hidden_size, max(map(len, targets)), memory_budget)
        zero, without = [0] * len(targets), [0] * len(targets)
        for block in self.view.blocks(layers, size):
            for place, target in enumerate(targets):
                index = layers.index(target.layer)
                # A store reads contexts from disk when they are asked for.
                context = None if target.mean is None else block.context[:, index]
                result = target.score(block.pair[:, index], context)
                self._keep(block, target.columns, result.scores)
                if any(column in self.flipped for column in target.columns):
                    flips = target.score(-block.pair[:, index], context).scores
                    self._keep(block, [self.flipped.get(column) for column in target.columns], flips)
                zero[place] += result.zero_pairs
                without[place] += result.no_context
            self.report.add(len(block.pair))
        for place, target in enumerate(targets):
            self.zero_pairs[target.layer] = zero[place]
            if target.mean is not None:
                # Targets without contextual columns have not looked at contexts.
                self.no_context[target.layer] = max(without[place], self.no_context.get(target.layer, 0))

    def _targets(self, layer: int, part: Sequence[Column]) -> Iterator[LayerTargets]:
        """What the columns of ``layer`` are scored against: those with the same center together."""
        here = [(self.columns.index(column), column) for column in part if column.layer == layer]
        groups: dict[bytes, list[tuple[int, Column]]] = {}
        for one in here:
            center = self.centers.get(one[1])
            groups.setdefault(b"" if center is None else center.numpy().tobytes(), []).append(one)
        # Those that need no center go with any.
        loose = groups.pop(b"", [])
        for number, group in enumerate(groups.values() or [[]]):
            members = [*group, *loose] if not number else group
            yield self._target(layer, members, self.centers.get(members[0][1]))

    def _target(self, layer: int, columns: Sequence[tuple[int, Column]], mean: Tensor | None) -> LayerTargets:
        asked = [(index, column.kind, self.probes[column.probe]) for index, column in columns]
        return LayerTargets.build(layer, asked, mean, self.view.hidden_size)

    def _keep(self, block: VectorBlockLike, columns: Sequence[int | None], scores: Tensor) -> None:
        """Write ``scores`` [n, columns] but those without a place; vectors that are not finite show here."""
        _refuse_unless_finite(scores, block.start, self.pair_ids)
        values = scores.T.contiguous().numpy()
        for index, column in enumerate(columns):
            if column is not None:
                self.file.write(column, block.start, values[index])


def _plan_passes(
    columns: Sequence[Column], probes: Mapping[str, ProbeLike], hidden_size: int, memory_budget: int
) -> list[list[Column]]:
    """The columns, layer by layer, in groups whose matrices fit the budget (a group has at least one column)."""
    passes: list[list[Column]] = []
    free = 0
    for column in sorted(columns, key=lambda column: column.layer):
        prompts = probes[column.probe].prompt_vectors
        rows = 2 * len(prompts) if column.uses_contexts and prompts is not None else 1
        size = 4 * rows * hidden_size
        if size > free or not passes:
            passes.append([])
            free = memory_budget
        passes[-1].append(column)
        free -= size
    return passes


def _block_rows(layers: int, hidden_size: int, targets: int, memory_budget: int) -> int:
    """How many pairs a block may have, counting the view's own buffers and the temporaries of one layer."""
    read = 4 * 2 * 2 * layers * hidden_size
    temporary = 4 * (4 * hidden_size + 3 * targets)
    return max(1, min(_MOST_ROWS, memory_budget // (read + temporary)))


def _context_means(
    view: VectorViewLike, layers: Sequence[int], size: int, report: _Counter
) -> tuple[dict[int, Tensor], dict[int, float]]:
    """By layer, the mean of the contexts that are not zero, and how many they are."""
    total = torch.zeros(len(layers), view.hidden_size, dtype=torch.float64)
    count = torch.zeros(len(layers), 1, dtype=torch.float64)
    for block in view.blocks(layers, size):
        added = block.context.sum(dim=0, dtype=torch.float64)
        if not torch.isfinite(added).all():
            _refuse_unless_finite(block.context.flatten(1), block.start, pa.array(view.pair_ids, pa.string()))
        total += added
        count += (block.context != 0).any(dim=2).sum(dim=0).unsqueeze(1)
        report.add(len(block.context))
    means = (total / count.clamp(min=1)).float()
    return dict(zip(layers, means, strict=True)), dict(zip(layers, count[:, 0].tolist(), strict=True))


def _given_means(means: Mapping[int, Tensor], layers: Sequence[int], hidden_size: int) -> dict[int, Tensor]:
    chosen = {layer: means[layer].float().cpu() for layer in layers if layer in means}
    for layer, mean in chosen.items():
        if mean.shape != (hidden_size,) or not torch.isfinite(mean).all():
            raise SettingsError(
                f"the context mean of layer {layer} must be {hidden_size} finite numbers, "
                f"not of shape {tuple(mean.shape)} with {int((~torch.isfinite(mean)).sum())} that are not finite"
            )
    return chosen


def _refuse_unless_finite(rows: Tensor, start: int, pair_ids: pa.Array) -> None:
    """Raise for the pairs whose ``rows`` [n, any] of the block from ``start`` on are not finite."""
    if all_finite(rows):
        return
    bad = torch.nonzero(~torch.isfinite(rows).all(dim=1)).flatten().tolist()
    names = ", ".join(pair_ids[start + row].as_py() for row in bad[:10])
    raise StoreError(
        f"{len(bad)} pairs from position {start} on have vectors that are not finite: {names}"
        f"{' ...' if len(bad) > 10 else ''}. Verify the store and compute these pairs again in float32."
    )
