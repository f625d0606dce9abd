"""Real text for an instrument to be checked on: a dataset's, or harmless requests of the project's own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from trl_attribution.behaviors.encoding import encode_responses
from trl_attribution.behaviors.harmless import harmless
from trl_attribution.errors import SettingsError
from trl_attribution.pairs import EncodedPair, Encoding, PairReader, Reading, RowFault
from trl_attribution.pairs.dataset_pass import encoded_pairs

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel

_RESPONSES = 48


def sequences_of(pairs: Iterable[EncodedPair]) -> list[list[int]]:
    """Token ids of the first 48 responses of ``pairs`` with their prompts.

    Raises:
        SettingsError: the pairs have images, which no token id stands for.
    """
    return [ids for pair in islice(pairs, _RESPONSES) for ids in _sequences(pair)][:_RESPONSES]


def _sequences(pair: EncodedPair) -> list[list[int]]:
    if pair.collate is not None:
        raise SettingsError("the dataset holds images, and an autoencoder is checked on text only: leave it out")
    return [[*side.prompt_ids, *side.response_ids] for side in pair.sides]


def text_sequences(loaded: LoadedModel, dataset: str | None = None) -> list[list[int]]:
    """Token ids of the first 48 responses of ``dataset`` with their prompts; of 114 harmless requests without one.

    Raises:
        DataError: the dataset cannot be read as pairs.
    """
    if dataset is None:
        encoding, tokenizer = Encoding(), loaded.encoder
        groups = [encode_responses(one.prompt, ["Yes."], tokenizer, encoding)[0] for one in harmless().examples]
        return [[*group.prompt_ids, *group.responses[0]] for group in groups]
    reader = PairReader(dataset, Reading(on_bad_row="skip"))
    found = encoded_pairs(reader, loaded.encoder, Encoding())
    return sequences_of(pair for _, pair in found if not isinstance(pair, RowFault))
