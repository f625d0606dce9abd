"""Any TRL preference dataset as pairs, with ids that hold across files and TRL's own token ids."""

from trl_attribution.pairs.encoding import (
    EncodedPair,
    EncodedResponse,
    Encoder,
    Encoding,
    encode_pair,
    encode_pairs,
    encode_prompt,
    tokenizer_of,
)
from trl_attribution.pairs.faults import RowFault, SkippedRow
from trl_attribution.pairs.formats import Pair, Reading, pair_id
from trl_attribution.pairs.identity import FingerprintBuilder, dataset_fingerprint
from trl_attribution.pairs.messages import whole_text
from trl_attribution.pairs.reader import Duplicate, PairReader, Survey, survey

__all__ = [
    "Duplicate",
    "EncodedPair",
    "EncodedResponse",
    "Encoder",
    "Encoding",
    "FingerprintBuilder",
    "Pair",
    "PairReader",
    "Reading",
    "RowFault",
    "SkippedRow",
    "Survey",
    "dataset_fingerprint",
    "encode_pair",
    "encode_pairs",
    "encode_prompt",
    "pair_id",
    "survey",
    "tokenizer_of",
    "whole_text",
]
