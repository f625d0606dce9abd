"""Token ids kept on disk between reading a dataset and computing, so that nothing is read or tokenized twice."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trl_attribution.errors import AttributionError
from trl_attribution.pairs.encoded import EncodedPair, EncodedResponse

PAIR_WEIGHTS = (1.0, -1.0)


class TokenSpool:
    """The tokens of pairs in the order they came, in a file without a name: gone with its process, however that ends.

    Memory: 40 bytes a pair; disk: 4 bytes a token, a prompt that responses share once.

    Args:
        beside: the file lies on the storage of this folder, or of the nearest one above it that exists.

    Raises:
        AttributionError: nothing can be written there.
    """

    def __init__(self, beside: Path) -> None:
        self._folder = next(path for path in (beside.absolute(), *beside.absolute().parents) if path.is_dir())
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # closed with the spool
        except OSError as error:
            raise AttributionError(
                f"cannot write to {beside}: {error.strerror or error} ({self._folder}). Choose another folder."
            ) from error
        self._ids = bytearray()
        """16 bytes a pair."""
        self._lengths = array("i")
        """Of each side of each pair, prompt and response; -1 for the prompt of its first side."""
        self._starts = array("q", [0])
        """Where in ``_lengths`` each pair begins."""
        self._weights: dict[int, tuple[float, ...]] = {}
        """By place, of what is no pair."""

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, pair: EncodedPair) -> None:
        """Append ``pair``.

        Raises:
            AttributionError: the disk is full.
        """
        assert pair.collate is None, "what a pair with images is cannot be kept as token ids"
        first, tokens = pair.chosen.prompt_ids, array("i")
        for number, side in enumerate(pair.sides):
            shared = number > 0 and side.prompt_ids == first
            if not shared:
                tokens.fromlist(side.prompt_ids)
            tokens.fromlist(side.response_ids)
            self._lengths.extend((-1 if shared else len(side.prompt_ids), len(side.response_ids)))
        with self._kept():
            self._file.write(tokens)
        if len(pair.sides) > 2 or pair.weights != PAIR_WEIGHTS:
            self._weights[len(self)] = pair.weights
        self._ids += bytes.fromhex(pair.pair_id)
        self._starts.append(len(self._lengths))

    def read(self, wanted: npt.NDArray[np.bool_]) -> Iterator[EncodedPair]:
        """Those of the N pairs that are ``wanted`` [N], in order; one reading at a time.

        Raises:
            AttributionError: the disk is full.
        """
        with self._kept():
            self._file.flush()
        self._file.seek(0)
        for place in range(len(self)):
            lengths = self._lengths[self._starts[place] : self._starts[place + 1]]
            size = 4 * sum(length for length in lengths if length > 0)
            if not wanted[place]:
                self._file.seek(size, 1)
                continue
            ids = array("i", self._file.read(size)).tolist()
            pair_id = self._ids[16 * place : 16 * place + 16].hex()
            yield _pair(pair_id, lengths, ids, self._weights.get(place, PAIR_WEIGHTS))

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise AttributionError(
                f"cannot keep the tokens of the dataset in {self._folder}: {error.strerror or error}. Free some space."
            ) from error


def _pair(pair_id: str, lengths: array[int], ids: list[int], weights: tuple[float, ...]) -> EncodedPair:
    sides: list[EncodedResponse] = []
    place = 0
    for number in range(0, len(lengths), 2):
        prompt, response = lengths[number], lengths[number + 1]
        prompt_ids = sides[0].prompt_ids if prompt < 0 else ids[place : place + prompt]
        place += max(prompt, 0)
        sides.append(EncodedResponse(prompt_ids, ids[place : place + response]))
        place += response
    return EncodedPair(pair_id, sides[0], sides[1], further=tuple(sides[2:]), weights=weights)
