"""The file format of one shard: pair ids, pair vectors and context vectors as one safetensors file.

A shard is an ordinary safetensors file. Its three tensors always lie in the order ``pair_ids`` (uint8 ``[n, 16]``, the
bytes that a pair id spells in hex), ``pair`` ``[n, L, D]``, ``context`` ``[n, L, D]``, so that opening a store reads
only the first bytes of every shard. The header is written here, key by key, because equal content has to give equal
bytes; any safetensors reader can load the result.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trl_attribution.errors import StoreError
from trl_attribution.store.ids import ID_BYTES, Ids
from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.dtypes import torch_dtype
from trl_attribution.utils.format_version import check_format_version
from trl_attribution.utils.text import printable

SHARD_FORMAT = "trl-attribution shard"
SHARD_VERSION = 1
Kind = Literal["pair", "context"]

_CODES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_AXES = {"pair_ids": "n,byte", "pair": "n,L,D", "context": "n,L,D"}
_MAX_HEADER = 1 << 20
_REPAIR = "Delete that shard and run the audit again: only its pairs are computed anew."


@dataclass(frozen=True)
class Shard:
    """One complete shard on disk: what its header says, and its ids."""

    path: Path
    ids: Ids
    layers: int
    hidden_size: int
    dtype: str
    payload_offset: int
    sha256: str

    def __len__(self) -> int:
        return len(self.ids)

    def open_vectors(self, kind: Kind) -> npt.NDArray[Any]:
        """Map the vectors ``[n, L, D]`` into memory, as integers of the stored width (numpy knows no bfloat16).

        The mapping is private and lives as long as the returned array: pages that were read do not pile up.

        Raises:
            StoreError: the file is gone or shorter than when the store was opened.
        """
        shape = (len(self), self.layers, self.hidden_size)
        width = torch_dtype(self.dtype).itemsize
        count = len(self) * self.layers * self.hidden_size
        offset = self.payload_offset + len(self) * ID_BYTES + (count * width if kind == "context" else 0)
        try:
            with self.path.open("rb", buffering=0) as handle:
                mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
            return np.frombuffer(mapping, dtype=f"<i{width}", count=count, offset=offset).reshape(shape)
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.path} changed while it was in use: {error}. {_REPAIR}") from error

    def checksum(self) -> str:
        """SHA-256 of the tensor bytes as they are on disk now.

        Raises:
            StoreError: the file is gone or cannot be read.
        """
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as handle:
                handle.seek(self.payload_offset)
                while piece := handle.read(1 << 20):
                    digest.update(piece)
        except OSError as error:
            raise StoreError(f"{self.path} changed while it was in use: {error}. {_REPAIR}") from error
        return digest.hexdigest()


def write_shard(path: Path, ids: Ids, pair: Tensor, context: Tensor, settings_digest: str) -> Shard:
    """Write ids ``[n]`` and vectors ``[n, L, D]`` (equal dtypes) as one shard, atomically, and return it.

    Raises:
        AttributionError: the file cannot be written; nothing is left behind.
    """
    count, layers, hidden_size = pair.shape
    dtype = str(pair.dtype).removeprefix("torch.")
    payload = [_bytes_of(ids), _bytes_of(pair), _bytes_of(context)]
    digest = hashlib.sha256()
    for piece in payload:
        digest.update(piece)
    metadata = {
        "format": SHARD_FORMAT,
        "format_version": str(SHARD_VERSION),
        "axes": json.dumps(_AXES, separators=(",", ":")),
        "settings": settings_digest,
        "ids_sha256": hashlib.sha256(payload[0]).hexdigest(),
        "sha256": digest.hexdigest(),
    }
    shapes = {"pair_ids": [count, ID_BYTES], "pair": [count, layers, hidden_size], "context": list(context.shape)}
    header = _header_bytes(metadata, shapes, _CODES[dtype], [len(piece) for piece in payload])
    with atomic_path(path) as part, part.open("wb") as handle:
        handle.write(header)
        for piece in payload:
            handle.write(piece)
    return Shard(path, ids, layers, hidden_size, dtype, len(header), digest.hexdigest())


def read_shard(path: Path, layers: int, hidden_size: int, dtype: str, settings_digest: str) -> Shard:
    """Read a shard's header and ids, and check them against what the store's settings say.

    Raises:
        StoreError: the file is truncated, damaged, of a newer version, or made under other settings.
    """
    try:
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            header, payload_offset = _read_header(handle.read(8), handle.read, path, size)
            metadata = _checked_metadata(header, path, settings_digest)
            count = _checked_count(header, path, layers, hidden_size, dtype, size - payload_offset)
            raw = handle.read(count * ID_BYTES)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
    if hashlib.sha256(raw).hexdigest() != metadata.get("ids_sha256"):
        raise StoreError(f"{path} is damaged: its pair ids do not match their checksum. {_REPAIR}")
    ids = np.frombuffer(raw, dtype=f"S{ID_BYTES}")
    return Shard(path, ids, layers, hidden_size, dtype, payload_offset, metadata["sha256"])


def _bytes_of(array: Ids | Tensor) -> memoryview:
    values = array.contiguous().view(torch.uint8).numpy() if isinstance(array, Tensor) else array.view(np.uint8)
    return values.reshape(-1).data


def _header_bytes(
    metadata: dict[str, str], shapes: dict[str, list[int]], vector_code: str, lengths: list[int]
) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for (name, shape), length in zip(shapes.items(), lengths, strict=True):
        code = "U8" if name == "pair_ids" else vector_code
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 16 + 8)  # with the 8 bytes of length before it, the payload starts on 16 bytes
    return len(text).to_bytes(8, "little") + text


def _read_header(prefix: bytes, read: Any, path: Path, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER):
        raise StoreError(f"{path} is truncated or damaged: it has {size} bytes and no whole header. {_REPAIR}")
    try:
        header = json.loads(read(length))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: its header is not JSON ({printable(error, 120)}). {_REPAIR}") from error
    if not isinstance(header, dict):
        raise StoreError(f"{path} is damaged: its header is not a JSON object. {_REPAIR}")
    return header, 8 + length


def _checked_metadata(header: dict[str, Any], path: Path, settings_digest: str) -> dict[str, str]:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != SHARD_FORMAT:
        raise StoreError(f"{path} is not a shard of pair vectors. Move it out of the store's folder.")
    version = str(metadata.get("format_version"))  # metadata of safetensors is all text
    check_format_version(int(version) if version.isdecimal() and len(version) < 10 else version, SHARD_VERSION, path)
    if not isinstance(metadata.get("sha256"), str):
        raise StoreError(f"{path} is damaged: its metadata is incomplete. {_REPAIR}")
    if metadata.get("settings") != settings_digest:
        raise StoreError(
            f"{path} was made under other settings than the store.json of its folder (model, layers, dtype or "
            "encoding): shards of another run were copied in. Move them out, each run has a folder of its own."
        )
    return metadata


def _checked_count(
    header: dict[str, Any], path: Path, layers: int, hidden_size: int, dtype: str, payload_size: int
) -> int:
    """The number of pairs, once every byte of the payload is accounted for by the settings' shapes."""
    try:
        count = int(header["pair"]["shape"][0])
        shapes = {"pair_ids": [count, ID_BYTES], "pair": [count, layers, hidden_size]}
        shapes["context"] = shapes["pair"]
        vectors = count * layers * hidden_size * torch_dtype(dtype).itemsize
        ends = np.cumsum([0, count * ID_BYTES, vectors, vectors]).tolist()
        expected = {
            name: {
                "dtype": "U8" if name == "pair_ids" else _CODES[dtype],
                "shape": shape,
                "data_offsets": ends[index : index + 2],
            }
            for index, (name, shape) in enumerate(shapes.items())
        }
        intact = all(header[name] == entry for name, entry in expected.items()) and count > 0
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise StoreError(f"{path} is damaged: its header does not describe pair vectors. {_REPAIR}") from None
    if not intact:
        raise StoreError(f"{path} is damaged: its header does not fit the settings in store.json. {_REPAIR}")
    if payload_size != ends[-1]:
        raise StoreError(
            f"{path} is truncated or damaged: {payload_size} bytes of vectors where {ends[-1]} belong. {_REPAIR}"
        )
    return count
