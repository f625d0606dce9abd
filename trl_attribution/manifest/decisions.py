"""What people decided about single pairs: their word counts for more than any score."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from trl_attribution.errors import ManifestError
from trl_attribution.manifest.lines import LineFormat, entries, json_line
from trl_attribution.utils.atomic import atomic_path

Action = Literal["keep", "filter", "flip"]
PairId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

DECISIONS_FORMAT: Final = "trl-attribution decisions"
DECISIONS_VERSION: Final = 1
_FORMAT = LineFormat(
    DECISIONS_FORMAT, DECISIONS_VERSION, "decisions file", "the review page of a report saves such files"
)
_STRICT = ConfigDict(extra="forbid")


def _utc_or_empty(text: str) -> str:
    if not text:
        return text
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.utcoffset() != timedelta(0):
        raise ValueError('give a time in UTC such as "2026-01-31T12:00:00Z", or ""')
    return text


@checked_dataclass(frozen=True, config=_STRICT)
class ReviewDecision:
    """What one reviewer decided about one pair."""

    pair_id: PairId
    action: Action
    note: str = ""
    """The reviewer's reason, free text."""
    reviewer: str = ""
    """Who decided; "" where nobody said."""
    decided_at: Annotated[str, AfterValidator(_utc_or_empty)] = ""
    """ISO-8601 in UTC, or ""."""


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Header:
    format: Literal["trl-attribution decisions"] = DECISIONS_FORMAT
    version: Annotated[int, Field(ge=1)] = DECISIONS_VERSION
    dataset_fingerprint: Fingerprint


_HEADER: TypeAdapter[_Header] = TypeAdapter(_Header)
_DECISION: TypeAdapter[ReviewDecision] = TypeAdapter(ReviewDecision)


@dataclasses.dataclass(frozen=True)
class ReviewDecisions:
    """The decisions of reviewers about the pairs of one dataset, in the order they were made.

    A reviewer who decides about a pair again replaces the first decision, so that a page can save by appending;
    ``decisions`` holds only what counts. Several reviewers may decide about one pair.

    Raises:
        ManifestError: a fingerprint or a decision is malformed.
    """

    dataset_fingerprint: str
    """Of the dataset that was reviewed, as ``pairs.dataset_fingerprint`` gives it."""
    decisions: tuple[ReviewDecision, ...]

    def __post_init__(self) -> None:
        try:
            _HEADER.validate_python({"dataset_fingerprint": self.dataset_fingerprint})
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]["msg"]
            raise ManifestError(f"a decisions file needs the fingerprint of its dataset: {fault}") from None
        last: dict[tuple[str, str], ReviewDecision] = {}
        for decision in self.decisions:
            # Taken out first, so that the order is that of the decisions which count.
            last.pop((decision.pair_id, decision.reviewer), None)
            last[decision.pair_id, decision.reviewer] = decision
        object.__setattr__(self, "decisions", tuple(last.values()))

    @classmethod
    def load(cls, path: str | Path) -> ReviewDecisions:
        """Read a decisions file and check every line of it.

        Raises:
            ManifestError: no such file, none of decisions, of a newer version, or a faulty line; the message names
                file, line and field.
        """
        lines = _FORMAT.lines(path)
        header = _FORMAT.header(_HEADER, lines, path)
        return cls(header.dataset_fingerprint, tuple(decision for _, decision in entries(_DECISION, lines, path)))

    def save(self, path: str | Path) -> None:
        """Write the decisions as JSON lines, atomically: the header first, then a decision a line.

        Raises:
            AttributionError: the file cannot be written; nothing is left behind.
        """
        with atomic_path(path) as part, part.open("w", encoding="utf-8", newline="\n") as handle:
            handle.write(json_line(dataclasses.asdict(_Header(dataset_fingerprint=self.dataset_fingerprint))))
            handle.writelines(json_line(vars(decision)) for decision in self.decisions)

    @property
    def digest(self) -> str:
        """64 hex characters over all that counts: fingerprint and decisions, whatever order they were made in."""
        decisions = sorted(_canonical(dataclasses.asdict(one)) for one in self.decisions)
        content = _canonical({"dataset_fingerprint": self.dataset_fingerprint, "decisions": decisions})
        return hashlib.sha256(content.encode()).hexdigest()

    def by_pair(self) -> Mapping[str, tuple[ReviewDecision, ...]]:
        """Every reviewed pair with what was decided about it, one decision a reviewer."""
        found: dict[str, tuple[ReviewDecision, ...]] = {}
        for decision in self.decisions:
            found[decision.pair_id] = (*found.get(decision.pair_id, ()), decision)
        return found


def _canonical(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
