"""GitHub workflow commands: annotations at the lines of a pull request, then the verdict in plain lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Literal

from trl_attribution.gate.formats.neutral import github_data, github_property, inner_path, sentence, visible
from trl_attribution.gate.formats.wording import (
    evidence,
    excerpt_lines,
    failures,
    result_word,
    where,
)
from trl_attribution.gate.verdict import RuleResult, Verdict, Violation
from trl_attribution.utils.text import counted

SHOWN = 10
"""What GitHub shows of a step's errors, and of its warnings; what comes after them is dropped without a word."""
_TITLE = 120

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class _Annotation:
    level: Level
    title: str
    message: str
    file: str | None
    line: int | None

    def command(self) -> str:
        properties = {"file": self.file, "line": None if self.line is None else str(self.line), "title": self.title}
        listed = ",".join(f"{name}={github_property(value)}" for name, value in properties.items() if value is not None)
        return f"::{self.level} {listed}::{github_data(self.message)}"


def render_github(verdict: Verdict) -> str:
    """Annotations first, as many as GitHub shows; then a line a rule, and a last one that counts the rest."""
    broken = failures(verdict)
    lines, left = [], 0
    for level in ("error", "warning"):
        annotations = _in_turns([list(_annotations(rule)) for rule in broken if _level(rule) == level])
        lines += [annotation.command() for annotation in annotations[:SHOWN]]
        left += len(annotations[SHOWN:])
    lines.append(sentence(verdict.outcome))
    lines += [f"{result_word(rule)} {visible(rule.rule)}: {sentence(rule.sentence)}" for rule in verdict.rules]
    lines += [f"note: {sentence(note)}" for note in verdict.notes]
    if left:
        hidden = f"{counted(left, 'more violation')} without an annotation"
        lines.append(f"{hidden} (GitHub shows {SHOWN} errors and {SHOWN} warnings a step): see the job summary.")
    return "".join(line + "\n" for line in lines)


def _level(rule: RuleResult) -> Level:
    return "error" if rule.severity == "error" else "warning"


def _annotations(rule: RuleResult) -> Iterator[_Annotation]:
    """One a violation; one for the dataset as a whole where the rule names no violation."""
    title = visible(rule.rule, _TITLE)
    if not rule.violations:
        yield _Annotation(_level(rule), title, sentence(rule.sentence), None, None)
    for violation in rule.violations:
        file = None if violation.place is None else inner_path(violation.place.file)
        line = None if violation.place is None or file is None else violation.place.line
        yield _Annotation(_level(rule), title, _message(violation, told=file is not None), file, line)


def _message(violation: Violation, told: bool) -> str:
    """``told``: the annotation itself says where the violation lies."""
    place = "" if told else where(violation)
    first = f"{visible(place)}: {sentence(violation.message)}" if place else sentence(violation.message)
    evident = evidence(violation)
    identity = [f"pair {visible(violation.pair_id)}"] if violation.pair_id else []
    return "\n".join([first, *([evident] if evident else []), *identity, *map(visible, excerpt_lines(violation))])


def _in_turns(by_rule: list[list[_Annotation]]) -> list[_Annotation]:
    """The worst of each rule first, so that one rule with many violations does not hide the others."""
    return [annotation for annotation in chain.from_iterable(zip_longest(*by_rule)) if annotation is not None]
