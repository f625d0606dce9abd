"""JUnit XML, one test case a rule: what GitLab, Jenkins and others show of a job."""

from __future__ import annotations

from xml.etree import ElementTree

from trl_attribution.gate.formats.neutral import SENTENCE_LIMIT, inner_path, visible, xml
from trl_attribution.gate.formats.wording import evidence, excerpt_lines, facts, failure, more, where
from trl_attribution.gate.verdict import RuleResult, Verdict, Violation

SHOWN = 100
"""Violations listed of each rule."""
_SUITE = "trl-attribution gate"


def render_junit(verdict: Verdict) -> str:
    """A broken rule of severity ``error`` is a failure; one of severity ``warn`` passes and says so in its output."""
    failed = sum(failure(rule) == "error" for rule in verdict.rules)
    counts = {"tests": str(len(verdict.rules)), "failures": str(failed), "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", {"name": _SUITE, **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _SUITE, **counts})
    properties = ElementTree.SubElement(suite, "properties")
    for fact in facts(verdict):
        ElementTree.SubElement(properties, "property", {"name": fact.name, "value": _text(fact.value)})
    for rule in verdict.rules:
        _case(suite, rule)
    told = [verdict.outcome, *(f"note: {note}" for note in verdict.notes)]
    ElementTree.SubElement(suite, "system-out").text = "\n".join(_text(line, SENTENCE_LIMIT) for line in told)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, rule: RuleResult) -> None:
    attributes = {"classname": _SUITE, "name": _text(rule.rule)}
    place = rule.violations[0].place if rule.violations else None
    file = None if place is None else inner_path(place.file)
    if file is not None:
        attributes["file"] = xml(file)  # GitLab links it
    case = ElementTree.SubElement(suite, "testcase", attributes)
    told = _text(rule.sentence, SENTENCE_LIMIT)
    if failure(rule) == "error":
        failed = ElementTree.SubElement(case, "failure", {"type": "error", "message": told})
        failed.text = _listing(told, rule)
    elif failure(rule) == "warning":
        ElementTree.SubElement(case, "system-out").text = _listing(f"warning: {told}", rule)


def _listing(first: str, rule: RuleResult) -> str:
    lines = [first]
    for violation in rule.violations[:SHOWN]:
        lines += [_text(_line(violation), SENTENCE_LIMIT), *(f"    {_text(line)}" for line in excerpt_lines(violation))]
    if len(rule.violations) > SHOWN:
        lines.append(more(len(rule.violations) - SHOWN))
    return "\n".join(lines)


def _line(violation: Violation) -> str:
    identity = violation.pair_id and f"pair {violation.pair_id}"
    parts = (where(violation), violation.message, evidence(violation), identity)
    return "; ".join(part for part in parts if part)


def _text(text: str, limit: int = 300) -> str:
    return xml(visible(text, limit))
