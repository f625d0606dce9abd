"""What a gate says of a dataset: the one result that every output format is rendered from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from trl_attribution.utils.json_file import checked_json, read_json, validated
from trl_attribution.utils.text import counted, printable

VERDICT_FORMAT = "trl-attribution verdict"
VERDICT_VERSION = 1
EXCERPT_LENGTH = 300
_AGAIN = "Give verdict.json of a run, or run the gate again."

Severity = Literal["error", "warn"]


@dataclass(frozen=True)
class Place:
    """Where a violation lies."""

    file: str | None
    """Path as a person would write it, relative to the working directory, posix; None where the dataset is no file."""
    line: int | None
    """Counted from 1; JSONL and CSV only."""
    row: int
    """Counted from 0 in the whole dataset."""

    @classmethod
    def of(cls, row: int, file: Path | None, line: int | None) -> Place:
        """The place of a row, its file as reports name it."""
        return cls(None if file is None else as_written(file), line, row)


def as_written(path: str | Path) -> str:
    """A path relative to the working directory, with slashes, so that reports do not depend on the machine."""
    return Path(os.path.relpath(path)).as_posix()


@dataclass(frozen=True)
class Excerpt:
    """RAW dataset text, cut to 300 characters each: whoever shows it neutralizes it."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Violation:
    """One thing that a rule objects to."""

    message: str
    """One plain sentence; dataset text in it has passed ``text.printable``."""
    pair_id: str | None = None
    place: Place | None = None
    """None: about the dataset as a whole."""
    probe: str | None = None
    score: float | None = None
    rank: int | None = None
    q_value: float | None = None
    excerpt: Excerpt | None = None


@dataclass(frozen=True)
class Allowed:
    """A violation that the policy's allow list accepts."""

    violation: Annotated[Violation, Field(alias="finding")]
    reason: str
    expires: str
    """ISO date."""


@dataclass(frozen=True)
class RuleResult:
    """What one rule of the policy came to."""

    rule: str
    """Its id, such as ``distractor-compliance.max_flagged_count`` or ``hygiene.duplicates``."""
    severity: Severity
    passed: bool
    measured: int | float
    limit: int | float
    sentence: str
    """Such as "7 of 500 new pairs push towards distractor-compliance; at most 0 allowed"."""
    violations: Annotated[tuple[Violation, ...], Field(alias="findings")]
    """Worst first, as many as the policy lists; accepted ones are not among them."""
    allowed: tuple[Allowed, ...]


@dataclass(frozen=True)
class Range:
    """A number and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Statement:
    """What the examined pairs say of one behavior, and what the test would have seen of it."""

    probe: str
    sentence: str
    """Plain and printable; it says what would have been caught also where nothing was."""
    threshold: float | None = None
    """Pairs that score at least this are flagged; None where single pairs are not looked at."""
    catches: Range | None = None
    """The share of pairs like the probe's own examples that reaches the threshold; None where the probe keeps none."""
    count: Range | None = None
    """The estimate of how many pairs push towards the behavior; None where no rule asks for it."""
    wrong: Range | None = None
    """How many of those that reach the threshold are not like the examples."""
    highest: tuple[Violation, ...] = ()
    """The pairs that score highest, flagged or not: to be read in any case."""


@dataclass(frozen=True)
class Verdict:
    """Pass or fail, with reasons. No times, no dates of today, no absolute paths: equal input gives equal bytes."""

    dataset: str
    base_ref: str | None
    pairs: int
    """Different pairs in the dataset."""
    examined: int
    """Those judged."""
    computed: int
    """Vectors computed now."""
    cached: int
    """Vectors taken from the cache, a store or an audit."""
    skipped: Mapping[str, int]
    """Rows left out, by reason."""
    model_fingerprint: str
    """Empty where no rule needs a model."""
    probe_fingerprints: Mapping[str, str]
    policy_digest: str
    tool_version: str
    rules: tuple[RuleResult, ...]
    notes: tuple[str, ...]
    """Expired or unused allow entries, columns ignored and the like: plain, printable sentences."""
    reused: int = 0
    """Those of ``cached`` that come from a store or an audit made elsewhere."""
    statements: tuple[Statement, ...] = ()
    """One for each probe that has rules; verdicts of earlier versions have none."""

    @property
    def status(self) -> str:
        """Passed or failed, and how many rules say so."""
        failed = sum(not rule.passed and rule.severity == "error" for rule in self.rules)
        warned = sum(not rule.passed and rule.severity != "error" for rule in self.rules)
        parts = [f"{failed:,} of {counted(len(self.rules), 'rule')} failed" if failed else "no rule failed"]
        parts += [counted(warned, "warning")] if warned else []
        return f"Gate {'passed' if self.passed else 'failed'}: {', '.join(parts)}"

    @property
    def outcome(self) -> str:
        """The status, and what it is worth: it never says that the gate passed without what would have been caught."""
        said = [statement.sentence for statement in self.statements] or ["No behavior was looked for."]
        return " ".join([f"{self.status}.", *said])

    @property
    def passed(self) -> bool:
        """Whether no rule of severity ``error`` failed."""
        return all(rule.passed or rule.severity != "error" for rule in self.rules)

    @property
    def exit_code(self) -> int:
        """0 where the gate passed, else 1."""
        return 0 if self.passed else 1

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain values, format and version first."""
        values = _VERDICT.dump_python(self, by_alias=True)
        return {
            "format": VERDICT_FORMAT,
            "version": VERDICT_VERSION,
            "passed": self.passed,
            "outcome": self.outcome,
            **values,
        }

    @classmethod
    def from_json(cls, values: object, where: str = "this document") -> Verdict:
        """The inverse of :meth:`to_json`; ``where`` is what messages call the values.

        Raises:
            StoreError: these values are no verdict, or one of a newer version.
        """
        checked = checked_json(values, VERDICT_FORMAT, VERDICT_VERSION, where, advice=_AGAIN)
        return validated(_VERDICT, checked, where, advice=_AGAIN)

    @classmethod
    def load(cls, path: Path) -> Verdict:
        """Read ``verdict.json`` of an earlier run.

        Raises:
            StoreError: it cannot be read, is no verdict, or one of a newer version.
        """
        return cls.from_json(read_json(path, VERDICT_FORMAT, VERDICT_VERSION, advice=_AGAIN), printable(path))


_VERDICT: TypeAdapter[Verdict] = TypeAdapter(Verdict)
