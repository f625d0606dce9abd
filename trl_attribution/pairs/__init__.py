"""Any TRL preference dataset as pairs, with ids that hold across files and TRL's own token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.pairs.dataset_pass import DatasetPass, Duplicate, PairIndex, Survey, pass_over, survey
    from trl_attribution.pairs.encoded import EncodedPair, EncodedResponse
    from trl_attribution.pairs.encoding import (
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
    from trl_attribution.pairs.reader import PairReader
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "DatasetPass",
    "Duplicate",
    "EncodedPair",
    "EncodedResponse",
    "Encoder",
    "Encoding",
    "FingerprintBuilder",
    "Pair",
    "PairIndex",
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
    "pass_over",
    "survey",
    "tokenizer_of",
    "whole_text",
]
