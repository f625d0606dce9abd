"""One pass over a dataset before anything is computed: every row checked, every token counted."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trl_attribution.errors import DataError
from trl_attribution.pairs.encoded import EncodedPair
from trl_attribution.pairs.encoding import Encoder, Encoding, encode_pairs, tokenizer_of
from trl_attribution.pairs.faults import RowFault, SkippedRow
from trl_attribution.pairs.formats import Pair
from trl_attribution.pairs.identity import FingerprintBuilder
from trl_attribution.pairs.reader import PairReader
from trl_attribution.store.ids import IdIndex, Ids, PairIds, as_ids, hex_ids, parse_ids
from trl_attribution.utils.arrays import Integers
from trl_attribution.utils.chunks import in_chunks
from trl_attribution.utils.paths import is_there
from trl_attribution.utils.text import MOST_SHOWN, counted, some_lines, tally

Choose = Callable[[Sequence[Pair]], Sequence[bool]]
"""Of the next pairs of the dataset, which to tokenize."""

ENCODE_BATCH = 256
_SAMPLE = 64
_ALIKE = {
    "template": "the chat template writes both responses alike. Put what they differ in (reasoning, tool calls) into "
    "their content, or use a template that writes it",
    "tokenizer": "the tokenizer reads both responses alike. Check that the tokenizer knows the dataset's characters",
    "truncation": "both responses are cut before they differ. Raise --max-length",
}


def alike_text(alike: Mapping[str, int]) -> str:
    """How many pairs have two responses of the same tokens and why, for people; empty where none has."""
    return f"{sum(alike.values()):,} have two responses of the same tokens ({tally(alike)})" if alike else ""


@dataclass(frozen=True)
class Duplicate:
    """A pair that stands in several rows."""

    pair_id: str
    count: int
    first_row: int


@dataclass(frozen=True)
class Survey:
    """What one pass over a dataset shows, before any model is loaded."""

    pairs: int
    """Examples, repeats counted: rows that are pairs, or groups of rows."""
    rows: int
    """Rows that they are made of."""
    unique: int
    """Different pairs among them."""
    duplicates: list[Duplicate]
    """The most repeated pairs, at most ten."""
    contradictions: int
    """Different pairs that also stand in the dataset the other way round."""
    sources: dict[str, int]
    """Rows of each source."""
    skipped: list[SkippedRow]
    """Rows left out."""
    fingerprint: str
    """The dataset's fingerprint."""


@dataclass
class Census:
    """What every pass over a dataset keeps of each pair that it meets, repeats too: 36 bytes.

    Axis letters: R pairs in the order of the dataset, repeats too.
    """

    _ids: bytearray = field(default_factory=bytearray)
    _flipped: bytearray = field(default_factory=bytearray)
    _rows: bytearray = field(default_factory=bytearray)
    _sources: Counter[str] = field(default_factory=Counter)
    fingerprint: FingerprintBuilder = field(default_factory=FingerprintBuilder)
    """The dataset's."""
    _count: int = 0

    def add(self, pair: Pair) -> None:
        """Take the next pair of the dataset."""
        self._count += len(pair.all_rows)
        self._ids += bytes.fromhex(pair.pair_id)
        self._flipped += bytes.fromhex(pair.flipped_id)
        self._rows += pair.row.to_bytes(4, "little")
        self._sources[pair.source] += 1
        self.fingerprint.add(pair.pair_id)

    def __len__(self) -> int:
        return len(self._rows) // 4

    @property
    def ids(self) -> Ids:
        """[R]; once it was asked for, nothing more can be added."""
        return as_ids(self._ids)

    @property
    def flipped(self) -> Ids:
        """[R], the id of each pair the other way round."""
        return as_ids(self._flipped)

    @property
    def rows(self) -> npt.NDArray[np.uint32]:
        """[R], the row of each."""
        return np.frombuffer(self._rows, dtype="<u4")

    def survey(self, skipped: Sequence[SkippedRow]) -> Survey:
        """All that was taken, in numbers; ``skipped`` rows were left out."""
        unique, first, counts = np.unique(self.ids, return_index=True, return_counts=True)
        rows = self.rows
        return Survey(
            pairs=len(self),
            rows=self._count,
            unique=len(unique),
            duplicates=[
                Duplicate(hex_ids(unique[[place]])[0], int(counts[place]), int(rows[first[place]]))
                for place in np.lexsort((first, -counts))[:MOST_SHOWN]
                if counts[place] > 1
            ],
            contradictions=len(np.unique(_places_in(unique, self.flipped))) // 2,
            sources=dict(self._sources.most_common()),
            skipped=list(skipped),
            fingerprint=self.fingerprint.hexdigest(),
        )


