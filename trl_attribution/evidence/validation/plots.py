"""A validation as a picture: the share of responses by condition, with intervals and every run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trl_attribution.errors import SettingsError
from trl_attribution.evidence.validation.document import ConditionSummary, summaries
from trl_attribution.evidence.validation.measuring import OVER_REFUSAL
from trl_attribution.evidence.validation.running import Validation
from trl_attribution.utils.figures import FORMATS, check_matplotlib, label, save_figure
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of utils.figures.COLORS.
_COLORS = {"top": "#D55E00", "bottom": "#0072B2", "random": "#009E73", "length_matched_random": "#56B4E9"}
_OTHER = "#444444"


def check_plot(path: Path) -> None:
    """Refuse a picture that cannot be drawn, before hours of work rather than after.

    Raises:
        SettingsError: the format is unknown, or matplotlib is not installed.
    """
    if path.suffix.removeprefix(".") not in FORMATS:
        raise SettingsError(f"--plot: {printable(path.name)} is neither .svg nor .png")
    check_matplotlib("--plot")


def save_plot(validation: Validation, path: Path) -> None:
    """Draw every measure beside the others; the same validation gives the same bytes.

    Raises:
        SettingsError: as :func:`check_plot`.
        AttributionError: the file cannot be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    rows = summaries(validation)
    measures = [*validation.behaviors, *([OVER_REFUSAL] if OVER_REFUSAL in rows[0].shares else [])]
    figure = Figure(figsize=(3.2 + 3.4 * len(measures), 1.2 + 0.34 * len(rows)), layout="constrained")
    columns = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(columns, measures, strict=True):
        _draw(axes, rows, validation, measure, with_names=measure == measures[0])
    save_figure(figure, path)


def _draw(axes: Axes, rows: list[ConditionSummary], validation: Validation, measure: str, *, with_names: bool) -> None:
    for height, one in enumerate(reversed(rows)):
        found = one.shares[measure]
        color = _COLORS.get(one.condition.selection, _OTHER)
        axes.plot([found.low, found.high], [height, height], color=color, linewidth=2, solid_capstyle="butt")
        axes.plot([found.value], [height], "o", color=color, markersize=6)
        for result in validation.results[one.condition]:
            shares = result.shares[measure]
            axes.plot([sum(shares) / len(shares)], [height], "|", color=color, markersize=9, alpha=0.7)
    names = [one.condition.title for one in reversed(rows)] if with_names else []
    axes.set_yticks(range(len(rows)) if with_names else [], [label(name, 120) for name in names])
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(label(measure, 60))
