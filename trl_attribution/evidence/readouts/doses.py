"""Dose curves: how often M0 shows a behavior with more and more of a direction added, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trl_attribution.evidence.readouts.config import DoseConfig
from trl_attribution.evidence.readouts.expression import Shown, described, responses_of
from trl_attribution.evidence.readouts.steering import StreamMeter, steered
from trl_attribution.utils.atomic import write_lines

if TYPE_CHECKING:
    from trl_attribution.behaviors import Judge
    from trl_attribution.behaviors.responses import Behavior
    from trl_attribution.models import LoadedModel


@dataclass(frozen=True)
class Dose:
    """One layer, one dose, and what came of it."""

    layer: int
    alpha: float
    length: float
    """Of what was added, as a share of the mean length of the residual stream there."""
    direction_length: float
    """Length of the direction itself, before scaling, as the same share."""
    shown: Shown

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the texts."""
        return {
            "layer": self.layer,
            "alpha": self.alpha,
            "length": self.length,
            "direction_length": self.direction_length,
            **described(self.shown),
        }


@dataclass(frozen=True)
class DoseCurve:
    """All doses at all layers, and none."""

    config: DoseConfig
    without: Shown
    """M0 as it is."""
    doses: tuple[Dose, ...]

    def at(self, layer: int) -> tuple[Dose, ...]:
        """The doses at one layer, least alpha first."""
        return tuple(sorted((one for one in self.doses if one.layer == layer), key=lambda one: one.alpha))

    @property
    def best_layer(self) -> int | None:
        """The layer at which steering brings out the behavior best, None where it does nowhere.

        That is where the highest rate is reached by a positive dose, responses that only repeat themselves not
        counted. Of equally high ones, the one reached with the shortest addition.
        """
        helped = [
            one for one in self.doses if one.alpha > 0 and one.shown.sound_rate.share > self.without.sound_rate.share
        ]
        if not helped:
            return None
        return min(helped, key=lambda one: (-one.shown.sound_rate.share, one.length, one.layer)).layer

    def save_responses(self, path: str | Path) -> None:
        """Write a JSON line a response, atomically: ``layer``, ``alpha``, ``prompt``, ``response``, ``shows``.

        Raises:
            AttributionError: the file cannot be written.
        """
        given = [(None, 0.0, self.without), *((one.layer, one.alpha, one.shown) for one in self.doses)]
        rows = ({"layer": layer, "alpha": alpha, **row} for layer, alpha, shown in given for row in shown.rows())
        write_lines(path, rows)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the texts."""
        return {
            "settings": asdict(self.config),
            "without": described(self.without),
            "doses": [one.to_json() for one in self.doses],
            "best_layer": self.best_layer,
        }


def dose_curve(
    loaded: LoadedModel,
    behavior: Behavior,
    judge: Judge,
    vectors: Mapping[int, Tensor],
    config: DoseConfig,
    on_progress: Callable[[int, int], None] | None = None,
) -> DoseCurve:
    """Let M0 answer the prompts of ``behavior`` with each dose of ``vectors`` (layer -> ``[D]``) added.

    All doses are sampled with the same seed.

    Raises:
        ModelError: there is no such layer.
        SettingsError: a vector is not of the model's width.
        ProbeError: a prompt does not fit the prompt format.
        JudgeError: the judge gives up.
    """
    total = len(vectors) * len(config.alphas) + 1

    def ask() -> Shown:
        return responses_of(loaded, behavior, judge, config.sampling, config.prompt_format)

    meters = {layer: StreamMeter() for layer in vectors}
    with ExitStack() as stack:
        for layer, meter in meters.items():
            stack.enter_context(meter.on(loaded.model, layer, config.blocks_path))
        without = ask()
    doses: list[Dose] = []
    for layer, vector in vectors.items():
        stream, own = meters[layer].mean, float(vector.norm())
        unit = vector if config.scale == "vector" else vector * (stream / own)
        for alpha in config.alphas:
            if on_progress is not None:
                on_progress(len(doses) + 1, total)
            with steered(loaded.model, layer, alpha * unit, config.positions, config.blocks_path):
                doses.append(Dose(layer, alpha, abs(alpha) * float(unit.norm()) / stream, own / stream, ask()))
    if on_progress is not None:
        on_progress(total, total)
    return DoseCurve(config, without, tuple(doses))