@dataclass(frozen=True)
class PairIndex:
    """The N different pairs to audit, in dataset order."""

    pair_ids: Sequence[str]
    rows: npt.NDArray[np.int64]
    """[N], each pair's first row in the dataset."""
    sources: pa.DictionaryArray
    """[N], the source of that row."""

    def __len__(self) -> int:
        return len(self.pair_ids)


@dataclass(frozen=True)
class DatasetPass:
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
    highest_token: int
    """The highest token id."""
    truncated: int
    """Pairs with a sequence of ``max_length`` tokens: those that were cut, and the few that fit exactly."""
    alike: dict[str, int]
    """Pairs whose two responses come to the same tokens, so that their vectors are zero: how many for each cause
    (:attr:`EncodedPair.alike`)."""
    sample: tuple[EncodedPair, ...]
    """Up to 64 pairs drawn evenly (seeded), for a trial run."""

    @property
    def skip_reasons(self) -> dict[str, int]:
        """How many rows were left out for each reason."""
        return dict(Counter(row.reason for row in self.skipped).most_common())


def pass_over(
    reader: PairReader,
    tokenizer: Encoder,
    encoding: Encoding,
    on_progress: Callable[[int], None] | None = None,
    on_encoded: Callable[[EncodedPair], None] | None = None,
    on_pair: Callable[[Pair], None] | None = None,
    choose: Choose | None = None,
) -> DatasetPass:
    """Read and tokenize the whole dataset once; memory holds ids and rows, never texts.

    Args:
        reader: the dataset; from here on it reads responses with the tokenizer's end of text in mind.
        tokenizer: M0's, or its processor where it has one.
        encoding: truncation.
        on_progress: called with the number of rows read so far.
        on_encoded: called with the tokens of each different pair, in the order of the index.
        on_pair: called with each pair that has tokens, repeats too, in the order of the dataset.
        choose: tokenizes only some of the pairs; all but the survey is of these alone then, and may be of none.

    Raises:
        DataError: bad rows with ``on_bad_row="error"`` (the first ten are listed), no pair is left to audit, or most
            pairs have two responses of the same tokens.
        ModelError: the tokenizer lacks a chat template or an EOS token that the pairs need.
    """
    reader.ending_with(tokenizer_of(tokenizer).eos_token)
    counter = _Counter(reader, tokenizer, encoding, on_progress or (lambda _done: None), on_encoded, on_pair, choose)
    counter.read()
    counter.refuse_faults()
    return DatasetPass(
        survey=counter.census.survey(reader.skipped),
        index=counter.index(),
        skipped=[*reader.skipped, *counter.faulty],
        tokens=counter.tokens,
        longest=counter.longest,
        longest_pair=counter.longest_pair,
        highest_token=counter.highest_token,
        truncated=counter.truncated,
        alike=dict(counter.alike.most_common()),
        sample=tuple(counter.sample),
    )


def dataset_info(reader: PairReader, data: DatasetPass, pairs: int) -> dict[str, Any]:
    """The dataset as ``audit.json`` describes it, ``pairs`` of its pairs audited."""
    path = Path(reader.source.name)
    return {
        "name": reader.source.name,
        "path": str(path.absolute()) if is_there(path) else None,
        "format": reader.format,
        "eos_token": reader.reading.eos_token,
        "fingerprint": data.survey.fingerprint,
        "rows": data.survey.rows + len(data.survey.skipped),
        "pairs": pairs,
        "duplicate_rows": data.survey.pairs - data.survey.unique,
        "most_repeated": [asdict(duplicate) for duplicate in data.survey.duplicates],
        "contradictions": data.survey.contradictions,
        "skipped": data.skip_reasons,
        "truncated_pairs": data.truncated,
        "alike": data.alike,
        "tokens": data.tokens,
        "sources": data.survey.sources,
    }


def encoded_pairs(
    pairs: Iterable[Pair], tokenizer: Encoder, encoding: Encoding
) -> Iterator[tuple[Pair, EncodedPair | RowFault]]:
    """Each pair with its tokens, or the fault that keeps it out; tokenized in batches, in order."""
    for batch in in_chunks(pairs, ENCODE_BATCH):
        yield from zip(batch, encode_pairs(batch, tokenizer, encoding), strict=True)


