"""What a baseline is: another way to rank the same pairs, with its cost measured."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.pairs import EncodedPair, Encoding, Pair, PairReader, RowFault
from trl_attribution.pairs.dataset_pass import encoded_pairs
from trl_attribution.utils.progress import OnProgress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PairSet:
    """The different pairs of a dataset in row order; the dataset is read again each time they are asked for.

    Args:
        reader: the dataset.
        only: leave out all other pairs; by default none.
    """

    def __init__(self, reader: PairReader, only: Container[str] | None = None) -> None:
        self.reader = reader
        self.only = only
        self.count = 0
        """How many there are; 0 until they have been gone through once."""

    def __iter__(self) -> Iterator[Pair]:
        """Each pair where it stands first.

        Raises:
            DataError: as ``PairReader`` raises.
        """
        seen: set[str] = set()
        for pair in self.reader:
            if pair.pair_id not in seen and (self.only is None or pair.pair_id in self.only):
                seen.add(pair.pair_id)
                yield pair
        self.count = len(seen)

    def encoded(self, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, name: str) -> Iterator[EncodedPair]:
        """The tokens of each, as the audit took them, for the baseline called ``name``.

        Raises:
            ModelError: one cannot be tokenized; an audit leaves such pairs out, so it was made with another tokenizer.
        """
        for pair, found in encoded_pairs(self, tokenizer, encoding):
            if isinstance(found, RowFault):
                raise ModelError(
                    f"baseline {name}: {pair.location} cannot be tokenized as the audit did ({found.detail}). Give the "
                    "model and the truncation of the audit."
                )
            yield found


@dataclass(frozen=True)
class Cost:
    """What a ranking took; loading a model is left out, as it is for an audit."""

    seconds: float
    flops: int | None = None
    """Of linear layers: two per parameter and token forward, four backward. None where that means nothing."""
    calls: int | None = None
    """Asked of a service; None where there is none."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"seconds": round(self.seconds, 3), "flops": self.flops, "calls": self.calls}


@dataclass(frozen=True)
class BaselineScores:
    """The scores of N pairs by one baseline: the higher, the earlier the pair is suspected.

    Raises:
        SettingsError: there are no pairs, or a score is no finite number: they cannot be ranked.
    """

    name: str
    scores: Mapping[str, float]
    """By ``pair_id``, in dataset order."""
    cost: Cost
    notes: tuple[str, ...] = ()
    """What has to be known to read them, such as how many texts were cut; plain sentences."""

    def __post_init__(self) -> None:
        if not self.scores:
            raise SettingsError(f"baseline {self.name}: there are no pairs to score")
        bad = [pair_id for pair_id, score in self.scores.items() if not math.isfinite(score)]
        if bad:
            raise SettingsError(
                f"baseline {self.name}: {len(bad)} of {len(self.scores)} scores are not finite, that of pair {bad[0]} "
                "first. A model in float16 may overflow: try --dtype float32."
            )


class RankingBaseline(Protocol):
    """A callable: pairs in, scores out."""

    @property
    def name(self) -> str:
        """As it is asked for: ``length``."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides its scores besides the pairs, as plain JSON values; holds no secret."""

    def __call__(self, pairs: PairSet, on_progress: OnProgress = silent) -> BaselineScores:
        """Score every pair.

        Raises:
            AttributionError: what it needs is not there.
        """


@dataclass
class Counted:
    """How many of how many, for a note."""

    what: str
    some: int = 0
    total: int = 0

    def add(self, hit: bool) -> None:
        """Count one."""
        self.total += 1
        self.some += hit

    def notes(self) -> tuple[str, ...]:
        """A sentence, unless none was hit."""
        return (f"{self.some:,} of {self.total:,} {self.what}",) if self.some else ()
