"""How far training moves each trait: predicted from the pairs alone, and measured on both models' responses.

Both are mean differences between two responses to a prompt (chosen and rejected; M1's and M0's), read by M0, along the
trait's direction, in units of the trait's spread on M0: one fitted slope, the strength of the training, is all that may
lie between them.

Axis letters: N differences (pairs or prompts), T traits, R changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trl_attribution.discovery.changes import ChangeVectors
from trl_attribution.discovery.findings import Agreement, Prediction, TraitChange
from trl_attribution.discovery.topics import Topics
from trl_attribution.discovery.traits.measures import MEASURES, counts_of, ranks, take_measures
from trl_attribution.discovery.traits.panel import Panel
from trl_attribution.utils.arrays import Bools, Doubles, Floats, Integers

FEWEST_PROMPTS = 5
"""On which a trait can show, for its change to be measured."""
_FEWEST_CHANGES = 3
Numbers = Doubles | Sequence[float]


@dataclass(frozen=True, eq=False)
class Differences:
    """Differences between two responses each, along every trait, and where."""

    amounts: Doubles
    """``[N, T]``, in units of the traits' spreads."""
    applies: Bools
    """``[N, T]``."""
    parts: Integers
    """``[N]``: the topic, of those that do not overlap."""

    @classmethod
    def of(cls, panel: Panel, along: Floats, applies: Bools, parts: Integers) -> Differences:
        """From projections and counts ``[N, T]``, each in its own unit."""
        return cls(along / panel.spread, applies, parts)

    def mean(self, trait: int, part: int | None) -> tuple[int, float, float]:
        """How many differences a trait has in a topic (None: anywhere), their mean, and its standard error."""
        on = self.applies[:, trait] & (True if part is None else self.parts == part)
        own = self.amounts[on, trait]
        if len(own) < 2:
            return len(own), float(own.sum()), 0.0
        return len(own), float(own.mean()), float(own.std(ddof=1) / np.sqrt(len(own)))


def predicted(
    panel: Panel, pairs: Differences, parts: Mapping[int, tuple[str, ...]], fewest: int
) -> tuple[TraitChange, ...]:
    """The change of each trait overall and in each topic of at least ``fewest`` pairs.

    Args:
        panel: the traits.
        pairs: chosen minus rejected.
        parts: the topics that do not overlap, with their words; one alone is no topic.
        fewest: pairs that a trait has to be able to show on.
    """
    places: list[int | None] = [None, *(parts if len(parts) > 1 else ())]
    found = []
    for trait, one in enumerate(panel.traits):
        for part in places:
            number, mean, error = pairs.mean(trait, part)
            if number >= fewest:
                found.append(
                    TraitChange(
                        trait=one.name,
                        topic=part,
                        words=() if part is None else parts[part],
                        pairs=number,
                        predicted=round(mean, 5),
                        predicted_error=round(error, 5),
                    )
                )
    return tuple(found)


def differences_of(read: ChangeVectors, panel: Panel, topics: Topics, wording: Doubles) -> Differences:
    """M1's responses minus M0's, prompt by prompt, as the pairs' are; ``wording`` is the prompts', ``[P, W]``."""
    vectors = read.items.vectors[:, 0].double().numpy()
    contexts = read.items.contexts[:, 0].double().numpy()
    along = panel.along(vectors).astype(np.float32)
    counts = np.zeros((len(vectors), len(MEASURES)), dtype=np.float32)
    for place, one in enumerate(read.changes):
        after, before = (np.mean([counts_of(text) for text in texts], axis=0) for texts in (one.after, one.before))
        counts[place] = after - before
    take_measures(panel.traits, along, counts)
    parts = topics.part_of_leaf[topics.leaves_of(contexts, wording)]
    return Differences.of(panel, along, panel.applies(contexts), parts)


def compared(prediction: Prediction, panel: Panel, prompts: Differences, left_out: Mapping[str, int]) -> Prediction:
    """The prediction with what was measured, and how well both agree.

    Args:
        prediction: of the pairs.
        panel: the traits.
        prompts: M1's responses minus M0's.
        left_out: reason -> prompts that were not read.
    """
    place_of = {one.name: place for place, one in enumerate(panel.traits)}
    found, unmeasured = [], 0
    for one in prediction.changes:
        number, mean, error = prompts.mean(place_of[one.trait], one.topic)
        if number < FEWEST_PROMPTS:
            unmeasured += 1
            found.append(one.model_copy(update={"prompts": number}))
            continue
        measured = {"prompts": number, "measured": round(mean, 5), "measured_error": round(error, 5)}
        found.append(one.model_copy(update=measured))
    changes = tuple(found)
    return Prediction(
        changes=changes,
        by_trait=agreement_of([one for one in changes if one.topic is None]),
        by_topic=agreement_of([one for one in changes if one.topic is not None]),
        prompts=len(prompts.parts),
        left_out=dict(left_out),
        unmeasured=unmeasured,
    )


def agreement_of(changes: Sequence[TraitChange]) -> Agreement | None:
    """How well predicted and measured agree over those changes that were measured; None for fewer than three."""
    both = [(one.predicted, one.measured) for one in changes if one.measured is not None]
    return agreement(*zip(*both, strict=True)) if both else None


def agreement(expected: Numbers, found: Numbers) -> Agreement | None:
    """R2 of the line of ``found`` on ``expected`` (R values each), its slope, and Spearman's rank correlation.

    The slope and the intercept are fitted: how strongly a model was trained no dataset says. A line that falls has an
    R2 as well; look at the slope. None where there are fewer than three values, or all are the same.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (expected, found))
    if len(x) < _FEWEST_CHANGES or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return None
    correlation = float(np.corrcoef(x, y)[0, 1])
    rank = float(np.corrcoef(ranks(x), ranks(y))[0, 1])
    return Agreement(
        number=len(x),
        r2=round(correlation**2, 4),
        slope=round(correlation * float(y.std() / x.std()), 4),
        rank=round(rank, 4),
    )
