"""One pass over a dataset before anything is computed: every row checked, every token counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import compress, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from trl_attribution.errors import DataError
from trl_attribution.pairs import (
    EncodedPair,
    Encoding,
    Pair,
    PairReader,
    RowFault,
    SkippedRow,
    Survey,
    encode_pairs,
    survey,
)
from trl_attribution.utils.text import counted

Choose = Callable[[Sequence[Pair]], Sequence[bool]]
"""Of the next pairs of the dataset, which to tokenize."""

ENCODE_BATCH = 256
_SAMPLE = 64
_SHOWN = 10
_REMEDIES = {
    "prompt_too_long": "DPOTrainer drops rows whose prompt alone fills max_length. Raise --max-length or mend them.",
}
"""By reason, what more than the fault's own sentence there is to say."""


@dataclass(frozen=True)
class PairIndex:
    """The N different pairs to audit, in dataset order."""

    pair_ids: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    """[N], each pair's first row in the dataset."""
    sources: pa.DictionaryArray
    """[N], the source of that row."""

    def __len__(self) -> int:
        return len(self.pair_ids)


@dataclass(frozen=True)
class Census:
    """What a dataset holds, and what of it can be audited."""

    survey: Survey
    index: PairIndex
    skipped: list[SkippedRow]
    """Rows left out, by the reader or because no tokens can be made of them; with the reason each."""
    tokens: int
    """Tokens of all N pairs, each prompt counted once per pair."""
    longest: int
    """Tokens of the longest sequence, prompt and response."""
    longest_pair: EncodedPair | None
    """The pair with that sequence; None where nothing was tokenized."""
    truncated: int
    """Pairs with a sequence of ``max_length`` tokens: those that were cut, and the few that fit exactly."""
    sample: tuple[EncodedPair, ...]
    """Up to 64 pairs drawn evenly (seeded), for a trial run."""

    @property
    def skip_reasons(self) -> dict[str, int]:
        """How many rows were left out for each reason."""
        return dict(Counter(row.reason for row in self.skipped).most_common())


def take_census(
    reader: PairReader,
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding,
    on_progress: Callable[[int], None] | None = None,
    on_encoded: Callable[[EncodedPair], None] | None = None,
    choose: Choose | None = None,
) -> Census:
    """Read and tokenize the whole dataset once; memory holds ids and rows, never texts.

    Args:
        reader: the dataset.
        tokenizer: M0's.
        encoding: truncation.
        on_progress: called with the number of rows read so far.
        on_encoded: called with the tokens of each different pair, in the order of the index.
        choose: tokenizes only some of the pairs; all but the survey is of these alone then, and may be of none.

    Raises:
        DataError: bad rows with ``on_bad_row="error"`` (the first ten are listed), or no pair is left to audit.
        ModelError: the tokenizer lacks a chat template or an EOS token that the pairs need.
    """
    counter = _Counter(reader, tokenizer, encoding, on_progress or (lambda _done: None), on_encoded, choose)
    found = survey(counter)  # type: ignore[arg-type]  # anything that iterates as a PairReader does
    counter.refuse_faults()
    return Census(
        survey=found,
        index=counter.index(),
        skipped=[*found.skipped, *counter.faulty],
        tokens=counter.tokens,
        longest=counter.longest,
        longest_pair=counter.longest_pair,
        truncated=counter.truncated,
        sample=tuple(counter.sample),
    )


def dataset_info(reader: PairReader, census: Census, pairs: int) -> dict[str, Any]:
    """The dataset as ``audit.json`` describes it, ``pairs`` of its pairs audited."""
    return {
        "name": reader.source.name,
        "format": reader.format,
        "fingerprint": census.survey.fingerprint,
        "rows": census.survey.pairs + len(census.survey.skipped),
        "pairs": pairs,
        "duplicate_rows": census.survey.pairs - census.survey.unique,
        "most_repeated": [asdict(duplicate) for duplicate in census.survey.duplicates],
        "contradictions": census.survey.contradictions,
        "skipped": census.skip_reasons,
        "truncated_pairs": census.truncated,
        "tokens": census.tokens,
        "sources": census.survey.sources,
    }


