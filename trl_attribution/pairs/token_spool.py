"""Token ids kept on disk between reading a dataset and computing, so that nothing is read or tokenized twice."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Container, Iterator
from pathlib import Path

from trl_attribution.errors import AttributionError
from trl_attribution.pairs.encoding import EncodedPair, EncodedResponse


class TokenSpool:
    """The tokens of pairs in the order they came, in a file without a name: gone with its process, however that ends.

    Memory: 72 bytes a pair; disk: 4 bytes a token, a prompt that both responses share once.

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
        self._ids: list[str] = []
        self._lengths = array("i")
        """Four to a pair: prompt and response of chosen, prompt and response of rejected; -1 for the same prompt."""

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, pair: EncodedPair) -> None:
        """Append ``pair``.

        Raises:
            AttributionError: the disk is full.
        """
        chosen, rejected = pair.chosen, pair.rejected
        shared = chosen.prompt_ids == rejected.prompt_ids
        pieces = (chosen.prompt_ids, chosen.response_ids, [] if shared else rejected.prompt_ids, rejected.response_ids)
        try:
            for piece in pieces:
                self._file.write(array("i", piece).tobytes())
        except OSError as error:
            raise AttributionError(
                f"cannot keep the tokens of the dataset in {self._folder}: {error.strerror or error}. Free some space."
            ) from error
        self._ids.append(pair.pair_id)
        lengths = [len(piece) for piece in pieces]
        lengths[2] = -1 if shared else lengths[2]
        self._lengths.extend(lengths)

    def read(self, wanted: Container[str]) -> Iterator[EncodedPair]:
        """The pairs whose ids are in ``wanted``, in order; one reading at a time."""
        self._file.flush()
        self._file.seek(0)
        for place, pair_id in enumerate(self._ids):
            lengths = self._lengths[4 * place : 4 * place + 4]
            size = 4 * sum(length for length in lengths if length > 0)
            if pair_id not in wanted:
                self._file.seek(size, 1)
                continue
            yield _pair(pair_id, lengths, array("i", self._file.read(size)).tolist())


def _pair(pair_id: str, lengths: array[int], ids: list[int]) -> EncodedPair:
    prompt, chosen, other_prompt, rejected = lengths
    prompt_ids = ids[:prompt]
    middle = prompt + chosen
    other = prompt_ids if other_prompt < 0 else ids[middle : middle + other_prompt]
    return EncodedPair(
        pair_id,
        EncodedResponse(prompt_ids, ids[prompt:middle]),
        EncodedResponse(other, ids[len(ids) - rejected :]),
    )
