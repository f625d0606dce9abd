"""A pass of M0 over the pairs that no reference forward shows."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from trl_attribution.activations import ActivationEngine
from trl_attribution.callbacks.recorder import Recorder
from trl_attribution.census import encoded_pairs
from trl_attribution.errors import DataError
from trl_attribution.pairs import EncodedPair, Encoding, PairReader, RowFault

_BLOCK = 256


def fill_store(
    recorder: Recorder,
    engine: ActivationEngine,
    reader: PairReader,
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding,
    wanted: set[str],
) -> None:
    """Compute the vectors of the pairs in ``wanted`` and hand them to ``recorder``; each is taken out as it comes.

    Raises:
        DataError: the dataset no longer holds all of them.
    """
    block: list[EncodedPair] = []
    for pair, encoded in encoded_pairs((pair for pair in reader if pair.pair_id in wanted), tokenizer, encoding):
        if isinstance(encoded, RowFault) or pair.pair_id not in wanted:
            continue
        wanted.remove(pair.pair_id)
        block.append(encoded)
        if len(block) == _BLOCK:
            _compute(recorder, engine, block)
            block = []
    if block:
        _compute(recorder, engine, block)
    recorder.write()
    if wanted:
        raise DataError(
            f"{reader.source.name}: changed while it was read: {len(wanted)} pairs are gone. Start the training again."
        )


def _compute(recorder: Recorder, engine: ActivationEngine, block: list[EncodedPair]) -> None:
    found = engine.pair_vectors(block)
    recorder.keep([pair.pair_id for pair in block], found.pair, found.context)
