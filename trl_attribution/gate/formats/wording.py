"""The sentences about a verdict that all formats share, raw: each format neutralizes them for its own place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trl_attribution.gate.verdict import RuleResult, Statement, Verdict, Violation
from trl_attribution.utils.text import counted, tally


@dataclass(frozen=True)
class Fact:
    """A line about what was judged and by what."""

    name: str
    value: str


def unlisted(verdict: Verdict) -> Iterator[Statement]:
    """The statements whose highest pairs no broken rule lists already."""
    told = {each.probe for rule in failures(verdict) for each in rule.violations if each.pair_id}
    yield from (each for each in verdict.statements if each.highest and each.probe not in told)


def highest_title(statement: Statement) -> str:
    """What stands above the pairs that score highest where no rule objects to them."""
    return f"highest scores for {statement.probe}, which no rule objects to; read them all the same"


def failure(rule: RuleResult) -> str | None:
    """``error`` or ``warning`` where the rule is broken, None where it holds."""
    if rule.passed:
        return None
    return "error" if rule.severity == "error" else "warning"


def failures(verdict: Verdict) -> list[RuleResult]:
    """The rules that are broken, errors before warnings, otherwise as in the policy."""
    broken = [rule for rule in verdict.rules if not rule.passed]
    return sorted(broken, key=lambda rule: rule.severity != "error")


def result_word(rule: RuleResult) -> str:
    """``pass``, ``warn`` or ``FAIL``."""
    return {None: "pass", "warning": "warn", "error": "FAIL"}[failure(rule)]


def facts(verdict: Verdict) -> Iterator[Fact]:
    """What was judged, how much of it was computed, and everything needed to judge it again."""
    yield Fact("dataset", verdict.dataset)
    since = f", those changed since {verdict.base_ref}" if verdict.base_ref else ""
    yield Fact("examined", f"{verdict.examined:,} of {counted(verdict.pairs, 'pair')}{since}")
    reused = f", {verdict.reused:,} from vectors made before" if verdict.reused else ""
    yield Fact("vectors", f"{verdict.computed:,} computed, {verdict.cached - verdict.reused:,} from the cache{reused}")
    if verdict.skipped:
        yield Fact("left out", tally(dict(sorted(verdict.skipped.items()))))
    yield Fact("M0", verdict.model_fingerprint or "none needed")
    for name, fingerprint in sorted(verdict.probe_fingerprints.items()):
        yield Fact("probe", f"{name} {fingerprint}")
    yield Fact("policy", verdict.policy_digest)
    yield Fact("version", verdict.tool_version)


def where(violation: Violation) -> str:
    """File and line, or file and row, or row; empty for the dataset as a whole."""
    place = violation.place
    if place is None:
        return ""
    if place.file is None:
        return f"row {place.row}"
    return f"{place.file} row {place.row}" if place.line is None else f"{place.file}:{place.line}"


def evidence(violation: Violation) -> str:
    """Score, rank and q-value as far as the violation has them."""
    parts = []
    if violation.score is not None:
        parts.append(f"score {violation.score:.3f}")
    if violation.rank is not None:
        parts.append(f"rank {violation.rank:,}")
    if violation.q_value is not None:
        parts.append(f"q {violation.q_value:.2g}")
    return ", ".join(parts)


def excerpt_lines(violation: Violation) -> list[str]:
    """The pair's raw texts, one line each once they are neutralized, with a sign that is never markup."""
    if violation.excerpt is None:
        return []
    texts = violation.excerpt
    return [f"prompt: {texts.prompt}", f"+ chosen: {texts.chosen}", f"- rejected: {texts.rejected}"]


def more(count: int) -> str:
    """The line that stands for the violations that are not shown."""
    return f"... and {counted(count, 'more violation')}"
