"""Decisions about a dataset's pairs, and applying them."""

from trl_attribution.manifest.applying import ApplyReport
from trl_attribution.manifest.by_source import Sources, cap, restrict
from trl_attribution.manifest.columns import ColumnRules
from trl_attribution.manifest.combining import Conflict, Difference, Merged, MergeRules, diff, merge, subtract
from trl_attribution.manifest.decisions import ReviewDecision, ReviewDecisions
from trl_attribution.manifest.manifest import Decision, Manifest, ManifestHeader
from trl_attribution.manifest.tally import SourceChange

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
