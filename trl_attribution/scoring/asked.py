"""What scores are asked for: the kind that fits a probe, the columns that makes, and what each is compared with.

Axis letters: D hidden size, R clean pairs of a calibrated probe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt

from trl_attribution.errors import ProbeError, SettingsError
from trl_attribution.scoring.kinds import AskedKind, Kind
from trl_attribution.scoring.protocols import ProbeLike, VectorViewLike
from trl_attribution.utils.kinds import Kind as ExampleName

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Column:
    """What one column of scores was taken with."""

    probe: str
    layer: int
    kind: Kind

    @property
    def uses_contexts(self) -> bool:
        """Whether the score of a pair depends on its prompt's context, and so on the dataset's mean of them."""
        return self.kind != "response"


def plan_columns(
    view: VectorViewLike, probes: Sequence[ProbeLike], kind: AskedKind, layers: Sequence[int] | None
) -> tuple[Column, ...]:
    """One column per probe and layer, probe by probe in the given order, layers ascending."""
    if kind not in get_args(AskedKind):
        raise SettingsError(f"unknown score kind {kind!r}: choose one of {', '.join(get_args(AskedKind))}")
    names = [probe.name for probe in probes]
    if not names:
        raise SettingsError("no probes to score with: give at least one")
    if len(set(names)) < len(names):
        raise SettingsError(f"probe names must differ, but these were given: {', '.join(names)}")
    asked = view.layers if layers is None else layers
    absent = sorted(set(asked) - set(view.layers))
    if absent:
        raise SettingsError(
            f"no vectors at layer {_listed(absent)}: the store holds layer {_listed(view.layers)}; "
            "score at one of these, or make the vectors for the layer"
        )
    return tuple(column for probe in probes for column in _columns_of(probe, kind, asked))


def _columns_of(probe: ProbeLike, kind: AskedKind, layers: Sequence[int]) -> Iterator[Column]:
    chosen = kind_for(probe, kind)
    if kind == "controlled" and chosen != kind:
        raise ProbeError(
            f"probe {probe.name!r} has no controls, which the controlled score needs: build it from a behavior file "
            "with controls, or ask for another score"
        )
    if kind == "contextual" and chosen != kind:
        raise ProbeError(
            f"probe {probe.name!r} does not know its prompts, which the contextual score needs: "
            "build it from a behavior file, or ask for the response score"
        )
    shared = sorted(set(layers) & set(probe.layers))
    if not shared:
        raise SettingsError(
            f"probe {probe.name!r} has layer {_listed(probe.layers)}, but the scores were to be taken at layer "
            f"{_listed(layers)}: choose a layer that both have"
        )
    return (Column(probe.name, layer, chosen) for layer in shared)


def asked_of(examples: ExampleName, asked: AskedKind) -> AskedKind:
    """What ``auto`` is for a dataset of such examples: SFT samples have no other side that could be taught instead."""
    return "one-sided" if asked == "auto" and examples == "sft" else asked


def kind_for(probe: ProbeLike, asked: AskedKind) -> Kind:
    """The kind of score that ``probe`` can be given: the one that uses most of what it knows, unless asked for less."""
    knows_prompts = probe.prompt_vectors is not None and probe.contexts is not None
    if not knows_prompts or asked == "response":
        return "response"
    if asked == "one-sided":
        return asked
    return "controlled" if probe.control_contexts is not None and asked != "contextual" else "contextual"


@dataclass(frozen=True)
class Reference:
    """What the scores of one column are compared with, and what makes them comparable."""

    scores: npt.NDArray[np.float64]
    """[R], of clean pairs."""
    center: Tensor | None
    """``mu`` [D] that these were taken with; None for response scores, which have none."""


def reference_for(probe: ProbeLike, column: Column) -> Reference | None:
    """The null and the center that a calibrated probe brings for ``column``; the only place that decides on them.

    Without one, contexts are centred by the dataset (or a gate's baseline), and the null is the mirrored scores of the
    same. Scores of the other kind are no reference.

    Raises:
        ProbeError: the probe was calibrated without keeping the center, so nothing can be compared with its scores.
    """
    calibration = probe.built.get("calibration")
    if probe.reference_scores is None or probe.reference_scores.shape[1] == 0:
        return None
    if not isinstance(calibration, Mapping) or calibration.get("kind") != column.kind:
        return None
    row = probe.layers.index(column.layer)
    scores: npt.NDArray[np.float64] = probe.reference_scores[row].double().numpy()
    if column.kind == "response":
        return Reference(scores, None)
    if probe.reference_center is None:
        raise ProbeError(
            f"probe {probe.name!r} was calibrated by an earlier version, which did not keep the center of contexts: "
            "calibrate it again (`trl-attribution probe calibrate`), or ask for response scores"
        )
    return Reference(scores, probe.reference_center[row])


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(str(layer) for layer in layers)
