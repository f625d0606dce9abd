"""How often M0 and M1 show a behavior on the same prompts, and what changed between them.

Axis letters: M prompts of a behavior, B bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trl_attribution.behaviors import (
    ChangedPrompts,
    Examples,
    Judge,
    JudgeConfig,
    SampledPrompt,
    asked_of,
    changed_prompts,
    judge_name,
    judged,
    parse_rule,
)
from trl_attribution.behaviors.responses import Behavior, Responses, paired_responses
from trl_attribution.errors import ProbeError, SettingsError
from trl_attribution.probes import BuildConfig, build_from_examples
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel
    from trl_attribution.probes import Probe

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Indices drawn at once: 8 bytes each.
_DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Rate:
    """How often a model shows a behavior, with a 95% interval over prompts."""

    share: float
    """Mean over the prompts of the share of a prompt's responses that show it: prompts weigh equally."""
    low: float
    high: float
    shown: int
    """Responses that show the behavior."""
    judged: int
    """Responses in all; one without text shows nothing."""


@dataclass(frozen=True)
class RateDifference:
    """M1's share minus M0's on the same prompts, with a 95% interval over prompts."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class BehaviorRates:
    """How often M0 and M1 show one behavior: what files say of a :class:`BehaviorChange`, read back."""

    name: Annotated[str, Field(validation_alias="behavior")]
    judge: str
    prompts: int
    prompts_changed: int
    before: Rate
    after: Rate
    difference: RateDifference


@dataclass(frozen=True)
class BehaviorChange:
    """One behavior before and after training."""

    behavior: Behavior
    judge: str
    """What judged the responses."""
    before: Rate
    after: Rate
    difference: RateDifference
    changed: ChangedPrompts
    """Where M1 shows the behavior and M0 has a response that does not."""

    @property
    def rates(self) -> BehaviorRates:
        """The numbers alone."""
        prompts, changed = len(self.behavior.prompts.prompts), len(self.changed.examples)
        return BehaviorRates(self.behavior.name, self.judge, prompts, changed, self.before, self.after, self.difference)

    def to_json(self) -> dict[str, Any]:
        """Plain values; of the changed prompts their number, since the texts are in the responses."""
        return {
            "behavior": self.behavior.name,
            "source": self.behavior.prompts.source,
            "prompts": len(self.behavior.prompts.prompts),
            "prompts_sha256": self.behavior.prompts.digest,
            "judge": self.judge,
            "confidence": CONFIDENCE,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "difference": asdict(self.difference),
            "prompts_changed": len(self.changed.examples),
            "prompts_left_out": dict(self.changed.left_out),
        }


def resolve_judges(
    behaviors: Sequence[Behavior], judge: Judge | None, config: JudgeConfig | None = None
) -> dict[str, Judge]:
    """The judge of each behavior by its name: that of its own rule, else ``judge``.

    Behaviors with the same rule share one judge, and so its budget. To be called before training too: a rule that
    cannot work fails here.

    Raises:
        SettingsError: a behavior has no rule and ``judge`` is None.
        ProbeError: a rule is not usable.
    """
    by_rule: dict[str, Judge] = {}
    for one in behaviors:
        if not one.judge and judge is None:
            raise SettingsError(
                f"behavior {printable(one.name, 80)!r} has no judge: give its rows a field `judge`, or set one for all"
            )
        if one.judge and one.judge not in by_rule:
            try:
                by_rule[one.judge] = parse_rule(one.judge, config)
            except ProbeError as error:
                raise ProbeError(f"behavior {printable(one.name, 80)!r}: {error}") from error
    return {one.name: by_rule[one.judge] if one.judge else judge for one in behaviors}  # type: ignore[misc]  # checked


def compare(
    behaviors: Sequence[Behavior],
    before: Responses,
    after: Responses,
    judge: Judge | None,
    four_condition_filter: bool = False,
    seed: int = 0,
    *,
    judges: Mapping[str, Judge] | None = None,
) -> list[BehaviorChange]:
    """Rates of each behavior before and after, their difference, and the prompts on which it changed.

    Intervals are percentile bootstraps over prompts (10,000 samples), paired for the difference. Where all prompts
    agree there is nothing to resample: then they are the exact binomial bounds, so that no showing on five prompts is
    not taken for certainty.

    Args:
        behaviors: what to compare.
        before: M0's responses.
        after: M1's responses to the same prompts.
        judge: for behaviors without a rule of their own.
        four_condition_filter: see ``changed_prompts``; both need responses to the plain prompts.
        seed: of the bootstrap.
        judges: as ``resolve_judges`` gave them; then ``judge`` is not looked at.

    Raises:
        SettingsError: responses to some prompts are missing, or a behavior has no judge.
        JudgeError: a judge gives up; the responses are as they were.
    """
    chosen = judges or resolve_judges(behaviors, judge)
    # All of it is checked before the first response is judged, which may cost.
    sampled = [paired_responses(one, before, after, four_condition_filter) for one in behaviors]
    return [
        _change(one, prompts, chosen[one.name], four_condition_filter, seed)
        for one, prompts in zip(behaviors, sampled, strict=True)
    ]


def probe_of_change(change: BehaviorChange, m0: LoadedModel, config: BuildConfig) -> Probe | None:
    """The behavior's direction by the responses of this change, both sides read by M0; None if no prompt changed.

    Raises:
        ProbeError: the responses do not fit, or both sides are the same at a layer.
    """
    if not change.changed.examples:
        return None
    prompts = change.behavior.prompts
    built = {
        "method": "change",
        "source": prompts.source,
        "prompts_sha256": prompts.digest,
        "judge": change.judge,
        "prompts_sampled": len(prompts.prompts),
        "left_out": change.changed.left_out,
        "before": asdict(change.before),
        "after": asdict(change.after),
    }
    return build_from_examples(
        change.behavior.name, Examples(prompts.source, change.changed.examples), m0, config, built
    )


def _change(
    behavior: Behavior, sampled: Sequence[SampledPrompt], judge: Judge, four_condition_filter: bool, seed: int
) -> BehaviorChange:
    known = judged(judge, asked_of(sampled))
    before = [[known(one.prompt.prompt, text) for text in one.m0] for one in sampled]
    after = [[known(one.prompt.prompt, text) for text in one.m1] for one in sampled]
    differences = [_share(new) - _share(old) for old, new in zip(before, after, strict=True)]
    return BehaviorChange(
        behavior=behavior,
        judge=judge_name(judge),
        before=rate_of(before, seed),
        after=rate_of(after, seed),
        difference=RateDifference(_mean(differences), *interval(differences, -1.0, 1.0, seed)),
        changed=changed_prompts(sampled, known, four_condition_filter),
    )


def rate_of(verdicts: Sequence[Sequence[bool]], seed: int = 0) -> Rate:
    """The rate that the verdicts on each prompt's responses ``[M][n]`` come to; ``seed`` is the bootstrap's."""
    shares = [_share(one) for one in verdicts]
    low, high = interval(shares, 0.0, 1.0, seed)
    return Rate(_mean(shares), low, high, sum(map(sum, verdicts)), sum(map(len, verdicts)))


def _share(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def interval(values: Sequence[float], least: float, most: float, seed: int = 0) -> tuple[float, float]:
    """A 95% interval of the mean of ``values`` ``[M]``, each between ``least`` and ``most``.

    The percentile bootstrap. Equal values leave it nothing to resample; then the share of values that may be
    otherwise (0 seen of M) is put at either extreme.
    """
    import numpy as np
    from scipy.stats import bootstrap

    count = len(values)
    if max(values) - min(values) < 1e-12:
        unseen = most_unseen(count)
        return values[0] - unseen * (values[0] - least), values[0] + unseen * (most - values[0])
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _DRAWN_AT_ONCE // count),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def most_unseen(count: int) -> float:
    """The share that may be otherwise although none of ``count`` were, as an exact binomial bound."""
    return float(1 - ((1 - CONFIDENCE) / 2) ** (1 / count))
