"""Rules about the scores of the examined pairs, and about their likeness to known-bad pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from trl_attribution.gate.baseline.baseline import GateBaseline
from trl_attribution.gate.policy.rules import (
    CountLimit,
    DriftLimit,
    KnownBadLimit,
    ReachingLimit,
    ScoreLimit,
    ShareLimit,
    SourceLimit,
)
from trl_attribution.gate.rules.docket import Docket, Outcome, Sorted, outcome
from trl_attribution.gate.rules.scored import ProbeScores
from trl_attribution.gate.vectors.supply import JointView
from trl_attribution.gate.verdict import Violation
from trl_attribution.scoring.decision import decide
from trl_attribution.scoring.prevalence import Interval
from trl_attribution.scoring.recall import threshold_for
from trl_attribution.scoring.targets import unit_rows
from trl_attribution.utils.arrays import Bools, Integers
from trl_attribution.utils.text import printable

KNOWN_BAD = "known-bad"
_DIGITS = 7
_BLOCK = 4096


def probe_outcomes(docket: Docket, found: ProbeScores) -> Iterator[Outcome]:
    """The results of one probe's rules, in the policy's order."""
    rules, name = found.ruled.rules, found.ruled.name
    if rules.flags:
        message = f"training on this pair pushes towards {name}"
        flagged = _ranked(docket, found, np.flatnonzero(found.flagged), message)
        if rules.max_flagged_count is not None:
            yield _count(docket, name, rules.max_flagged_count, flagged)
        if rules.max_flagged_fraction is not None:
            yield _fraction(docket, name, rules.max_flagged_fraction, flagged)
        if rules.max_source_fraction is not None:
            yield _sources(docket, found, rules.max_source_fraction, flagged)
    yield from _by_estimate(docket, found)
    if rules.max_reaching_count is not None:
        yield _reaching(docket, found, rules.max_reaching_count)
    if rules.max_score is not None:
        yield _highest(docket, found, rules.max_score)
    if rules.drift is not None:
        yield _drift(docket, found, rules.drift)


def known_bad_outcome(
    docket: Docket, rule: KnownBadLimit, view: JointView | None, baseline: GateBaseline, layer: int
) -> Outcome:
    """How many examined pairs are near-duplicates of known-bad ones; ``view`` holds the examined pairs.

    Raises:
        SettingsError: the baseline has no known-bad pairs at ``layer``.
    """
    known = unit_rows(baseline.known_bad_at(layer).float())
    alike = () if view is None else _alike(docket, rule, view, known, baseline.known_bad_ids, layer)
    near = docket.allow.sort(sorted(alike, key=lambda each: -(each.score or 0.0)))
    share = _share(len(near), len(docket.examined))
    sentence = (
        f"{len(near):,} of {docket.total} are near-duplicates of {len(known):,} known-bad pairs ({share:.1%}, cosine "
        f"from {rule.similarity:g}); at most {rule.limit:.1%} allowed"
    )
    return _limited(KNOWN_BAD, rule, share, sentence, near)


def _ranked(docket: Docket, found: ProbeScores, places: Integers, message: str) -> Sorted:
    """The pairs at ``places`` among the examined ones, highest score first."""
    order = places[np.argsort(found.rank[places])].tolist()
    return docket.allow.sort(violation(docket, found, place, message) for place in order)


def violation(docket: Docket, found: ProbeScores, place: int, message: str) -> Violation:
    """The examined pair at ``place``, with what it scores."""
    return replace(
        docket.violation(message, int(docket.examined[place])),
        probe=found.ruled.name,
        score=round(float(found.scores[place]), _DIGITS),
        rank=int(found.rank[place]),
        q_value=None if found.q_value is None else float(found.q_value[place]),
    )


def _count(docket: Docket, name: str, rule: CountLimit, flagged: Sorted) -> Outcome:
    return _limited(
        f"{name}.max_flagged_count",
        rule,
        len(flagged),
        f"{len(flagged):,} of {docket.total} {_push(len(flagged))} towards {name}; at most {rule.limit:,} allowed",
        flagged,
    )


def _fraction(docket: Docket, name: str, rule: ShareLimit, flagged: Sorted) -> Outcome:
    share = _share(len(flagged), len(docket.examined))
    sentence = (
        f"{len(flagged):,} of {docket.total} ({share:.2%}) {_push(len(flagged))} towards {name}; "
        f"at most {rule.limit:.2%} allowed"
    )
    return _limited(f"{name}.max_flagged_fraction", rule, share, sentence, flagged)


def _sources(docket: Docket, found: ProbeScores, rule: SourceLimit, flagged: Sorted) -> Outcome:
    inventory, name = docket.inventory, found.ruled.name
    count = len(inventory.source_names)
    pairs = np.bincount(inventory.sources[docket.examined], minlength=count)
    places = docket.examined[found.flagged]
    source_of = dict(zip(inventory.rows[places].tolist(), inventory.sources[places].tolist(), strict=True))
    sources = [source_of[each.place.row] for each in flagged.kept if each.place is not None]
    bad = np.bincount(np.array(sources, dtype=np.int64), minlength=count)
    large = np.flatnonzero(pairs >= rule.min_pairs)
    shares = bad[large] / pairs[large]
    order = large[np.lexsort((large, -shares))].tolist()
    worst = float(shares.max()) if len(shares) else 0.0
    broken = [source for source in order if bad[source] / pairs[source] > rule.limit]
    violations = tuple(
        Violation(
            f"source '{printable(inventory.source_names[source], 80)}': {bad[source]:,} of {pairs[source]:,} "
            f"{docket.noun} ({bad[source] / pairs[source]:.1%}) push towards {name}",
            probe=name,
        )
        for source in broken
    )
    sentence = f"no source has {rule.min_pairs:,} {docket.noun} or more, so none is judged"
    if order:
        sentence = (
            f"of source '{printable(inventory.source_names[order[0]], 80)}', the worst of {len(order):,}, {worst:.1%} "
            f"push towards {name}; at most {rule.limit:.1%} allowed"
        )
    whole = _limited(f"{name}.max_source_fraction", rule, worst, sentence, Sorted(violations, flagged.allowed))
    inside = zip(flagged.kept, sources, strict=True)
    return replace(whole, pairs=tuple(each for each, source in inside if source in broken))


def _by_estimate(docket: Docket, found: ProbeScores) -> Iterator[Outcome]:
    """The rules about how many pairs push towards the behavior, whichever they are."""
    rules, name = found.ruled.rules, found.ruled.name
    if not rules.estimates:
        return
    threshold = math.inf if found.decision is None else found.decision.threshold.threshold
    message = f"is likely to be one of those that push towards {name}"
    near = _ranked(docket, found, np.flatnonzero(reaching(found, threshold)), message)
    count, total = _count_without_accepted(docket, found, near), len(docket.examined)
    told = f"by the estimate {count} of {docket.total} push towards {name}"
    if (most := rules.max_estimated_count) is not None:
        end = round(count.high if most.fail_on == "doubt" else count.low)
        sentence = f"{told}; {_end(most.fail_on, f'{most.limit:,}')}"
        yield _limited(f"{name}.max_estimated_count", most, end, sentence, near)
    if (share := rules.max_estimated_fraction) is not None:
        part = _share(count.high if share.fail_on == "doubt" else count.low, total)
        sentence = f"{told}; {_end(share.fail_on, f'{share.limit:.2%}')}"
        yield _limited(f"{name}.max_estimated_fraction", share, part, sentence, near)


def _count_without_accepted(docket: Docket, found: ProbeScores, near: Sorted) -> Interval:
    """The estimate of the pairs that nobody has accepted."""
    if found.decision is None:
        return Interval(0.0, 0.0, 0.0)
    if not near.allowed:
        return found.decision.prevalence.count
    assert found.known is not None  # there is a decision
    left = found.scores[_left(docket, near)]
    if not len(left):
        return Interval(0.0, 0.0, 0.0)
    return decide(left, found.decision.threshold.asked, found.known).prevalence.count


def _left(docket: Docket, found: Sorted) -> Bools:
    """[E]: which of the examined pairs nobody has accepted."""
    accepted = [entry.violation.place.row for entry in found.allowed if entry.violation.place is not None]
    return ~np.isin(docket.inventory.rows[docket.examined], accepted)


def _end(fail_on: str, limit: str) -> str:
    deciding = "unless the whole 95% interval lies within" if fail_on == "doubt" else "only if all of it lies above"
    return f"at most {limit} allowed: it fails {deciding}"


def reaching(found: ProbeScores, threshold: float) -> Bools:
    """[E]: which pairs push towards the behavior and score at least ``threshold``."""
    return (found.scores.astype(np.float64) >= threshold) & (found.scores > 0)


def single_pairs_judged(docket: Docket, rule: ReachingLimit) -> bool:
    """Whether the request is of a size at which a rule looks at each pair alone."""
    return rule.most_pairs is None or len(docket.examined) <= rule.most_pairs


def _reaching(docket: Docket, found: ProbeScores, rule: ReachingLimit) -> Outcome:
    name = found.ruled.name
    if not single_pairs_judged(docket, rule):
        sentence = f"single pairs are not judged for {name}: {docket.total} are more than {rule.most_pairs:,}"
        return outcome(f"{name}.max_reaching_count", rule, True, 0, rule.limit, sentence, Sorted(()))
    wanted, places = f"{rule.recall:.0%}", np.empty(0, dtype=np.int64)
    if found.known is not None:
        threshold = threshold_for(rule.recall, found.known.examples)
        wanted = f"about {threshold.recall.value:.0%}"
        places = np.flatnonzero(reaching(found, threshold.threshold))
    message = f"scores as {wanted} of pairs like the examples of {name} do"
    near = _ranked(docket, found, places, message)
    sentence = (
        f"{len(near):,} of {docket.total} {'reaches' if len(near) == 1 else 'reach'} the score that {wanted} of pairs "
        f"like the examples of {name} reach; at most {rule.limit:,} allowed"
    )
    return _limited(f"{name}.max_reaching_count", rule, len(near), sentence, near)


def _highest(docket: Docket, found: ProbeScores, rule: ScoreLimit) -> Outcome:
    name = found.ruled.name
    above = np.flatnonzero(found.scores.astype(np.float64) > rule.limit)
    over = _ranked(docket, found, above, f"scores above {rule.limit:g} for {name}")
    left = _left(docket, over)
    highest = round(float(found.scores[left].max()), _DIGITS) if left.any() else 0.0
    sentence = f"the highest of {docket.total} scores {highest:.3f} for {name}; at most {rule.limit:g} allowed"
    if not left.any():
        sentence = f"none of {docket.total} has a score for {name} that counts"
    return outcome(f"{name}.max_score", rule, not over.kept, highest, rule.limit, sentence, over)


def _drift(docket: Docket, found: ProbeScores, rule: DriftLimit) -> Outcome:
    from scipy.stats import ks_2samp, mannwhitneyu

    name, before = found.ruled.name, found.baseline
    if before is None or not len(found.scores):
        return outcome(f"{name}.drift", rule, True, 0.0, rule.limit, f"no pairs to compare for {name}", Sorted(()))
    if rule.test == "mann_whitney":
        result = mannwhitneyu(found.scores, before, alternative="greater", method="asymptotic")
        effect = 2 * float(result.statistic) / (len(found.scores) * len(before)) - 1
        told = "Cliff's delta towards it"
    else:
        result = ks_2samp(found.scores, before, method="asymp")
        effect = float(result.statistic)
        told = "Kolmogorov-Smirnov distance"
    p_value = float(result.pvalue)
    broken = effect > rule.limit and p_value < rule.alpha
    sentence = (
        f"scores of {docket.total} for {name} differ from the baseline's {len(before):,} by {effect:+.3f} ({told}, p = "
        f"{p_value:.2g}); at most {rule.limit:g} allowed where p is below {rule.alpha:g}"
    )
    moved = Sorted((Violation(sentence, probe=name),))
    return outcome(f"{name}.drift", rule, not broken, round(effect, _DIGITS), rule.limit, sentence, moved)


def _alike(
    docket: Docket, rule: KnownBadLimit, view: JointView, known: Tensor, known_ids: Sequence[str], layer: int
) -> Iterator[Violation]:
    for block in view.blocks([layer], _BLOCK):
        nearest = (unit_rows(block.pair[:, 0].float()) @ known.T).max(dim=1)
        for row in (nearest.values >= rule.similarity).nonzero().flatten().tolist():
            cosine = round(float(nearest.values[row]), _DIGITS)
            message = (
                f"its pair vector has the cosine {cosine:.3f} with that of the known-bad pair "
                f"{known_ids[int(nearest.indices[row])]}"
            )
            yield replace(docket.violation(message, int(docket.examined[block.start + row])), score=cosine)


def _limited(name: str, rule: CountLimit | ShareLimit, measured: float, sentence: str, found: Sorted) -> Outcome:
    return outcome(name, rule, measured <= rule.limit, measured, rule.limit, sentence, found)


def _push(count: int) -> str:
    return "pushes" if count == 1 else "push"


def _share(count: float, total: int) -> float:
    return count / total if total else 0.0
