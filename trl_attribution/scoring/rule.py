"""The rule by which pairs are flagged, checked before there is a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from trl_attribution.errors import SettingsError

if TYPE_CHECKING:
    from trl_attribution.scoring.protocols import ProbeLike

DEFAULT_FDR = 0.05
"""The rate that pairs are flagged at where no rule is given and a probe keeps no pairs of its own."""


def check_recall(recall: float) -> None:
    """Refuse a recall that no threshold can have.

    Raises:
        SettingsError: it does not lie between 0 and 1.
    """
    if not 0 < recall < 1:
        raise SettingsError(f"recall must lie between 0 and 1 (0.9 is common), not {recall}")


@dataclass(frozen=True)
class Rule:
    """When a pair is flagged; exactly one of the four is given, or a recall with the rate for probes without pairs.

    Raises:
        SettingsError: none or several are given, or the value is out of range.
    """

    top_k: int | None = None
    """Flag the k pairs that rank highest."""
    threshold: float | None = None
    """Flag pairs that score at least this, -1 to 1."""
    fdr: float | None = None
    """Flag at this false discovery rate, 0 to 1, which holds for each probe by itself."""
    recall: float | None = None
    """Flag what would catch this share of pairs like the probe's own examples, such as 0.9, and estimate how many pairs
    push towards the behavior; nothing where that may be none. A probe that keeps no pairs of its own is refused, or
    flags by ``fdr`` where that is given beside the recall, as in the default rule."""

    def __post_init__(self) -> None:
        given = self.as_dict()
        if len(given) != 1 and given.keys() != {"fdr", "recall"}:
            raise SettingsError(
                f"give exactly one of top_k, threshold, fdr and recall; given: {', '.join(given) if given else 'none'}"
            )
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int if name == "top_k" else (int, float)):
                kind = "whole number" if name == "top_k" else "number"
                raise SettingsError(f"{name} must be a {kind}, not {value!r}")
        if self.top_k is not None and self.top_k < 1:
            raise SettingsError(f"top_k must be at least 1, not {self.top_k}")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise SettingsError(f"threshold must lie between -1 and 1, as scores do, not {self.threshold}")
        if self.fdr is not None and not 0 < self.fdr < 1:
            raise SettingsError(f"fdr must lie between 0 and 1 (0.05 is common), not {self.fdr}")
        if self.recall is not None:
            check_recall(self.recall)

    def check(self, pairs: int) -> None:
        """Refuse a rule that cannot work on so many pairs.

        Raises:
            SettingsError: ``top_k`` is larger than ``pairs``.
        """
        if self.top_k is not None and self.top_k > pairs:
            raise SettingsError(f"top_k {self.top_k} asks for more pairs than there are ({pairs}): choose fewer")

    def check_probes(self, probes: Sequence[ProbeLike]) -> None:
        """Refuse a rule that needs more of a probe than it keeps.

        Raises:
            SettingsError: a recall, and a probe without pairs of its own, or with too few prompts.
        """
        if self.recall is None or self.fdr is not None:
            return
        from trl_attribution.scoring.held_out import knows_pairs, why_no_pairs

        without = [probe.name for probe in probes if not knows_pairs(probe)]
        if without:
            raise SettingsError(f"recall {self.recall:g}: {why_no_pairs(', '.join(without))}")

    def as_dict(self) -> dict[str, float]:
        """What is given, as a manifest's header stores it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


DEFAULT_RULE = Rule(recall=0.9, fdr=DEFAULT_FDR)
"""What pairs are flagged by where no rule is given."""
