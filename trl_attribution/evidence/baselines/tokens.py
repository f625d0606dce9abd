"""The pairs of a comparison as token ids, the same that the audit took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from trl_attribution.errors import ModelError
from trl_attribution.evidence.baselines.baseline import PairSet, chunks
from trl_attribution.pairs import EncodedPair, Encoding, RowFault, encode_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 256


def encoded_pairs(
    pairs: PairSet, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, name: str
) -> Iterator[list[EncodedPair]]:
    """The pairs as TRL tokenizes them, some hundred at a time.

    Raises:
        ModelError: one cannot be tokenized so; an audit leaves such pairs out, so it was made with another tokenizer.
    """
    for chunk in chunks(pairs, _CHUNK):
        yield _all_encoded(encode_pairs(chunk, tokenizer, encoding), chunk[0].location, name)


def _all_encoded(outcomes: Sequence[EncodedPair | RowFault], where: str, name: str) -> list[EncodedPair]:
    encoded = [one for one in outcomes if isinstance(one, EncodedPair)]
    if len(encoded) < len(outcomes):
        fault = next(one for one in outcomes if isinstance(one, RowFault))
        raise ModelError(
            f"baseline {name}: {len(outcomes) - len(encoded)} pairs from {where} on cannot be tokenized as the audit "
            f"did ({fault.detail}). Give the model and the truncation of the audit."
        )
    return encoded
