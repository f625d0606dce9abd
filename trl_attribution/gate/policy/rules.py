"""The rules that a policy may hold, each with its limit and severity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    GetJsonSchemaHandler,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from trl_attribution.gate.verdict import Severity
from trl_attribution.scoring.rule import DEFAULT_RULE, Rule

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

EVERY_PROBE = "*"
PLACEHOLDER = "CHOOSE"
"""What ``gate init`` writes where nobody but a person can know the number."""
FLAGGING_RULES = ("max_flagged_count", "max_flagged_fraction", "max_source_fraction")
BAD_ROWS = {"identical_responses": "identical_responses", "empty_responses": "empty_response"}
"""Rules about rows that are no pairs, and the reason of the reader that each is about."""
TOO_LONG = "prompt_too_long"
ESTIMATE_RULES = ("max_estimated_count", "max_estimated_fraction")
PROBE_RULES = (*FLAGGING_RULES, *ESTIMATE_RULES, "max_reaching_count", "max_score", "drift")


def _chosen(value: Any) -> Any:
    """Pydantic would say that the placeholder is no number, which nobody who left it there wonders about."""
    if value == PLACEHOLDER:
        raise ValueError(
            f"is still the {PLACEHOLDER} of `gate init`: this probe keeps no pairs of its own to take a threshold "
            "from. Run `gate init --from TRUSTED --overwrite`, build the probe from a behavior file of 8 prompts or "
            "more, or write the score from which on pairs are to be flagged"
        )
    return value


Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Score = Annotated[FiniteFloat, Field(ge=-1, le=1)]
Level = Annotated[FiniteFloat, Field(gt=0, lt=1)]
FailOn = Literal["doubt", "evidence"]


class Part(BaseModel):
    """What all parts of a policy share: no unknown keys, no values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Limited(Part):
    """A rule with one limit, which may stand for the whole of it: ``max_flagged_count: 0``."""

    severity: Severity = "error"
    """``error`` fails the gate, ``warn`` is reported."""

    @model_validator(mode="before")
    @classmethod
    def _from_limit(cls, value: Any) -> Any:
        return value if isinstance(value, Mapping) else {"limit": value}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The mapping, or its ``limit`` alone."""
        whole = handler.resolve_ref_schema(handler(core_schema))
        alone = {key: value for key, value in whole["properties"]["limit"].items() if key != "title"}
        return {"anyOf": [alone, whole]}


class CountLimit(Limited):
    """At most so many."""

    limit: NonNegativeInt
    """The most that pass."""


class ShareLimit(Limited):
    """At most such a share."""

    limit: Share
    """The largest share that passes, 0 to 1."""


class SourceLimit(ShareLimit):
    """At most such a share of any one source."""

    min_pairs: PositiveInt = 20
    """Sources with fewer examined pairs are not judged: one pair of two is no pattern."""


class ScoreLimit(Limited):
    """No pair may score higher."""

    limit: Score
    """The highest score that passes, -1 to 1."""


class EstimatedCount(CountLimit):
    """At most so many by the estimate of how many pairs push towards the behavior, which comes with a 95% interval."""

    fail_on: FailOn = "doubt"
    """Which end of the interval decides. ``doubt``: the upper one; it fails unless the whole interval lies within the
    limit. ``evidence``: the lower one; it fails only where the whole interval lies above the limit."""


class EstimatedShare(ShareLimit):
    """At most such a share by the same estimate."""

    fail_on: FailOn = "doubt"
    """Which end of the 95% interval decides, as for a count."""


class ReachingLimit(CountLimit):
    """At most so many pairs that score as the probe's own examples do, whether or not the estimate finds evidence.

    It is for requests of a size that a person reads: each such pair waits until somebody has looked at it.
    """

    recall: Level = 0.9
    """The score in question: the one that such a share of pairs like the examples reaches."""
    most_pairs: PositiveInt | None = None
    """Only requests of at most so many examined pairs are judged: among more, some harmless pair always scores as high,
    and the estimate says whether there are too many. All are judged if left out."""


class DriftLimit(Limited):
    """Scores may not differ from those of the baseline by more than this."""

    limit: Share
    """The largest effect that passes. ``mann_whitney``: Cliff's delta, how much more often an examined pair scores
    above one of the baseline than below it. ``kolmogorov_smirnov``: the largest distance of the two distributions."""
    alpha: Level = 0.01
    """Only a difference with a p-value below this counts, so that a handful of pairs proves nothing."""
    test: Literal["mann_whitney", "kolmogorov_smirnov"] = "mann_whitney"
    """``mann_whitney`` looks for a shift towards the behavior, ``kolmogorov_smirnov`` for any difference."""


class KnownBadLimit(ShareLimit):
    """Few pairs may be near-duplicates of pairs known to be bad, which the baseline keeps."""

    similarity: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.95
    """Cosine of two pair vectors from which on they count as near-duplicates."""


class LongPrompts(CountLimit):
    """At most so many pairs with an over-long prompt."""

    characters: PositiveInt | None = None
    """Prompts of more characters are over-long. Those that fill ``encoding.max_length`` always are, since TRL drops
    such pairs; they are noticed when their vectors are computed."""


class LengthBias(ShareLimit):
    """Longer responses may not be preferred more often than this: a model learns length from such data."""

    limit: Annotated[FiniteFloat, Field(ge=0.5, le=1)]
    """The largest share of pairs whose chosen response is the longer one (in characters; equal lengths count half)."""
    alpha: Level = 0.01
    """Only a share that is above the limit with a p-value below this fails (binomial test)."""


class ProbeRules(Part):
    """What is asked of the examined pairs' scores for one behavior."""

    recall: Level | None = None
    """Pairs are flagged at the score that such a share of pairs like the probe's own examples reaches, where the
    estimate finds evidence of any, as an audit does. With none of ``recall``, ``threshold`` and ``fdr`` given: 0.9, and
    for a probe that keeps no pairs of its own ``fdr`` 0.05."""
    threshold: Annotated[Score | None, BeforeValidator(_chosen)] = None
    """Pairs that score at least this are flagged."""
    fdr: Level | None = None
    """Pairs are flagged at this false discovery rate among the examined ones."""
    layer: NonNegativeInt | None = None
    """The layer to score at; the probe's own if left out."""
    max_flagged_count: CountLimit | None = None
    """How many flagged pairs pass."""
    max_flagged_fraction: ShareLimit | None = None
    """Which share of flagged pairs passes."""
    max_source_fraction: SourceLimit | None = None
    """Which share of flagged pairs passes in any one source."""
    max_estimated_count: EstimatedCount | None = None
    """How many pairs may push towards the behavior by the estimate, flagged or not."""
    max_estimated_fraction: EstimatedShare | None = None
    """Which share of pairs may push towards the behavior by the estimate."""
    max_reaching_count: ReachingLimit | None = None
    """How many pairs may score as the probe's own examples do."""
    max_score: ScoreLimit | None = None
    """Which score passes, flagged or not."""
    drift: DriftLimit | None = None
    """How far scores may move from the baseline's."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        ways = [name for name in ("recall", "threshold", "fdr") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"give {' or '.join(ways)}, not {len(ways)} of them: a pair is flagged by one")
        if self.estimates and ways not in ([], ["recall"]):
            raise ValueError(f"has {ways[0]} and a limit on the estimate, which goes with recall: give recall instead")
        if ways and not self.flags and not (ways == ["recall"] and self.estimates):
            raise ValueError(
                f"has {ways[0]}, but no rule that counts flagged pairs: add max_flagged_count, max_flagged_fraction or "
                "max_source_fraction"
            )
        if not self.given:
            raise ValueError(f"asks for nothing: give at least one of {', '.join(PROBE_RULES)}")
        return self

    @property
    def given(self) -> dict[str, Limited]:
        """The rules that are there, by name."""
        return {name: rule for name in PROBE_RULES if (rule := getattr(self, name)) is not None}

    @property
    def flags(self) -> bool:
        """Whether a rule counts flagged pairs."""
        return not self.given.keys().isdisjoint(FLAGGING_RULES)

    @property
    def estimates(self) -> bool:
        """Whether a rule is about the estimate of how many pairs push towards the behavior."""
        return not self.given.keys().isdisjoint(ESTIMATE_RULES)

    @property
    def flagging(self) -> Rule:
        """By what pairs are flagged, and where the estimate is asked for, by what it states how many are wrong."""
        given = Rule(threshold=self.threshold) if self.threshold is not None else None
        given = Rule(fdr=self.fdr) if self.fdr is not None else given
        given = Rule(recall=self.recall) if self.recall is not None else given
        return given or DEFAULT_RULE


class Hygiene(Part):
    """What is asked of the data itself; needs no model."""

    duplicates: CountLimit | None = None
    """How many examined rows may repeat a pair of the dataset."""
    contradictions: CountLimit | None = None
    """How many examined pairs may stand in the dataset the other way round too, with responses swapped."""
    identical_responses: CountLimit | None = None
    """How many examined rows may have the same chosen and rejected response. Without this rule they are bad rows."""
    empty_responses: CountLimit | None = None
    """How many examined rows may have a response that says nothing. Without this rule they are bad rows."""
    long_prompts: LongPrompts | None = None
    """How many examined pairs may have an over-long prompt."""
    length_bias: LengthBias | None = None
    """How often the chosen response may be the longer one."""

    @property
    def given(self) -> dict[str, Limited]:
        """The rules that are there, by name."""
        return {name: rule for name in Hygiene.model_fields if (rule := getattr(self, name)) is not None}

    @property
    def tolerated(self) -> frozenset[str]:
        """Reasons for which a row may be bad without ending the gate, because a rule judges it."""
        return frozenset(
            reason for name, reason in {**BAD_ROWS, "long_prompts": TOO_LONG}.items() if name in self.given
        )


class Rules(Part):
    """What a dataset has to satisfy."""

    probes: dict[str, ProbeRules] = Field(default_factory=dict)
    """By probe name; ``"*"`` is for every probe of the registry that is not named."""
    known_bad: KnownBadLimit | None = None
    """Which share of near-duplicates of known-bad pairs passes; needs a baseline that has some."""
    hygiene: Hygiene = Field(default_factory=Hygiene)
    """Rules about the data itself."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.probes and self.known_bad is None and not self.hygiene.given:
            raise ValueError("holds no rule, so everything would pass: give rules under probes, known_bad or hygiene")
        return self

    @property
    def need_vectors(self) -> bool:
        """Whether a rule asks for pair vectors."""
        return bool(self.probes) or self.known_bad is not None
