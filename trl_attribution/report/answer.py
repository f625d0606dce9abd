"""What an audit found, in sentences: the answer that page and terminal begin with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trl_attribution.discovery import ScanResult
from trl_attribution.report import scan as wording
from trl_attribution.report.discovery import cluster_title
from trl_attribution.report.findings import Findings, ProbeFindings
from trl_attribution.scoring import SourceRow, rule_words
from trl_attribution.utils.kinds import ExampleKind
from trl_attribution.utils.text import counted, printable

_ENRICHED = 0.05
"""Sources are named up to this q-value."""
_NAMED = 4
_FIRST = 3


@dataclass(frozen=True)
class Answer:
    """The ten-second version."""

    headline: str
    towards: tuple[str, ...]
    """Of several probes, the sentence on each; and what reviewers found."""
    origins: str
    """From which sources they come."""
    certainty: tuple[str, ...]
    """How sure that is."""
    unasked: str
    """What scan and discovery found without being asked; empty where neither ran."""

    @property
    def sentences(self) -> tuple[str, ...]:
        """All but the headline, in order."""
        return tuple(one for one in (*self.towards, self.origins, self.unasked, *self.certainty) if one)


def answer_of(found: Findings) -> Answer:
    """The answer; text of the dataset in it is printable."""
    scan = found.extras.scan
    if found.rule is None and scan is not None:
        first = tuple(
            f"{at}. {wording.sentence(one, found.kind)}." for at, one in enumerate(scan.findings[:_FIRST], start=1)
        )
        return Answer(
            wording.headline(scan), first, "", (*wording.sureness(scan), _not_training(found.kind)), _discovered(found)
        )
    if found.rule is None:
        read = f"{found.kind.counted(found.pairs)} were read and their vectors stored"
        towards = (f"{read}. Audit again with probes to score them, or scan to learn what they teach.",)
        return Answer("No behavior was asked about", towards, "", (), _discovered(found))
    flagged = found.listed.flagged
    said = tuple(one.outcome.headline for one in found.probes)
    reviewed = tuple(one.reviewed.sentence for one in found.probes if one.reviewed is not None)
    if len(said) == 1:
        headline, said = said[0].removesuffix("."), ()
    elif flagged:
        share = f"{flagged:,} of {found.kind.counted(found.pairs)} ({flagged / found.pairs:.1%})"
        headline = f"{share} are flagged for {len(said)} behaviors"
    else:
        headline = f"Nothing is flagged for {len(said)} behaviors: read on for what would have been"
    origins = _origins(found) if flagged else ""
    unasked = " ".join(one for one in (_scanned(scan), _discovered(found)) if one)
    return Answer(headline, (*said, *reviewed), origins, _certainty(found), unasked)


def rule_text(found: Findings) -> str:
    """The rule that flagged the pairs, in words."""
    if found.rule is None:
        return "no rule: nothing was scored"
    rules = {
        rule_words(found.rule, by_recall=one.outcome.decision is not None): one.column.probe for one in found.probes
    }
    if len(rules) == 1:
        return next(iter(rules))
    return "; ".join(f"{rule} for probes such as {probe}" for rule, probe in rules.items())


def null_text(one: ProbeFindings, kind: ExampleKind) -> str:
    """What the q-values of a probe compare with, in words."""
    if one.null == "reference":
        return f"scores of {kind.several} known to be clean"
    return f"the mirror null: each {kind.one} is as likely as its own flip"


def _origins(found: Findings) -> str:
    if len(found.sources) < 2:
        return f"All {found.kind.several} are of one source, so sources cannot be compared."
    enriched = [
        row for row in found.sources if row.q_value <= _ENRICHED and row.flagged and (row.enrichment or 0.0) > 1
    ]
    if not enriched:
        return "They come from all sources alike: none holds significantly more of them than the others."
    part = sum(row.flagged for row in enriched)
    named = ", ".join(_origin(row) for row in enriched[:_NAMED])
    more = f", and {len(enriched) - _NAMED} more" if len(enriched) > _NAMED else ""
    count = counted(len(enriched), "source")
    verb = "stands" if len(enriched) == 1 else "stand"
    return f"{count} {verb} out with {part:,} of them ({part / found.listed.flagged:.0%}): {named}{more}."


def _origin(row: SourceRow) -> str:
    often = "nowhere else" if math.isinf(row.enrichment or 0) else f"{row.enrichment:.1f} times the share elsewhere"
    return f"{printable(row.source, 60)} ({row.flagged:,} of its {row.pairs:,}, {often})"


def _scanned(scan: ScanResult | None) -> str:
    """What a scan found, beside the behaviors that were asked about."""
    if scan is None:
        return ""
    says = dict.fromkeys(printable(one.says, 60) for one in scan.findings)
    named = f" ({'; '.join(list(says)[:_NAMED])})" if says else ""
    return f"The scan, which nobody told what to look for, has {counted(len(scan.findings), 'finding')}{named}."


def _discovered(found: Findings) -> str:
    """What discovery found, over what it looked at, and the words of its largest clusters."""
    parts = []
    for stored in found.extras.discoveries:
        one = stored.discovery
        behaviors = counted(len(one.clusters), "behavior")
        titles = [cluster_title(cluster, 3) for cluster in one.clusters[:_NAMED]]
        named = "; ".join(title for title in titles if title)
        over = f"{one.items:,} {one.mode}"
        parts.append(f"{behaviors} over {over}" + (f" ({named})" if named else ""))
    return f"Discovery, which nobody told what to look for, found {' and '.join(parts)}." if parts else ""


def _not_training(kind: ExampleKind) -> str:
    retrain = f"Retraining without the {kind.several} does."
    return f"Scores say what a {kind.one} pushes towards, not what training did. {retrain}"


def _certainty(found: Findings) -> tuple[str, ...]:
    many, several = len(found.probes) > 1, found.kind.several
    unknown = [one for one in found.probes if one.outcome.decision is None]
    lines = [f"{one.column.probe}: {line}" if many else line for one in found.probes for line in one.outcome.details]
    lines += [_how_sure(one, many, found.kind) for one in unknown]
    if found.rule_is_default:
        lines.append(
            f"No manifest lies in the folder; the {found.kind.several} shown are those that the default rule flags."
        )
    if found.left_out:
        lines.append(
            f"{found.left_out:,} more {several} pass the rule with a score of 0 or less; they teach nothing of it."
        )
    lines.append(f"The rule: {rule_text(found)}.")
    if nulls := sorted({null_text(one, found.kind) for one in unknown}):
        lines.append(f"Chance is measured by {'; '.join(nulls)}.")
    lines.append(_not_training(found.kind))
    return tuple(lines)


def _how_sure(one: ProbeFindings, many: bool, kind: ExampleKind) -> str:
    found = one.at_flag_layer.discoveries
    who = f"{one.column.probe}: at" if many else "At"
    strict = ", ".join(f"{kind.counted(found[level])} at {level:.0%}" for level in sorted(found))
    if one.worst_q is None:
        return f"{who} fixed false discovery rates there would be {strict}."
    chance = round(one.worst_q * one.flagged)
    return (
        f"{who} the end of the list the false discovery rate is {one.worst_q:.2g}: about {chance:,} of the "
        f"{one.flagged:,} may be there by chance. Stricter lists would hold {strict}."
    )
