"""A pass of M0 over the pairs that no reference forward shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from trl_attribution.activations import ActivationEngine
from trl_attribution.audit.compute import compute_shards
from trl_attribution.callbacks.recorder import Recorder
from trl_attribution.callbacks.reference_model import reloaded
from trl_attribution.callbacks.reference_pass import ReferenceModel
from trl_attribution.errors import DataError
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import EncodedPair, Encoder, Encoding, PairReader, RowFault
from trl_attribution.pairs.dataset_pass import encoded_pairs
from trl_attribution.store import VectorStore
from trl_attribution.store.merging import parts_of
from trl_attribution.utils.chunks import in_chunks
from trl_attribution.utils.distributed import is_sharded

_AT_ONCE = 256


def missing_pairs(folder: Path, pair_ids: Sequence[str]) -> list[str]:
    """Those of ``pair_ids`` that neither a rank's part nor an earlier merge in the audit folder has, in their order."""
    merged = folder / "vectors"
    stores = [*parts_of(folder), *([VectorStore.open(merged)] if (merged / "store.json").exists() else [])]
    missing = set(pair_ids)
    for store in stores:
        missing &= set(store.missing(pair_ids))
    return [pair_id for pair_id in pair_ids if pair_id in missing]


@contextmanager
def m0_to_run(m0: LoadedModel, reference: ReferenceModel, need: str, *, is_resumed: bool) -> Iterator[PreTrainedModel]:
    """M0, to be run for what ``need`` says: the trainer's model, or a copy where that is not M0 or cannot be run.

    Raises:
        SettingsError: there is no other copy.
    """
    if is_sharded(reference.model):
        why = "the trainer's model is in pieces (ZeRO-3, FSDP), and no pass can run through it before its first step"
    elif not reference.is_m0 or (is_resumed and not reference.stays):
        why = "the trainer's model is not M0 or no longer"
    else:
        with reference.as_m0():
            yield reference.model
        return
    copy = reloaded(m0, m0.device, f"{need} ({reference.reason}), but {why}")
    yield copy.model


def fill_store(
    recorder: Recorder,
    engine: ActivationEngine,
    reader: PairReader,
    tokenizer: Encoder,
    encoding: Encoding,
    wanted: set[str],
) -> None:
    """Compute the vectors of the pairs in ``wanted`` and hand them to ``recorder``; each is taken out as it comes.

    Raises:
        DataError: the dataset no longer holds all of them.
    """
    compute_shards(engine, in_chunks(_encoded(reader, tokenizer, encoding, wanted), _AT_ONCE), recorder.keep)
    recorder.write()
    if wanted:
        raise DataError(
            f"{reader.source.name}: changed while it was read: {len(wanted)} pairs are gone. Start the training again."
        )


def _encoded(reader: PairReader, tokenizer: Encoder, encoding: Encoding, wanted: set[str]) -> Iterator[EncodedPair]:
    for pair, encoded in encoded_pairs((pair for pair in reader if pair.pair_id in wanted), tokenizer, encoding):
        if not isinstance(encoded, RowFault) and pair.pair_id in wanted:
            wanted.remove(pair.pair_id)
            yield encoded
