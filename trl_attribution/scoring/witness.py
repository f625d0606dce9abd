"""A second witness beside the scores: which pairs it is asked about, and where the two agree.

Axis letters: N pairs, A pairs that the witness was asked about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from trl_attribution.scoring.flags import Flags
from trl_attribution.scoring.protocols import ProbeLike
from trl_attribution.utils.arrays import Integers, Reals

LEAST_ASKED = 50
"""Pairs that the witness is asked about at least, those that rank highest."""
TRUSTED = 0.75
"""Share of a behavior's own pairs that its description has to move the right way, for the witness to be heard."""
_NAMED = 20


@dataclass(frozen=True)
class OwnPairs:
    """Whether M0 understands a description: what it does to the behavior's own pairs, one a prompt."""

    pairs: int
    towards: int
    """Those whose undesired response it makes likelier than the desired one."""

    @classmethod
    def of(cls, probe: ProbeLike) -> OwnPairs | None:
        """What was found when ``probe`` was built; None where nothing was looked at."""
        found = probe.built.get("description_check")
        if not isinstance(found, Mapping):
            return None
        counts = [found.get(name) for name in ("pairs", "towards")]
        return cls(*counts) if all(isinstance(one, int) for one in counts) else None  # type: ignore[arg-type]

    @property
    def trusted(self) -> bool:
        """Whether most of them are moved the right way."""
        return self.pairs > 0 and self.towards >= TRUSTED * self.pairs

    def sentence(self) -> str:
        """What a person has to know of it, after the word for the description."""
        seen = f"moves M0 the right way on {self.towards:,} of {self.pairs:,} of the behavior's own pairs"
        return seen if self.trusted else f"{seen}, fewer than {TRUSTED:.0%}: M0 does not take it as it is meant"


def places_near(scores: Reals, threshold: float | None) -> Integers:
    """Of N ``scores`` the places at or above ``threshold`` and of half as many that follow, 50 at least; in order."""
    above = 0 if threshold is None else int((scores.astype(np.float64) >= threshold).sum())
    count = min(len(scores), max(LEAST_ASKED, above + above // 2))
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def threshold_of(flags: Flags, index: int) -> float | None:
    """The score that pairs were flagged from by the column at ``index``; None where no pair was and no rule says it."""
    probe = flags.columns[index].probe
    if probe in flags.decisions:
        return flags.decisions[probe].threshold.threshold
    if flags.rule.threshold is not None:
        return flags.rule.threshold
    mine = flags.score[flags.column_index == index]
    return float(mine.min()) if len(mine) else None


@dataclass(frozen=True)
class Disagreement:
    """A flagged pair that the description does not move towards its chosen response."""

    pair_id: str
    row: int
    score: float
    likelihood: float


@dataclass(frozen=True)
class Agreement:
    """What two witnesses say of one behavior."""

    probe: str
    description: str
    way: str
    """Where the description stood in the prompts."""
    pairs: int
    """All N."""
    asked: int
    """A."""
    left_out: Mapping[str, int]
    """Pairs without an answer, by reason."""
    flagged: int
    """Pairs that this probe flags."""
    unheard: int
    """Those of them without an answer."""
    agree: int
    """Flagged pairs with a likelihood score above 0."""
    disagree: tuple[Disagreement, ...]
    """The others that have an answer, the most negative first."""
    below: int
    """Pairs with an answer that are not flagged."""
    below_high: int
    """Those of them whose likelihood is at least that of the median flagged pair; 0 where none is flagged."""
    own: OwnPairs | None

    def sentence(self) -> str:
        """What a person reads; texts of the probe are not made printable here."""
        heard = self.flagged - self.unheard
        parts = [f"{self.agree:,} of {heard:,} flagged pairs agree (likelihood above 0)"] if heard else []
        if self.disagree:
            rows = ", ".join(str(one.row) for one in islice(self.disagree, 5))
            more = " ..." if len(self.disagree) > 5 else ""
            parts.append(f"{len(self.disagree):,} do not, read these first (rows {rows}{more})")
        if self.unheard:
            parts.append(f"{self.unheard:,} flagged pairs have no answer")
        if heard:
            parts.append(
                f"of {self.below:,} asked about below the threshold, {self.below_high:,} lie as high as the median "
                "flagged one"
            )
        parts.append(f"asked about {self.asked:,} of {self.pairs:,} pairs")
        if self.left_out:
            parts.append("left out: " + ", ".join(f"{reason} {count:,}" for reason, count in self.left_out.items()))
        return "; ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """Plain values; of disagreements the first 20."""
        shown = [asdict(one) for one in islice(self.disagree, _NAMED)]
        return {**asdict(self), "disagree": len(self.disagree), "first_disagreements": shown}


@dataclass(frozen=True)
class Heard:
    """Answers [A] about pairs under one probe."""

    pair_ids: tuple[str, ...]
    rows: Integers
    likelihood: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.pair_ids)


def agreement(heard: Heard, flagged: Mapping[str, float], **stated: Any) -> Agreement:
    """Compare ``heard`` with the scores of the pairs that the probe flags, by id; ``stated`` are the other fields."""
    inside = np.array([pair_id in flagged for pair_id in heard.pair_ids], dtype=bool)
    below = heard.likelihood[~inside]
    median = float(np.median(heard.likelihood[inside])) if inside.any() else None
    return Agreement(
        flagged=len(flagged),
        unheard=len(flagged) - int(inside.sum()),
        agree=int((heard.likelihood[inside] > 0).sum()),
        disagree=tuple(sorted(_against(heard, flagged), key=lambda one: (one.likelihood, one.row))),
        below=len(below),
        below_high=0 if median is None else int((below >= median).sum()),
        **stated,
    )


def _against(heard: Heard, flagged: Mapping[str, float]) -> Iterator[Disagreement]:
    for pair_id, row, likelihood in zip(heard.pair_ids, heard.rows, heard.likelihood, strict=True):
        if pair_id in flagged and likelihood <= 0:
            yield Disagreement(pair_id, int(row), flagged[pair_id], float(likelihood))
