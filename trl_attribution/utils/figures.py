"""Pictures by matplotlib, which is an extra: asked for before the work, and the same values give the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trl_attribution.errors import SettingsError
from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
# Okabe and Ito's colors, which people with any color vision tell apart.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")


def check_matplotlib(what: str) -> None:
    """Refuse ``what`` needs matplotlib, such as an option, where it is not installed.

    Raises:
        SettingsError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise SettingsError(f"{what} needs matplotlib: pip install matplotlib")


def label(text: str, limit: int = 40) -> str:
    """Text of a dataset as a picture's label: ASCII, so that no font has to know a character, and never a formula."""
    return printable(text, limit).encode("ascii", "backslashreplace").decode("ascii").replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` in the format that the name says, atomically: no date in it, no random ids.

    Raises:
        AttributionError: the file cannot be written.
    """
    import matplotlib

    form = path.suffix.removeprefix(".")
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    with atomic_path(path) as part, matplotlib.rc_context({"svg.hashsalt": "trl-attribution"}):
        figure.savefig(part, format=form, dpi=150, metadata=metadata)