def encoded_pairs(
    pairs: Iterable[Pair], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> Iterator[tuple[Pair, EncodedPair | RowFault]]:
    """Each pair with its tokens, or the fault that keeps it out; tokenized in batches, in order."""
    remaining = iter(pairs)
    while batch := list(islice(remaining, ENCODE_BATCH)):
        yield from zip(batch, encode_pairs(batch, tokenizer, encoding), strict=True)


@dataclass
class _Counter:
    """Passes a reader's pairs on while it encodes and counts them."""

    reader: PairReader
    tokenizer: PreTrainedTokenizerBase
    encoding: Encoding
    on_progress: Callable[[int], None]
    on_encoded: Callable[[EncodedPair], None] | None
    choose: Choose | None
    ids: dict[str, None] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    faulty: list[SkippedRow] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    tokens: int = 0
    longest: int = 0
    longest_pair: EncodedPair | None = None
    partial: bool = False
    truncated: int = 0
    sample: list[EncodedPair] = field(default_factory=list)
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def skipped(self) -> list[SkippedRow]:
        return self.reader.skipped

    def __iter__(self) -> Iterator[Pair]:
        seen = 0
        remaining = iter(self.reader)
        while batch := list(islice(remaining, ENCODE_BATCH)):
            chosen = batch if self.choose is None else list(compress(batch, self.choose(batch)))
            self.partial |= len(chosen) < len(batch)
            for pair, encoded in encoded_pairs(chosen, self.tokenizer, self.encoding):
                self._take(pair, encoded)
            yield from batch
            seen += len(batch)
            self.on_progress(seen)

    def _take(self, pair: Pair, encoded: EncodedPair | RowFault) -> None:
        if isinstance(encoded, RowFault):
            self.faulty.append(SkippedRow(pair.row, pair.location, encoded.reason))
            if len(self.faults) < _SHOWN:
                self.faults.append(f"  {pair.location}: column '{encoded.field}' {encoded.detail}")
        elif pair.pair_id not in self.ids:
            self._count(pair, encoded)

    def _count(self, pair: Pair, encoded: EncodedPair) -> None:
        self.ids[pair.pair_id] = None
        self.rows.append(pair.row)
        self.sources.append(pair.source)
        sides = (encoded.chosen, encoded.rejected)
        responses = sum(len(side.response_ids) for side in sides)
        longest = max(len(side.prompt_ids) + len(side.response_ids) for side in sides)
        if longest > self.longest:
            self.longest_pair = encoded
        self.tokens += len(encoded.chosen.prompt_ids) + responses
        self.longest = max(self.longest, longest)
        self.truncated += longest == self.encoding.max_length
        self._offer(encoded)
        if self.on_encoded is not None:
            self.on_encoded(encoded)

    def _offer(self, encoded: EncodedPair) -> None:
        """Reservoir sampling: every pair has the same chance to be in the sample, whatever N turns out to be."""
        if len(self.sample) < _SAMPLE:
            self.sample.append(encoded)
        elif (place := self.draw.randrange(len(self.ids))) < _SAMPLE:
            self.sample[place] = encoded

    def refuse_faults(self) -> None:
        """Bad rows are an error unless the reader was asked to skip them."""
        if not self.ids and not self.partial:
            head = f"{self.reader.source.name}: no pair can be encoded."
            raise DataError("\n".join([head, *self.faults, *self._remedies()]))
        if self.faulty and self.reader.reading.on_bad_row == "error":
            more = [f"  and {len(self.faulty) - _SHOWN} more"] if len(self.faulty) > _SHOWN else []
            head = f"{self.reader.source.name}: {counted(len(self.faulty), 'row')} cannot be encoded."
            skip = "Rows can be left out with --on-bad-row skip (Reading(on_bad_row='skip'))."
            raise DataError("\n".join([head, *self.faults, *more, *self._remedies(), skip]))

    def _remedies(self) -> list[str]:
        return [text for reason, text in _REMEDIES.items() if any(row.reason == reason for row in self.faulty)]

    def index(self) -> PairIndex:
        return PairIndex(
            tuple(self.ids),
            np.array(self.rows, dtype=np.int64),
            pa.array(self.sources, pa.string()).dictionary_encode(),
        )
