"""How a scan looks at a dataset: one config, stored with what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from trl_attribution.errors import SettingsError


@dataclass(frozen=True)
class ScanConfig:
    """What is looked for, and how sure a finding has to be.

    Raises:
        SettingsError: a value is out of range.
    """

    traits: str | None = None
    """Names of the package's traits with commas, all (the default), or a file or folder of your own."""
    layer: int | None = None
    """Where vectors are compared; None takes the layer at two thirds of the depth, of those that the audit has."""
    sample: int | None = None
    """A first look at about so many pairs, drawn by their ids; scan again without it and they are not computed anew."""
    alpha: float = 0.01
    """Chance that anything at all is found where labels say nothing."""
    flips: int = 999
    """Draws of random labels behind the chance."""
    min_pairs: int = 20
    """Fewest pairs that a topic or source is told apart by."""
    typical: int = 3
    """Typical pairs kept a finding."""
    unnamed: bool = True
    """Look for clusters that no trait names, too (see ``discover``)."""
    sae_pairs: int = 1000
    """Pairs, drawn at random, that are read again through a sparse autoencoder where one is given."""
    seed: int = 0
    """Of samples and draws."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise SettingsError(f"alpha: {self.alpha} must lie between 0 and 1")
        if (self.flips + 1) * self.alpha < 2:  # half of it for effects, half for places
            raise SettingsError(
                f"flips: {self.flips} draws cannot show a chance of {self.alpha}; give at least {round(2 / self.alpha)}"
            )
        for name, fewest in (("sample", 1), ("min_pairs", 5), ("sae_pairs", 20), ("typical", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < fewest:
                raise SettingsError(f"{name}: {value} is too small; give at least {fewest}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """From ``settings`` by name.

        Raises:
            SettingsError: there is no such setting, or a value is out of range.
        """
        if unknown := sorted(settings.keys() - cls.__dataclass_fields__.keys()):
            listed = ", ".join(cls.__dataclass_fields__)
            raise SettingsError(f"scan: unknown setting {', '.join(unknown)}; choose from {listed}")
        return cls(**settings)

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self)
