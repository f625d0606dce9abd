"""What a gate says of a dataset: the one result that every output format is rendered from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from trl_attribution.errors import StoreError
from trl_attribution.utils.format_version import check_format_version
from trl_attribution.utils.text import printable

VERDICT_FORMAT = "trl-attribution verdict"
VERDICT_VERSION = 1
EXCERPT_LENGTH = 300

Severity = Literal["error", "warn"]


@dataclass(frozen=True)
class Place:
    """Where a finding lies."""

    file: str | None
    """Path as a person would write it, relative to the working directory, posix; None where the dataset is no file."""
    line: int | None
    """Counted from 1; JSONL and CSV only."""
    row: int
    """Counted from 0 in the whole dataset."""


@dataclass(frozen=True)
class Excerpt:
    """RAW dataset text, cut to 300 characters each: whoever shows it neutralizes it."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Finding:
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
    """A finding that the policy's allow list accepts."""

    finding: Finding
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
    findings: tuple[Finding, ...]
    """Offending pairs, worst first; accepted ones are not among them."""
    allowed: tuple[Allowed, ...]


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
    """Vectors taken from the cache or a store."""
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

    @property
    def passed(self) -> bool:
        """Whether no rule of severity ``error`` failed."""
        return all(rule.passed or rule.severity != "error" for rule in self.rules)

    @property
    def exit_code(self) -> int:
        """0 where the gate passed, else 1."""
        return 0 if self.passed else 1

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain JSON values, format and version first."""
        return {"format": VERDICT_FORMAT, "version": VERDICT_VERSION, "passed": self.passed, **asdict(self)}

    @classmethod
    def from_json(cls, values: Any) -> Verdict:
        """The inverse of :meth:`to_json`.

        Raises:
            StoreError: these values are no verdict, or one of a newer version.
        """
        if not isinstance(values, Mapping) or values.get("format") != VERDICT_FORMAT:
            raise StoreError(f"this is no verdict: its `format` is not {VERDICT_FORMAT!r}. Run the gate again.")
        check_format_version(values.get("version"), VERDICT_VERSION, "this verdict")
        try:
            return _VERDICT.validate_python({name: values[name] for name in cls.__dataclass_fields__ if name in values})
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = printable(".".join(map(str, fault["loc"])), 120)
            raise StoreError(f"this verdict is broken (field '{where}': {fault['msg']}). Run the gate again.") from None


_VERDICT: TypeAdapter[Verdict] = TypeAdapter(Verdict)
