"""How behaviors are looked for: one config, stored with what was found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from trl_attribution.errors import SettingsError

Mode = Literal["prompts", "pairs"]
MODES: tuple[Mode, ...] = ("prompts", "pairs")
"""Each keeps its result in a folder of its name."""
FILE = "discovery.json"
AskedKind = Literal["auto", "contextual", "response"]


@dataclass(frozen=True)
class DiscoveryConfig:
    """What a cluster has to be in order to be reported.

    Raises:
        SettingsError: a value is out of range.
    """

    layers: tuple[int, ...] | None = field(default=None, metadata={"option": "layer"})
    """Layers to compare at; None takes the middle one of those stored. Several lay their similarities side by side."""
    score: AskedKind = "auto"
    """``contextual`` compares responses and prompts, ``response`` responses alone (the paper's); ``auto`` is
    contextual wherever there are prompts."""
    tightness: float = 0.4
    """Least mean cosine between the members of a cluster."""
    separation: float = 0.5
    """Two parts of a tight cluster are two clusters where their mean cosine is below this share of their own."""
    min_size: int = 5
    """Fewest members in the half that clusters are made from."""
    min_stability: float = 0.6
    """Least mean Jaccard index with what resampled items give."""
    alpha: float = 0.01
    """Chance that anything is reported where nothing is there."""
    resamples: int = 20
    """Subsamples of 80% behind the stability."""
    sample: int = 4000
    """Pairs drawn to be clustered, without prompts; all pairs are scored against what is found."""
    exemplars: int = 64
    """Most typical members that stand for a cluster where pairs are scored, and in a probe."""
    top: int = 20
    """Pairs, and typical prompts, listed a cluster."""
    map_pairs: int = 2000
    """Pairs on the map."""
    seed: int = 0
    """Of the halves, the resampling and sampled responses."""

    def __post_init__(self) -> None:
        if self.score not in get_args(AskedKind):
            raise SettingsError(f"score: {self.score!r} is unknown; choose {', '.join(get_args(AskedKind))}")
        for name, least, most in (("tightness", 0, 1), ("separation", 0, 1), ("min_stability", 0, 1), ("alpha", 0, 1)):
            if not least <= getattr(self, name) <= most:
                raise SettingsError(f"{name}: {getattr(self, name)} must lie between {least} and {most}")
        for name, fewest in (
            ("min_size", 3),
            ("resamples", 1),
            ("sample", 20),
            ("exemplars", 1),
            ("top", 1),
            ("map_pairs", 10),
            ("seed", 0),
        ):
            if getattr(self, name) < fewest:
                raise SettingsError(f"{name}: {getattr(self, name)} is too small; give at least {fewest}")

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {**asdict(self), "layers": None if self.layers is None else list(self.layers)}
