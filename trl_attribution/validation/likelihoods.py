"""What a model thinks of given text: log-probabilities of responses, perplexity.

Axis letters: B sequences of a batch, T tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trl_attribution.dataset_io import open_rows
from trl_attribution.errors import DataError
from trl_attribution.models import LoadedModel, evaluating
from trl_attribution.pairs import EncodedPair, Encoding, PairReader, Reading, RowFault, encode_pairs

BATCH_TOKENS = 8_192


@dataclass(frozen=True)
class PairLikelihoods:
    """Sums of log-probabilities (nats) of both responses of each pair ``[N]``."""

    chosen: tuple[float, ...]
    rejected: tuple[float, ...]


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


def read_held_out(pairs: str | None, text: str | None, loaded: LoadedModel, encoding: Encoding) -> HeldOut:
    """Read and encode what is held out.

    Raises:
        DataError: a file cannot be read, or nothing in it is usable.
    """
    encoded = [] if pairs is None else encode_pairs(list(PairReader(pairs, Reading())), loaded.tokenizer, encoding)
    good = [one for one in encoded if not isinstance(one, RowFault)]
    if pairs is not None and not good:
        raise DataError(f"{pairs}: no held-out pair can be encoded")
    ids = [] if text is None else [loaded.tokenizer(each).input_ids[: encoding.max_length] for each in _texts(text)]
    usable = [each for each in ids if len(each) > 1]
    if text is not None and not usable:
        raise DataError(f"{text}: no held-out text has two tokens or more")
    return HeldOut(tuple(good), tuple(usable), len(encoded) - len(good) + len(ids) - len(usable))


def pair_likelihoods(loaded: LoadedModel, pairs: Sequence[EncodedPair]) -> PairLikelihoods:
    """How likely ``loaded`` finds both responses of each pair, given its prompt."""
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    sequences = [(side.prompt_ids + side.response_ids, len(side.prompt_ids)) for side in sides]
    sums = _log_likelihoods(loaded, sequences)
    return PairLikelihoods(tuple(sums[0::2]), tuple(sums[1::2]))


def perplexity(loaded: LoadedModel, texts: Sequence[list[int]]) -> float:
    """Of all tokens of ``texts`` but the first of each, together."""
    sums = _log_likelihoods(loaded, [(ids, 1) for ids in texts])
    return math.exp(-sum(sums) / sum(len(ids) - 1 for ids in texts))


def _log_likelihoods(loaded: LoadedModel, sequences: Sequence[tuple[list[int], int]]) -> list[float]:
    """For each (token ids, where the counted ones begin) the sum of the counted tokens' log-probabilities."""
    found = [0.0] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda place: len(sequences[place][0]))
    with torch.inference_mode(), evaluating(loaded.model):
        for places in _batches(order, lambda place: len(sequences[place][0])):
            sums_B = _batch_sums(loaded, [sequences[place] for place in places])
            for place, total in zip(places, sums_B.tolist(), strict=True):
                found[place] = total
    return found


def _batch_sums(loaded: LoadedModel, batch: Sequence[tuple[list[int], int]]) -> Tensor:
    longest = max(len(ids) for ids, _ in batch)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    counted_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, (ids, begin) in enumerate(batch):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        mask_BT[row, : len(ids)] = 1
        counted_BT[row, max(1, begin) : len(ids)] = True
    device = loaded.model.device
    logits_BTV = loaded.model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False).logits
    targets_BT = ids_BT[:, 1:].to(device)
    chosen_BT = torch.stack([torch.log_softmax(row.float(), dim=-1) for row in logits_BTV[:, :-1]]).gather(
        -1, targets_BT.unsqueeze(-1)
    )
    return torch.where(counted_BT[:, 1:].to(device), chosen_BT.squeeze(-1), 0.0).double().sum(dim=1).cpu()


def _batches(order: Sequence[int], length: Callable[[int], int]) -> Iterator[list[int]]:
    """Neighbors by length, so many that their padded tokens fit the budget."""
    batch: list[int] = []
    for place in order:
        if batch and (len(batch) + 1) * length(place) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _texts(path: str) -> Iterator[str]:
    for row in open_rows(path):
        value = row.values.get("text")
        if not isinstance(value, str):
            raise DataError(f"{row.location}: field `text` is missing or no text")
        yield value
