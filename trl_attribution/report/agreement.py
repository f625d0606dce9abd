"""What reviews say: how far two reviewers agree, and how much of the first k pairs holds up.

Axis letters: M pairs that both reviewed, B resamples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trl_attribution.errors import ManifestError
from trl_attribution.manifest.decisions import Action, ReviewDecision, ReviewDecisions
from trl_attribution.utils.text import counted

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ACTIONS: tuple[Action, ...] = ("keep", "filter", "flip")
_RESAMPLES = 2000


@dataclass(frozen=True)
class ReviewerAgreement:
    """Two reviewers on the pairs that both reviewed."""

    both: int
    """M."""
    only_first: int
    only_second: int
    same: int
    """Pairs with the same action."""
    kappa: float | None
    """Cohen's kappa over keep, filter and flip; None where it is undefined: nothing in common, or one action only."""
    interval: tuple[float, float] | None
    """95% percentile bootstrap over pairs; None as for ``kappa``."""
    kappa_changed: float | None
    """The same with filter and flip as one: is the pair harmful or not?"""
    table: Mapping[tuple[Action, Action], int]
    """How often the first chose one and the second the other action."""


@dataclass(frozen=True)
class PrecisionAtK:
    """How much of the first ``k`` pairs reviewers confirm."""

    k: int
    reviewed: int
    confirmed: int
    """Reviewed pairs that are to be filtered or flipped."""
    precision: float | None
    """None where nothing was reviewed, or nothing of the second half: its top says nothing about the rest."""
    low: float
    high: float
    """95% Wilson interval: 0 to 1 where the precision is unknown."""


def agreement(first: ReviewDecisions, second: ReviewDecisions) -> ReviewerAgreement:
    """How far two reviewers agree beyond chance.

    Raises:
        ManifestError: the files are about different datasets, or one holds two opinions on a pair.
    """
    if first.dataset_fingerprint != second.dataset_fingerprint:
        raise ManifestError("agreement: the two files are about different datasets")
    mine, theirs = _actions(first), _actions(second)
    shared = [(mine[pair_id], theirs[pair_id]) for pair_id in mine if pair_id in theirs]
    codes = [(ACTIONS.index(one), ACTIONS.index(other)) for one, other in shared]
    return ReviewerAgreement(
        both=len(shared),
        only_first=len(mine) - len(shared),
        only_second=len(theirs) - len(shared),
        same=sum(one == other for one, other in shared),
        kappa=_kappa(codes),
        interval=_interval(codes),
        kappa_changed=_kappa([(min(one, 1), min(other, 1)) for one, other in codes]),
        table=Counter(shared),
    )


def precision_at_k(
    ranked: Sequence[str], review: ReviewDecisions, cuts: Sequence[int] | None = None
) -> list[PrecisionAtK]:
    """How much of the first k of ``ranked`` the review confirms, for each k of ``cuts``.

    The interval takes the reviewed pairs among the first k for a random sample of them. Where several reviewers decided
    about a pair, it is confirmed if most would change it.

    Args:
        ranked: pair ids, most suspicious first.
        review: decisions about some of them.
        cuts: by default 10, 20, 50, 100, ... up to all.
    """
    confirmed = verdicts(review.decisions)
    known = [(place, confirmed[pair_id]) for place, pair_id in enumerate(ranked) if pair_id in confirmed]
    return [_at(k, known) for k in (default_cuts(len(ranked)) if cuts is None else cuts)]


def default_cuts(pairs: int) -> list[int]:
    """10, 20, 50, 100, ... below ``pairs``, then ``pairs``.

    >>> default_cuts(80)
    [10, 20, 50, 80]
    """
    cuts = [step * 10**power for power in range(1, 12) for step in (1, 2, 5)]
    return [*(k for k in cuts if k < pairs), *([pairs] if pairs else [])]


def wilson(hits: int, tries: int) -> tuple[float, float]:
    """95% Wilson score interval of a share; 0 to 1 without a try.

    >>> tuple(round(bound, 4) for bound in wilson(8, 10))
    (0.4902, 0.9433)
    """
    from scipy.stats import binomtest

    if tries == 0:
        return 0.0, 1.0
    found = binomtest(hits, tries).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _at(k: int, known: Sequence[tuple[int, bool]]) -> PrecisionAtK:
    within = [confirmed for place, confirmed in known if place < k]
    if not any(k <= 2 * place + 1 and place < k for place, _ in known):
        return PrecisionAtK(k, len(within), sum(within), None, 0.0, 1.0)
    return PrecisionAtK(k, len(within), sum(within), sum(within) / len(within), *wilson(sum(within), len(within)))


def verdicts(decisions: Iterable[ReviewDecision]) -> dict[str, bool]:
    """By pair id, whether most reviewers would change the pair."""
    return {pair_id: _confirmed(actions) for pair_id, actions in _by_pair(decisions).items()}


def _by_pair(decisions: Iterable[ReviewDecision]) -> Mapping[str, list[Action]]:
    found: dict[str, list[Action]] = {}
    for decision in decisions:
        found.setdefault(decision.pair_id, []).append(decision.action)
    return found


def _confirmed(actions: Sequence[Action]) -> bool:
    return 2 * sum(action != "keep" for action in actions) > len(actions)


def _actions(review: ReviewDecisions) -> dict[str, Action]:
    found = _by_pair(review.decisions)
    torn = [pair_id for pair_id, actions in found.items() if len(actions) > 1]
    if torn:
        raise ManifestError(
            f"agreement: a file holds several reviewers' decisions about {counted(len(torn), 'pair')}, such as "
            f"{torn[0]}. Give one file for each reviewer."
        )
    return {pair_id: actions[0] for pair_id, actions in found.items()}


def _kappa(codes: Sequence[tuple[int, int]]) -> float | None:
    """Cohen's kappa; None where chance alone explains everything."""
    found = float(_kappas(_table(codes)[None])[0]) if codes else math.nan
    return None if math.isnan(found) else found


def _table(codes: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """The share of pairs ``[3, 3]`` of which the first said one and the second the other."""
    import numpy as np

    size = len(ACTIONS)
    counts = np.bincount([size * one + other for one, other in codes], minlength=size**2)
    return np.asarray(counts.reshape(size, size) / len(codes))


def _interval(codes: Sequence[tuple[int, int]]) -> tuple[float, float] | None:
    """Percentile bootstrap over pairs; resamples in which kappa is undefined are left out."""
    import numpy as np

    if _kappa(codes) is None:
        return None
    shares = _table(codes)
    drawn_B = np.random.default_rng(0).multinomial(len(codes), shares.ravel(), size=_RESAMPLES)
    low, high = np.nanquantile(_kappas(drawn_B.reshape(-1, *shares.shape) / len(codes)), [0.025, 0.975])
    return float(low), float(high)


def _kappas(tables_B: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Kappa [B] of tables of shares [B, 3, 3]; NaN where it is undefined."""
    import numpy as np

    observed = np.trace(tables_B, axis1=1, axis2=2)
    expected = (tables_B.sum(axis=1) * tables_B.sum(axis=2)).sum(axis=1)
    by_chance = np.where(expected < 1 - 1e-12, expected, np.nan)
    return np.asarray((observed - by_chance) / (1 - by_chance))
