"""What a model thinks of held-out text: log-probabilities of responses, perplexity."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trl_attribution.errors import DataError
from trl_attribution.models import LoadedModel
from trl_attribution.models.likelihood import pair_margins, response_log_probs
from trl_attribution.pairs import EncodedPair, EncodedResponse, Encoding, PairReader, Reading, RowFault
from trl_attribution.pairs.dataset_pass import encoded_pairs
from trl_attribution.pairs.rows import open_rows

BATCH_TOKENS = 8_192
"""Of one forward pass, padding included; fewer where the vocabulary is large."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs and texts as token ids."""

    pairs: tuple[EncodedPair, ...] = ()
    texts: tuple[list[int], ...] = ()
    skipped: int = 0
    """Pairs and texts without enough tokens to say anything."""

    @property
    def digest(self) -> str:
        """SHA-256 of the pairs' ids and the texts' tokens, in order."""
        content = [[pair.pair_id for pair in self.pairs], list(self.texts)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_held_out(
    pairs: str | None, text: str | None, loaded: LoadedModel, encoding: Encoding, reading: Reading | None = None
) -> HeldOut:
    """Read and encode what is held out; ``reading`` says how rows become pairs.

    Raises:
        DataError: a file cannot be read, or nothing in it is usable.
    """
    reader = None if pairs is None else PairReader(pairs, reading or Reading())
    encoded = [] if reader is None else [found for _, found in encoded_pairs(reader, loaded.tokenizer, encoding)]
    unread = 0 if reader is None else len(reader.skipped)
    good = [one for one in encoded if not isinstance(one, RowFault)]
    if pairs is not None and not good:
        raise DataError(f"{pairs}: no held-out pair can be encoded")
    ids = [] if text is None else [loaded.tokenizer(each).input_ids[: encoding.max_length] for each in _texts(text)]
    usable = [each for each in ids if len(each) > 1]
    if text is not None and not usable:
        raise DataError(f"{text}: no held-out text has two tokens or more")
    return HeldOut(tuple(good), tuple(usable), unread + len(encoded) - len(good) + len(ids) - len(usable))


def margins(loaded: LoadedModel, pairs: Sequence[EncodedPair]) -> list[float]:
    """By how many nats ``loaded`` finds the chosen response of each pair likelier than the rejected one."""
    return pair_margins(loaded.model, pairs, BATCH_TOKENS).values


def perplexity(loaded: LoadedModel, texts: Sequence[list[int]]) -> float:
    """Of all tokens of ``texts`` but the first of each, together."""
    sums = response_log_probs(loaded.model, [EncodedResponse([], ids) for ids in texts], BATCH_TOKENS).sums
    return math.exp(-sum(sums) / sum(len(ids) - 1 for ids in texts))


def _texts(path: str) -> Iterator[str]:
    for row in open_rows(path):
        value = row.values.get("text")
        if not isinstance(value, str):
            raise DataError(f"{row.location}: field `text` is missing or no text")
        yield value
