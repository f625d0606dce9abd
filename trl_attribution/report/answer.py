"""What an audit found, in sentences: the answer that page and terminal begin with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trl_attribution.report.discovery import cluster_title
from trl_attribution.report.findings import Findings, ProbeFindings
from trl_attribution.scoring import SourceRow
from trl_attribution.utils.text import printable

_ENRICHED = 0.05
"""Sources are named up to this q-value."""
_NAMED = 4


@dataclass(frozen=True)
class Answer:
    """The ten-second version."""

    headline: str
    towards: tuple[str, ...]
    """How many pairs push towards what, a sentence a probe."""
    origins: str
    """From which sources they come."""
    certainty: tuple[str, ...]
    """How sure that is."""
    unasked: str
    """What discovery found without being asked; empty where it did not run."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """All but the headline, in order."""
        return tuple(one for one in (*self.towards, self.origins, self.unasked, *self.certainty) if one)


def answer_of(found: Findings) -> Answer:
    """The answer; text of the dataset in it is printable."""
    if found.rule is None:
        pairs = f"{found.pairs:,} pairs were read and their vectors stored"
        towards = (f"{pairs}. Audit again with probes to score them.",)
        return Answer("No behavior was asked about", towards, "", (), _unasked(found))
    flagged = found.listed.flagged
    share = f"{flagged / found.pairs:.1%}" if found.pairs else "0%"
    names = [one.column.probe for one in found.probes]
    what = names[0] if len(names) == 1 else f"{len(names)} behaviors"
    verb = "pushes" if flagged == 1 else "push"
    headline = f"{flagged:,} of {found.pairs:,} pairs ({share}) {verb} towards {what}"
    return Answer(
        headline if flagged else f"No pair of {found.pairs:,} is flagged",
        tuple(_towards(one) for one in found.probes) if len(names) > 1 else (),
        _origins(found) if flagged else "",
        _certainty(found),
        _unasked(found),
    )


def rule_text(found: Findings) -> str:
    """The rule that flagged the pairs, in words."""
    if found.rule is None:
        return "no rule: nothing was scored"
    if found.rule.top_k is not None:
        return f"the {found.rule.top_k:,} pairs that rank highest"
    if found.rule.threshold is not None:
        return f"pairs that score at least {found.rule.threshold:g}"
    if found.rule.recall is not None:
        return f"pairs that reach the threshold which would catch {found.rule.recall:.0%} of pairs like the examples"
    return f"pairs at a false discovery rate of {found.rule.fdr:.0%}"


def null_text(one: ProbeFindings) -> str:
    """What the q-values of a probe compare with, in words."""
    if one.null == "reference":
        return "scores of pairs known to be clean"
    return "the mirror null: each pair is as likely as its own flip"


def enrichment_text(row: SourceRow) -> str:
    """How many times the share of all other sources."""
    if row.enrichment is None:
        return "-"
    return "only here" if math.isinf(row.enrichment) else f"{row.enrichment:.1f}x"


def _towards(one: ProbeFindings) -> str:
    pairs = "1 pair pushes" if one.flagged == 1 else f"{one.flagged:,} pairs push"
    return f"{pairs} towards {one.column.probe} (layer {one.column.layer}, {one.column.kind} score)."


def _origins(found: Findings) -> str:
    if len(found.sources) < 2:
        return "All pairs are of one source, so sources cannot be compared."
    enriched = [
        row for row in found.sources if row.q_value <= _ENRICHED and row.flagged and (row.enrichment or 0.0) > 1
    ]
    if not enriched:
        return "They come from all sources alike: none holds significantly more of them than the others."
    part = sum(row.flagged for row in enriched)
    named = ", ".join(_origin(row) for row in enriched[:_NAMED])
    more = f", and {len(enriched) - _NAMED} more" if len(enriched) > _NAMED else ""
    count = "1 source" if len(enriched) == 1 else f"{len(enriched)} sources"
    verb = "stands" if len(enriched) == 1 else "stand"
    return f"{count} {verb} out with {part:,} of them ({part / found.listed.flagged:.0%}): {named}{more}."


def _origin(row: SourceRow) -> str:
    often = "nowhere else" if math.isinf(row.enrichment or 0) else f"{row.enrichment:.1f} times the share elsewhere"
    return f"{printable(row.source, 60)} ({row.flagged:,} of its {row.pairs:,}, {often})"


def _unasked(found: Findings) -> str:
    """What discovery found, over what it looked at, and the words of its largest clusters."""
    parts = []
    for stored in found.extras.discoveries:
        one = stored.discovery
        behaviors = "1 behavior" if len(one.clusters) == 1 else f"{len(one.clusters):,} behaviors"
        titles = [cluster_title(cluster, 3) for cluster in one.clusters[:_NAMED]]
        named = "; ".join(title for title in titles if title)
        over = f"{one.items:,} {one.mode}"
        parts.append(f"{behaviors} over {over}" + (f" ({named})" if named else ""))
    return f"Discovery, which nobody told what to look for, found {' and '.join(parts)}." if parts else ""


def _certainty(found: Findings) -> tuple[str, ...]:
    lines = [_how_sure(one, many=len(found.probes) > 1) for one in found.probes]
    if found.rule_is_default:
        lines.append("No manifest lies in the folder; the pairs shown are those at a false discovery rate of 5%.")
    if found.left_out:
        lines.append(
            f"{found.left_out:,} more pairs pass the rule with a score of 0 or less; they teach nothing of it."
        )
    nulls = {null_text(one) for one in found.probes}
    lines.append(f"The rule: {rule_text(found)}. Chance is measured by {'; '.join(sorted(nulls))}.")
    lines.append("Scores say what a pair pushes towards, not what training did. Retraining without the pairs does.")
    return tuple(lines)


def _how_sure(one: ProbeFindings, many: bool) -> str:
    found = one.at_flag_layer.discoveries
    who = f"{one.column.probe}: at" if many else "At"
    strict = ", ".join(f"{found[level]:,} pairs at {level:.0%}" for level in sorted(found))
    if one.worst_q is None:
        return f"{who} fixed false discovery rates there would be {strict}."
    chance = round(one.worst_q * one.flagged)
    return (
        f"{who} the end of the list the false discovery rate is {one.worst_q:.2g}: about {chance:,} of the "
        f"{one.flagged:,} may be there by chance. Stricter lists would hold {strict}."
    )
