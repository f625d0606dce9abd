"""Scores, calibration, flagging and per-source tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.scoring.asked import Column, kind_for, reference_for
    from trl_attribution.scoring.calibration import Calibration, calibrate, fewest_discoveries, holm, p_values, q_values
    from trl_attribution.scoring.fitting import fit_notes
    from trl_attribution.scoring.flags import FlaggedPair, Flags, SourceRow, flag, source_table
    from trl_attribution.scoring.outcomes import Outcome, rule_words
    from trl_attribution.scoring.power import power_notes
    from trl_attribution.scoring.rule import DEFAULT_FDR, DEFAULT_RULE, Rule
    from trl_attribution.scoring.scores import Scores, context_means, score_view
    from trl_attribution.scoring.table import ScoreTable, write_scores
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "DEFAULT_FDR",
    "DEFAULT_RULE",
    "Calibration",
    "Column",
    "FlaggedPair",
    "Flags",
    "Outcome",
    "Rule",
    "ScoreTable",
    "Scores",
    "SourceRow",
    "calibrate",
    "context_means",
    "fewest_discoveries",
    "fit_notes",
    "flag",
    "holm",
    "kind_for",
    "p_values",
    "power_notes",
    "q_values",
    "reference_for",
    "rule_words",
    "score_view",
    "source_table",
    "write_scores",
]
