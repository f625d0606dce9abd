"""The rule by which pairs are flagged, checked before there is a score."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from trl_attribution.errors import SettingsError

DEFAULT_FDR = 0.05
"""The rate that pairs are flagged at where no rule is given."""


@dataclass(frozen=True)
class Rule:
    """When a pair is flagged; exactly one of the three is given.

    Raises:
        SettingsError: none or several are given, or the value is out of range.
    """

    top_k: int | None = None
    """Flag the k pairs that rank highest."""
    threshold: float | None = None
    """Flag pairs that score at least this, -1 to 1."""
    fdr: float | None = None
    """Flag at this false discovery rate, 0 to 1, which holds for each probe by itself. With no rule given: 0.05."""

    def __post_init__(self) -> None:
        given = self.as_dict()
        if len(given) != 1:
            raise SettingsError(
                f"give exactly one of top_k, threshold and fdr; given: {', '.join(given) if given else 'none'}"
            )
        name, value = next(iter(given.items()))
        if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else (int, float)):
            raise SettingsError(f"{name} must be a {'whole number' if name == 'top_k' else 'number'}, not {value!r}")
        if self.top_k is not None and self.top_k < 1:
            raise SettingsError(f"top_k must be at least 1, not {self.top_k}")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise SettingsError(f"threshold must lie between -1 and 1, as scores do, not {self.threshold}")
        if self.fdr is not None and not 0 < self.fdr < 1:
            raise SettingsError(f"fdr must lie between 0 and 1 (0.05 is common), not {self.fdr}")

    def check(self, pairs: int) -> None:
        """Refuse a rule that cannot work on so many pairs.

        Raises:
            SettingsError: ``top_k`` is larger than ``pairs``.
        """
        if self.top_k is not None and self.top_k > pairs:
            raise SettingsError(f"top_k {self.top_k} asks for more pairs than there are ({pairs}): choose fewer")

    def as_dict(self) -> dict[str, float]:
        """The one rule that is given, as a manifest's header stores it."""
        return {name: value for name, value in asdict(self).items() if value is not None}
