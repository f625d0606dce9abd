"""The verdict in GitHub-flavored Markdown: for a comment on a pull request, and for the summary of a job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trl_attribution.gate.formats.neutral import SENTENCE_LIMIT, visible
from trl_attribution.gate.formats.wording import (
    evidence,
    excerpt_lines,
    facts,
    failure,
    failures,
    highest_title,
    more,
    unlisted,
    where,
)
from trl_attribution.gate.verdict import RuleResult, Verdict, Violation
from trl_attribution.utils.markdown import code, inline

_COMMENT_LIMIT = 60_000
"""Characters; a comment on GitHub holds 65,536."""
_SUMMARY_LIMIT = 250_000
"""Characters, at most 4 bytes each; a job summary on GitHub holds 1 MiB."""
_RESULTS = {None: "✅ pass", "warning": "⚠️ warn", "error": "❌ **fail**"}


def render_markdown(verdict: Verdict) -> str:
    """Short enough for a comment on a pull request."""
    return _page(verdict, _COMMENT_LIMIT)


def job_summary(verdict: Verdict) -> str:
    """The page for ``$GITHUB_STEP_SUMMARY``: as :func:`render_markdown`, with room for more violations."""
    return _page(verdict, _SUMMARY_LIMIT)


def _page(verdict: Verdict, limit: int) -> str:
    head = "\n".join([*_head(verdict), *_notes(verdict)])
    parts = [head]
    room = limit - len(head)
    for rule in failures(verdict):
        if rule.violations:
            section = _section(rule, room)
            parts.append(section)
            room -= len(section)
    for statement in unlisted(verdict):
        parts.append(_listing(inline(highest_title(statement), SENTENCE_LIMIT), statement.highest, room))
        room -= len(parts[-1])
    return "\n".join(parts).rstrip() + "\n"


def _head(verdict: Verdict) -> Iterator[str]:
    yield f"## {'✅' if verdict.passed else '❌'} {inline(verdict.status)}\n"
    told = verdict.outcome.removeprefix(f"{verdict.status}.").strip()
    yield f"{inline(told, SENTENCE_LIMIT)}\n"
    yield "| | rule | result |"
    yield "|---|---|---|"
    for rule in verdict.rules:
        accepted = f" ({len(rule.allowed):,} accepted by the allow list)" if rule.allowed else ""
        told = inline(rule.sentence, SENTENCE_LIMIT)
        yield f"| {_RESULTS[failure(rule)]} | {code(rule.rule)} | {told}{accepted} |"
    yield "\n| | |"
    yield "|---|---|"
    for fact in facts(verdict):
        yield f"| {fact.name} | {code(fact.value)} |"
    yield ""


def _notes(verdict: Verdict) -> Iterator[str]:
    for note in verdict.notes:
        yield f"- note: {inline(note, SENTENCE_LIMIT)}"
    if verdict.notes:
        yield ""


def _section(rule: RuleResult, room: int) -> str:
    return _listing(code(rule.rule), rule.violations, room)


def _listing(title: str, violations: Sequence[Violation], room: int) -> str:
    """A heading, and as many violations as fit into ``room`` characters."""
    lines = [f"### {title}\n"]
    used = len(lines[0])
    for shown, violation in enumerate(violations):
        entry = "\n".join(_violation(violation))
        used += len(entry)
        if used > room:
            lines.append(f"- {more(len(violations) - shown)}\n")
            break
        lines.append(entry)
    return "\n".join(lines)


def _violation(violation: Violation) -> Iterator[str]:
    place = where(violation)
    prefix = f"{code(place)}: " if place else ""
    yield f"- **found** {prefix}{inline(violation.message, SENTENCE_LIMIT)}"
    identity = violation.pair_id and f"pair {code(violation.pair_id)}"
    facts_line = [part for part in (evidence(violation), identity) if part]
    if facts_line:
        yield f"  <br>{', '.join(facts_line)}"
    if violation.excerpt is not None:
        # Each line starts with a word or sign of ours, so none of them can close the fence or open anything.
        yield "\n  ```diff"
        yield from (f"  {visible(line)}" for line in excerpt_lines(violation))
        yield "  ```"
    yield ""
