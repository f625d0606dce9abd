"""SARIF 2.1.0, which code scanning services read: a result for each violation of a broken rule, with file and line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trl_attribution.gate.formats.json_document import dump
from trl_attribution.gate.formats.neutral import TEXT_LIMIT, inner_path, sarif, uri, visible
from trl_attribution.gate.formats.wording import (
    evidence,
    excerpt_lines,
    facts,
    failure,
    where,
)
from trl_attribution.gate.verdict import Allowed, RuleResult, Verdict, Violation
from trl_attribution.utils.text import counted

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
SHOWN = 5000
"""Results in one file, which is what GitHub shows of a run."""


def render_sarif(verdict: Verdict) -> str:
    """Accepted violations are results that the allow list suppresses, with its reason."""
    results: list[dict[str, Any]] = []
    for index, rule in enumerate(verdict.rules):
        if not rule.passed:
            results += _broken(rule, index, verdict.dataset)
        results += [_suppressed(rule, index, entry, verdict.dataset) for entry in rule.allowed]
    run = {
        "tool": {"driver": _driver(verdict)},
        "invocations": [_invocation(verdict, max(0, len(results) - SHOWN))],
        "columnKind": "unicodeCodePoints",
        "results": results[:SHOWN],
        "properties": {"facts": [f"{fact.name}: {visible(fact.value)}" for fact in facts(verdict)]},
    }
    return dump({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]})


def _driver(verdict: Verdict) -> dict[str, Any]:
    rules = [
        {
            "id": visible(rule.rule),
            "shortDescription": {"text": sarif(rule.rule, TEXT_LIMIT)},
            "fullDescription": {"text": sarif(rule.sentence)},
            "defaultConfiguration": {"level": "error" if rule.severity == "error" else "warning"},
        }
        for rule in verdict.rules
    ]
    return {"name": "trl-attribution gate", "version": visible(verdict.tool_version), "rules": rules}


def _invocation(verdict: Verdict, left: int) -> dict[str, Any]:
    notes = list(verdict.notes)
    if left:
        notes.append(f"{counted(left, 'more violation')} not listed: a run holds {SHOWN:,}")
    return {
        "executionSuccessful": True,
        "exitCode": verdict.exit_code,
        "exitCodeDescription": visible(verdict.outcome),
        "toolExecutionNotifications": [{"level": "note", "message": {"text": sarif(note)}} for note in notes],
    }


def _broken(rule: RuleResult, index: int, dataset: str) -> Iterator[dict[str, Any]]:
    """One result a violation; one for the dataset as a whole where the rule names none."""
    for violation in rule.violations or (Violation(rule.sentence),):
        yield _result(rule, index, violation, dataset)


def _suppressed(rule: RuleResult, index: int, entry: Allowed, dataset: str) -> dict[str, Any]:
    reason = f"{visible(entry.reason)} (until {visible(entry.expires)})"
    suppression = {"kind": "external", "status": "accepted", "justification": reason}
    return {**_result(rule, index, entry.violation, dataset), "suppressions": [suppression]}


def _result(rule: RuleResult, index: int, violation: Violation, dataset: str) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": visible(rule.rule),
        "ruleIndex": index,
        "level": failure(rule) or "note",
        "message": {"text": _message(violation)},
        "locations": list(_locations(violation, dataset)),
    }
    if violation.pair_id is not None:
        result["partialFingerprints"] = {"pairId/v1": visible(violation.pair_id)}
    measured = {"probe": violation.probe, "score": violation.score, "rank": violation.rank, "qValue": violation.q_value}
    known = {name: visible(value) if isinstance(value, str) else value for name, value in measured.items()}
    properties = {name: value for name, value in known.items() if value is not None}
    if properties:
        result["properties"] = properties
    return result


def _message(violation: Violation) -> str:
    place, evident = where(violation), evidence(violation)
    lines = [sarif(violation.message), *([sarif(place, TEXT_LIMIT)] if place else []), *([evident] if evident else [])]
    return "\n".join([*lines, *(sarif(line, TEXT_LIMIT) for line in excerpt_lines(violation))])


def _locations(violation: Violation, dataset: str) -> Iterator[dict[str, Any]]:
    """File and line; the dataset where the violation is about all of it (GitHub drops a result that lies nowhere)."""
    place = violation.place
    file = inner_path(dataset if place is None or place.file is None else place.file)
    if file is None:
        return
    physical: dict[str, Any] = {"artifactLocation": {"uri": uri(file), "uriBaseId": "%SRCROOT%"}}
    if place is not None and place.line is not None:
        physical["region"] = {"startLine": place.line}
    yield {"physicalLocation": physical}
