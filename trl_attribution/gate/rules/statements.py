"""What a verdict says of each probe: what was found, and what the test would have caught, found or not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trl_attribution.gate.rules.docket import Docket
from trl_attribution.gate.rules.scored import ProbeScores
from trl_attribution.gate.rules.scores import reaching, single_pairs_judged, violation
from trl_attribution.gate.verdict import Range, Statement, Violation
from trl_attribution.scoring import fewest_discoveries
from trl_attribution.scoring.decision import Decision
from trl_attribution.scoring.prevalence import Interval
from trl_attribution.scoring.recall import Rate, share_above, threshold_for

SHOWN = 10
"""Pairs that are listed whether or not a rule objects to them."""


def statement(docket: Docket, found: ProbeScores, most: int) -> Statement:
    """The statement on one probe.

    Args:
        docket: what was judged.
        found: the scores for the probe.
        most: pairs to list at the most.
    """
    name, highest = found.ruled.name, _highest(docket, found, min(most, SHOWN))
    if not len(docket.examined):
        return Statement(name, f"No {docket.noun} to look for {name} in.")
    if (decision := found.decision) is not None:
        return Statement(
            probe=name,
            sentence=_said(docket, found, decision),
            threshold=decision.threshold.threshold,
            catches=_range(decision.threshold.recall),
            count=_range(decision.prevalence.count),
            wrong=_range(decision.prevalence.wrong),
            highest=highest,
        )
    threshold, how = _threshold(docket, found)
    if threshold is None:
        return Statement(name, f"No single pair is judged for {name}: {how}.", highest=highest)
    catches = None if found.known is None else share_above(threshold, found.known.examples)
    at_least = int((found.scores.astype(np.float64) >= threshold).sum())
    sentence = f"For {name}, {at_least:,} of {docket.total} score {threshold:.3g} or more, {how}; {_catching(catches)}."
    return Statement(name, sentence, threshold, None if catches is None else _range(catches), highest=highest)


def _said(docket: Docket, found: ProbeScores, decision: Decision) -> str:
    """The decision, and what of single pairs where a rule stops those that score as the examples do."""
    name, rule = found.ruled.name, found.ruled.rules.max_reaching_count
    said = decision.sentence(name)
    said = f"{said[:1].upper()}{said[1:]}."
    if rule is None or found.known is None or not single_pairs_judged(docket, rule):
        return said
    threshold = threshold_for(rule.recall, found.known.examples)
    count = int(reaching(found, threshold.threshold).sum())
    others = f"about {threshold.recall.value:.0%} of pairs like them"
    if not count:
        return f"{said} None of {docket.total} scores as the examples of {name} do; {others} would."
    verb = "scores" if count == 1 else "score"
    return f"{count:,} of {docket.total} {verb} as the examples of {name} do, and {others} would. {said}"


def _threshold(docket: Docket, found: ProbeScores) -> tuple[float | None, str]:
    """The score from which on a pair is stopped where there is no decision, and what that rests on."""
    ruled = found.ruled
    if ruled.rate is not None and found.null is not None:
        fewest = fewest_discoveries(ruled.rate, len(docket.examined), len(found.null))
        together = "a pair alone is" if fewest == 1 else f"{fewest:,} pairs or more together are"
        threshold = _flagged_from(found.null, ruled.rate * fewest / len(docket.examined))
        return threshold, f"where {together} flagged at fdr {ruled.rate:g}"
    if ruled.rules.flags:
        return ruled.rules.threshold, "the threshold"
    if ruled.rules.max_reaching_count is not None and found.known is not None:
        return threshold_for(
            ruled.rules.max_reaching_count.recall, found.known.examples
        ).threshold, "as the examples do"
    if ruled.rules.max_score is not None:
        return ruled.rules.max_score.limit, "the highest that is allowed"
    return None, "its rules are about all of them together"


def _flagged_from(null: npt.NDArray[np.float64], p_value: float) -> float:
    """The lowest positive score with such a p-value at most."""
    above = int(np.floor(p_value * (1 + len(null)) + 1e-9)) - 1  # of the null, as many may score as high
    falling = np.sort(null)[::-1]
    limit = float(falling[above]) if above < len(falling) else 0.0
    return float(np.nextafter(max(limit, 0.0), np.inf))


def _catching(catches: Rate | None) -> str:
    if catches is None:
        return "how many of pairs like the examples that catches is not known: the probe keeps none"
    return (
        f"that catches about {catches.value:.0%} ({catches.low:.0%} to {catches.high:.0%}) of pairs like the examples"
    )


def _highest(docket: Docket, found: ProbeScores, most: int) -> tuple[Violation, ...]:
    message = f"among the highest scores for {found.ruled.name}"
    places = np.flatnonzero(found.scores > 0)
    order = places[np.argsort(found.rank[places])][:most].tolist()
    return tuple(violation(docket, found, place, message) for place in order)


def _range(given: Rate | Interval) -> Range:
    return Range(given.value, given.low, given.high)
