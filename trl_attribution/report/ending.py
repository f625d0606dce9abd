"""The one ending of every audit, in a run or outside of one: what a rule flags, its manifests, and the page."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trl_attribution.audit.folder import Audit, Flagged
from trl_attribution.audit.witness import Witnessed
from trl_attribution.errors import AttributionError
from trl_attribution.report.page import write_report
from trl_attribution.report.texts import ListedPairs
from trl_attribution.scoring import Rule
from trl_attribution.utils.text import shell_command

logger = logging.getLogger(__name__)

Hearing = Callable[[Flagged], Witnessed | None]
"""Asks the second witness, whose answer the page holds; None where nobody wants to hear it."""


@dataclass(frozen=True)
class Results:
    """What an audit leaves behind for people."""

    listed: ListedPairs
    """The texts that the page shows, read once."""
    flagged: Flagged | None = None
    """None where no probe was given."""
    witnessed: Witnessed | None = None
    manifests: dict[str, str] = field(default_factory=dict)
    """Paths by action."""
    report: Path | None = None
    """``report.html``; None where it could not be written, which is logged."""


def write_results(audit: Audit, rule: Rule, hear: Hearing = lambda _flagged: None) -> Results:
    """Flag by ``rule``, hear the second witness, and write manifests and ``report.html`` into the folder of ``audit``.

    Args:
        audit: one that was just computed, on the process that has its scores.
        rule: how pairs are flagged, where there are probes.
        hear: the second witness.

    Raises:
        SettingsError: ``rule`` does not fit the audit.
        AttributionError: a manifest cannot be written.
    """
    assert audit.source is not None  # it was just read
    listed = ListedPairs(audit.source, audit.reading, audit.own_responses)
    if audit.scores is None:
        return Results(listed, report=_written(audit, listed))
    flagged = audit.flag_by(rule)
    witnessed = hear(flagged)
    manifests = flagged.save_manifests()
    return Results(listed, flagged, witnessed, manifests, _written(audit, listed))


def _written(audit: Audit, listed: ListedPairs) -> Path | None:
    try:
        return write_report(audit.folder, listed, probes=audit.probes).path
    except AttributionError as error:  # the audit is whole without it
        command = shell_command("trl-attribution", "report", audit.folder)
        logger.error("no report: %s. Make it with: %s", error, command or "trl-attribution report FOLDER")
        return None
