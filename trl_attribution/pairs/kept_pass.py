"""What a pass over a dataset came to, kept beside the vectors, so that a rerun need not read the dataset again."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from trl_attribution.errors import WRONG_VALUES, DataError
from trl_attribution.pairs.dataset_pass import DatasetPass, PairIndex, Survey, encoded_pairs
from trl_attribution.pairs.encoded import EncodedPair
from trl_attribution.pairs.encoding import Encoder, Encoding, tokenizer_of
from trl_attribution.pairs.faults import RowFault, SkippedRow
from trl_attribution.pairs.reader import PairReader
from trl_attribution.pairs.rows.files import FileRows, FolderRows
from trl_attribution.pairs.rows.tables import Loader
from trl_attribution.store.ids import PairIds, as_ids, parse_ids
from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.version import __version__

FILE_NAME = "dataset.pass"
_TOKENS: dict[str, Any] = {"longest_pair": None, "sample": ()}
"""Fields that are not kept: ranks that share one model try them out, and such an audit keeps no pass."""
_PACKAGES = ("datasets", "tokenizers", "transformers", "trl")


class _Head(BaseModel):
    """What stands before ids, rows and sources; checked, since a folder may come from a stranger."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal["trl-attribution dataset pass 1"] = "trl-attribution dataset pass 1"
    key: str
    survey: Survey
    skipped: list[SkippedRow]
    tokens: NonNegativeInt
    longest: NonNegativeInt
    highest_token: NonNegativeInt
    truncated: NonNegativeInt
    alike: dict[str, NonNegativeInt]
    sources: list[str | None]
    pairs: NonNegativeInt


def pass_key(reader: PairReader, encoder: Encoder, encoding: Encoding) -> str | None:
    """Digest of all that a pass depends on: the files' bytes, how they are read and tokenized, and by which versions.

    How they are read is also what a folder's card says of them: column types, separators, names.

    None where that cannot be told: of other sources than files, slow tokenizers and processors, and examples that
    M0's own responses are a part of.
    """
    files = _files_of(reader.source)
    tokenizer = getattr(encoder, "backend_tokenizer", None)
    if files is None or tokenizer is None or reader.kind != "pair":
        return None
    reader.ending_with(tokenizer_of(encoder).eos_token)
    parts = [
        *((one.path.name, _digest_of(one.path)) for one in files),
        _settings_of(files[0].loader),
        *(asdict(reader.resolved), asdict(encoding)),
        *(tokenizer.to_str(), encoder.chat_template, tokenizer_of(encoder).special_tokens_map),
        *(__version__, *map(version, _PACKAGES)),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def keep_pass(folder: Path, key: str, data: DatasetPass) -> None:
    """Write ``data`` into ``folder``, but for the tokens of single pairs: an audit holds no texts.

    Nothing is written where a file whose name is no UTF-8 has rows that were left out: the names are part of it.

    Raises:
        AttributionError: the folder cannot be written.
    """
    sources = data.index.sources
    kept = {name: value for name, value in vars(data).items() if name not in ("index", *_TOKENS)}
    about = _Head(key=key, sources=sources.dictionary.to_pylist(), pairs=len(data.index), **kept)
    try:
        head = about.model_dump_json().encode()
    except ValueError:  # pydantic writes no lone surrogates
        return  # it saves time, no more
    body = [
        parse_ids(data.index.pair_ids).tobytes(),
        data.index.rows.astype("<i8").tobytes(),
        sources.indices.to_numpy(zero_copy_only=False).astype("<i4").tobytes(),
    ]
    digest = hashlib.sha256(head + b"".join(body)).digest()
    with atomic_path(folder / FILE_NAME) as part:
        part.write_bytes(b"".join([digest, struct.pack("<Q", len(head)), head, *body]))


def kept_pass(folder: Path, key: str) -> DatasetPass | None:
    """The pass that ``folder`` keeps under ``key``; None where there is none, or the file is no longer whole.

    It has neither ``longest_pair`` nor ``sample``.
    """
    try:
        content = (folder / FILE_NAME).read_bytes()
        digest, (size,), rest = content[:32], struct.unpack_from("<Q", content, 32), memoryview(content)[40:]
        if hashlib.sha256(rest).digest() != digest:
            return None
        head = _Head.model_validate_json(bytes(rest[:size]))
        return _pass_of(head, rest[size:]) if head.key == key else None
    except (OSError, struct.error, *WRONG_VALUES):
        return None  # it saves time, no more


class TokensAgain:
    """Tokens of chosen pairs of a pass that is kept, in the place of a :class:`TokenSpool`.

    Other rows are passed over as they come from the file; texts are tokenized a batch at a time, as they are asked for.
    """

    def __init__(self, reader: PairReader, tokenizer: Encoder, encoding: Encoding, index: PairIndex) -> None:
        self._reader, self._tokenizer, self._encoding, self._index = reader, tokenizer, encoding, index

    def read(self, wanted: npt.NDArray[np.bool_]) -> Iterator[EncodedPair]:
        """Those of the N pairs of the index that are ``wanted`` [N], in the order of the dataset.

        Raises:
            DataError: the dataset changed while it was audited.
        """
        rows = set(self._index.rows[wanted].tolist())
        ids = iter(PairIds(parse_ids(self._index.pair_ids)[wanted]))
        read = (pair for _, pair in self._reader.again(rows, lambda _row: next(ids)))
        for pair, encoded in encoded_pairs(read, self._tokenizer, self._encoding):
            if isinstance(encoded, RowFault):
                raise DataError(f"{pair.location} changed while it was audited: start again.")
            yield encoded


def _files_of(source: Any) -> list[FileRows] | None:
    if isinstance(source, FileRows):
        return [source]
    if isinstance(source, FolderRows):
        files = [part for part in source.parts if isinstance(part, FileRows)]
        return files if len(files) == len(source.parts) else None
    return None


def _settings_of(loader: Loader) -> list[Any]:
    """How ``datasets`` reads the files, which lie anywhere."""
    builder = loader.builder
    config = {name: value for name, value in vars(builder.config).items() if name not in ("data_files", "data_dir")}
    return [builder.name, config, builder.info.features]


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pass_of(head: _Head, body: memoryview) -> DatasetPass:
    count = head.pairs
    rows, codes = (
        np.frombuffer(body, dtype=kind, count=count, offset=offset * count)
        for kind, offset in (("<i8", 16), ("<i4", 24))
    )
    index = PairIndex(
        PairIds(as_ids(body[: 16 * count])),
        rows,
        pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(head.sources, pa.string())),
    )
    kept = {name: value for name, value in head if name not in ("format", "key", "sources", "pairs")}
    return DatasetPass(index=index, **_TOKENS, **kept)
