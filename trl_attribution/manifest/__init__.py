"""Decisions about a dataset's pairs, and applying them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.manifest.by_source import Sources, cap, restrict
    from trl_attribution.manifest.combining import Conflict, Difference, Merged, diff, merge, subtract
    from trl_attribution.manifest.config import ColumnRules, MergeRules
    from trl_attribution.manifest.decisions import ReviewDecision, ReviewDecisions
    from trl_attribution.manifest.manifest import Decision, Manifest, ManifestHeader
    from trl_attribution.manifest.tally import ApplyReport, SourceChange
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ApplyReport",
    "ColumnRules",
    "Conflict",
    "Decision",
    "Difference",
    "Manifest",
    "ManifestHeader",
    "MergeRules",
    "Merged",
    "ReviewDecision",
    "ReviewDecisions",
    "SourceChange",
    "Sources",
    "cap",
    "diff",
    "merge",
    "restrict",
    "subtract",
]
