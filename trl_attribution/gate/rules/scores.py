"""Rules about the scores of the examined pairs, and about their likeness to known-bad pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from trl_attribution.gate.baseline.baseline import Baseline
from trl_attribution.gate.policy.rules import (
    CountLimit,
    DriftLimit,
    KnownBadLimit,
    ScoreLimit,
    ShareLimit,
    SourceLimit,
)
from trl_attribution.gate.rows.inventory import Integers, Inventory
from trl_attribution.gate.rules.drafts import AllowList, Draft, Offense, Sorted
from trl_attribution.gate.rules.scored import ProbeScores
from trl_attribution.gate.vectors.supply import StackedView
from trl_attribution.scoring.targets import unit_rows
from trl_attribution.utils.text import printable

KNOWN_BAD = "known-bad"
_DIGITS = 7
_BLOCK = 4096


@dataclass(frozen=True)
class Docket:
    """What the rules judge: the E examined pairs, and how to speak of them."""

    inventory: Inventory
    examined: Integers
    """[E], positions, rising."""
    allow: AllowList
    noun: str
    """``pairs``, or ``new pairs`` where only those are examined."""

    @property
    def total(self) -> str:
        """Such as "500 new pairs"."""
        return f"{len(self.examined):,} {self.noun}"


def probe_drafts(docket: Docket, found: ProbeScores) -> Iterator[Draft]:
    """The results of one probe's rules, in the policy's order."""
    rules, name = found.ruled.rules, found.ruled.name
    if rules.flags:
        flagged = docket.allow.sort(_flagged(docket, found))
        if rules.max_flagged_count is not None:
            yield _count(docket, name, rules.max_flagged_count, flagged)
        if rules.max_flagged_fraction is not None:
            yield _fraction(docket, name, rules.max_flagged_fraction, flagged)
        if rules.max_source_fraction is not None:
            yield _sources(docket, name, rules.max_source_fraction, flagged)
    if rules.max_score is not None:
        yield _highest(docket, found, rules.max_score)
    if rules.drift is not None:
        yield _drift(docket, found, rules.drift)


def known_bad_draft(
    docket: Docket, rule: KnownBadLimit, view: StackedView | None, baseline: Baseline, layer: int
) -> Draft:
    """How many examined pairs are near-duplicates of known-bad ones; ``view`` holds the examined pairs.

    Raises:
        SettingsError: the baseline has no known-bad pairs at ``layer``.
    """
    known = unit_rows(baseline.known_bad_at(layer).float())
    alike = () if view is None else _alike(docket, rule, view, known, baseline.known_bad_ids, layer)
    near = docket.allow.sort(sorted(alike, key=lambda each: (-(each.score or 0.0), each.position)))
    share = _share(len(near), len(docket.examined))
    sentence = (
        f"{len(near):,} of {docket.total} are near-duplicates of {len(known):,} known-bad pairs ({share:.1%}, cosine "
        f"from {rule.similarity:g}); at most {rule.limit:.1%} allowed"
    )
    return _draft(KNOWN_BAD, rule, share, sentence, near)


def _flagged(docket: Docket, found: ProbeScores) -> list[Offense]:
    places = np.flatnonzero(found.flagged)
    message = f"training on this pair pushes towards {found.ruled.name}"
    return [_offense(docket, found, place, message) for place in places[np.argsort(found.rank[places])].tolist()]


def _offense(docket: Docket, found: ProbeScores, place: int, message: str) -> Offense:
    return Offense(
        message,
        position=int(docket.examined[place]),
        probe=found.ruled.name,
        score=round(float(found.scores[place]), _DIGITS),
        rank=int(found.rank[place]),
        q_value=None if found.q_value is None else float(found.q_value[place]),
    )


def _count(docket: Docket, name: str, rule: CountLimit, flagged: Sorted) -> Draft:
    return _draft(
        f"{name}.max_flagged_count",
        rule,
        len(flagged),
        f"{len(flagged):,} of {docket.total} {_push(len(flagged))} towards {name}; at most {rule.limit:,} allowed",
        flagged,
    )


def _fraction(docket: Docket, name: str, rule: ShareLimit, flagged: Sorted) -> Draft:
    share = _share(len(flagged), len(docket.examined))
    sentence = (
        f"{len(flagged):,} of {docket.total} ({share:.2%}) {_push(len(flagged))} towards {name}; "
        f"at most {rule.limit:.2%} allowed"
    )
    return _draft(f"{name}.max_flagged_fraction", rule, share, sentence, flagged)


def _sources(docket: Docket, name: str, rule: SourceLimit, flagged: Sorted) -> Draft:
    inventory = docket.inventory
    count = len(inventory.source_names)
    pairs = np.bincount(inventory.sources[docket.examined], minlength=count)
    positions = [each.position for each in flagged.kept if each.position is not None]
    bad = np.bincount(inventory.sources[np.array(positions, dtype=np.int64)], minlength=count)
    large = np.flatnonzero(pairs >= rule.min_pairs)
    shares = bad[large] / pairs[large]
    order = large[np.lexsort((large, -shares))].tolist()
    worst = float(shares.max()) if len(shares) else 0.0
    broken = [source for source in order if bad[source] / pairs[source] > rule.limit]
    offenses = tuple(
        Offense(
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
    draft = _draft(f"{name}.max_source_fraction", rule, worst, sentence, Sorted(offenses, flagged.allowed))
    inside = np.isin(inventory.sources, broken)
    return replace(draft, pairs=tuple(each for each in flagged.kept if inside[each.position]))


def _highest(docket: Docket, found: ProbeScores, rule: ScoreLimit) -> Draft:
    name = found.ruled.name
    above = np.flatnonzero(found.scores.astype(np.float64) > rule.limit)
    message = f"scores above {rule.limit:g} for {name}"
    over = docket.allow.sort(
        _offense(docket, found, place, message) for place in above[np.argsort(found.rank[above])].tolist()
    )
    accepted = {offense.position for offense, _ in over.allowed}
    left = ~np.isin(docket.examined, [position for position in accepted if position is not None])
    highest = round(float(found.scores[left].max()), _DIGITS) if left.any() else 0.0
    sentence = f"the highest of {docket.total} scores {highest:.3f} for {name}; at most {rule.limit:g} allowed"
    if not left.any():
        sentence = f"none of {docket.total} has a score for {name} that counts"
    name_of_rule, kept = f"{name}.max_score", over.kept
    return Draft(name_of_rule, rule.severity, not kept, highest, rule.limit, sentence, kept, kept, over.allowed)


def _drift(docket: Docket, found: ProbeScores, rule: DriftLimit) -> Draft:
    from scipy.stats import ks_2samp, mannwhitneyu

    name, before = found.ruled.name, found.baseline
    if before is None or not len(found.scores):
        return Draft(f"{name}.drift", rule.severity, True, 0.0, rule.limit, f"no pairs to compare for {name}")
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
    offenses = (Offense(sentence, probe=name),) if broken else ()
    return Draft(f"{name}.drift", rule.severity, not broken, round(effect, _DIGITS), rule.limit, sentence, offenses)


def _alike(
    docket: Docket, rule: KnownBadLimit, view: StackedView, known: Tensor, known_ids: Sequence[str], layer: int
) -> Iterator[Offense]:
    for block in view.blocks([layer], _BLOCK):
        nearest = (unit_rows(block.pair[:, 0].float()) @ known.T).max(dim=1)
        for row in (nearest.values >= rule.similarity).nonzero().flatten().tolist():
            cosine = round(float(nearest.values[row]), _DIGITS)
            yield Offense(
                f"its pair vector has the cosine {cosine:.3f} with that of the known-bad pair "
                f"{known_ids[int(nearest.indices[row])]}",
                position=int(docket.examined[view.order[block.start + row]]),
                score=cosine,
            )


def _draft(name: str, rule: CountLimit | ShareLimit, measured: float, sentence: str, found: Sorted) -> Draft:
    """A rule that is kept has no violations: what it counts is within the limit."""
    passed = measured <= rule.limit
    kept = () if passed else found.kept
    return Draft(name, rule.severity, passed, measured, rule.limit, sentence, kept, kept, found.allowed)


def _push(count: int) -> str:
    return "pushes" if count == 1 else "push"


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0