@dataclass
class _Counter:
    """Encodes and counts a reader's pairs."""

    reader: PairReader
    tokenizer: Encoder
    encoding: Encoding
    on_progress: Callable[[int], None]
    on_encoded: Callable[[EncodedPair], None] | None
    on_pair: Callable[[Pair], None] | None
    choose: Choose | None
    census: Census = field(default_factory=Census)
    seen: IdIndex = field(default_factory=IdIndex)
    ids: bytearray = field(default_factory=bytearray)
    rows: array[int] = field(default_factory=lambda: array("q"))
    sources: array[int] = field(default_factory=lambda: array("i"))
    source_names: dict[str, int] = field(default_factory=dict)
    faulty: list[SkippedRow] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    tokens: int = 0
    longest: int = 0
    longest_pair: EncodedPair | None = None
    highest_token: int = 0
    partial: bool = False
    truncated: int = 0
    alike: Counter[str] = field(default_factory=Counter)
    sample: list[EncodedPair] = field(default_factory=list)
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def read(self) -> None:
        for batch in in_chunks(self.reader, ENCODE_BATCH):
            for pair in batch:
                self.census.add(pair)
            chosen = batch if self.choose is None else list(compress(batch, self.choose(batch)))
            self.partial |= len(chosen) < len(batch)
            self._take(list(encoded_pairs(chosen, self.tokenizer, self.encoding)))
            self.on_progress(len(self.census))

    def _take(self, batch: Sequence[tuple[Pair, EncodedPair | RowFault]]) -> None:
        good = []
        for pair, encoded in batch:
            if isinstance(encoded, RowFault):
                self._refuse(pair, encoded)
                continue
            good.append((pair, encoded))
            if self.on_pair is not None:
                self.on_pair(pair)
        ids = parse_ids([pair.pair_id for pair, _ in good])
        for pair, encoded in compress(good, self.seen.take_new(ids)):
            self._count(pair, encoded)

    def _refuse(self, pair: Pair, fault: RowFault) -> None:
        self.faulty += (SkippedRow(row, pair.location, fault.reason) for row in pair.all_rows)
        if len(self.faults) < MOST_SHOWN:
            self.faults.append(f"{pair.location}: column '{fault.field}' {fault.detail}")

    def _count(self, pair: Pair, encoded: EncodedPair) -> None:
        self.ids += bytes.fromhex(pair.pair_id)
        self.rows.append(pair.row)
        self.sources.append(self.source_names.setdefault(pair.source, len(self.source_names)))
        sides = encoded.sides
        longest = max(len(side.prompt_ids) + len(side.response_ids) for side in sides)
        if longest > self.longest:
            self.longest_pair = encoded
        tokens = (ids for side in sides for ids in (side.prompt_ids, side.response_ids))
        self.highest_token = max(self.highest_token, *(max(ids, default=0) for ids in tokens))
        self.tokens += encoded.tokens
        self.longest = max(self.longest, longest)
        self.truncated += longest == self.encoding.max_length
        if encoded.alike is not None:
            self.alike[encoded.alike] += 1
        self._offer(encoded)
        if self.on_encoded is not None:
            self.on_encoded(encoded)

    def _offer(self, encoded: EncodedPair) -> None:
        """Reservoir sampling: every pair has the same chance to be in the sample, whatever N turns out to be."""
        if len(self.sample) < _SAMPLE:
            self.sample.append(encoded)
        elif (place := self.draw.randrange(len(self.rows))) < _SAMPLE:
            self.sample[place] = encoded

    def refuse_faults(self) -> None:
        """Bad rows are an error unless the reader is to skip them, pairs without a difference where most are."""
        name, shown = self.reader.source.name, some_lines(self.faults, len(self.faulty))
        if not self.ids and not self.partial:
            raise DataError("\n".join([f"{name}: no pair can be encoded.", *shown]))
        if self.faulty and self.reader.reading.on_bad_row == "error":
            fix = "Mend these rows, or leave them out: --on-bad-row skip, or on_bad_row='skip' of Reading."
            raise DataError("\n".join([f"{name}: {counted(len(self.faulty), 'row')} cannot be encoded.", *shown, fix]))
        if 2 * self.alike.total() > len(self.rows):
            causes = [f"  {count} of them: {_ALIKE[cause]}." for cause, count in self.alike.most_common()]
            head = f"{name}: {self.alike.total()} of {len(self.rows)} pairs have two responses of the same tokens."
            raise DataError("\n".join([f"{head} They teach nothing, and their vectors are zero.", *causes]))

    def index(self) -> PairIndex:
        return PairIndex(
            PairIds(as_ids(self.ids)),
            np.frombuffer(self.rows, dtype=np.int64),
            pa.DictionaryArray.from_arrays(
                np.frombuffer(self.sources, dtype=np.int32), pa.array(list(self.source_names), pa.string())
            ),
        )


def survey(reader: PairReader) -> Survey:
    """Read a dataset once without tokens: check every row, count repeats and sources, and take its fingerprint.

    Raises:
        DataError: as ``PairReader`` raises.
    """
    census = Census()
    for pair in reader:
        census.add(pair)
    return census.survey(reader.skipped)


def _places_in(rising: Ids, ids: Ids) -> Integers:
    """Where in ``rising`` those of ``ids`` stand that are there."""
    places = np.minimum(np.searchsorted(rising, ids), len(rising) - 1)
    return np.asarray(places[rising[places] == ids], dtype=np.int64)
