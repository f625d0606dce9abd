"""Pair ids as the 16 bytes that they spell: checked, listed, and told apart without a Python object each."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from trl_attribution.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa

ID_BYTES = 16
Ids: TypeAlias = npt.NDArray[np.bytes_]
"""Pair ids as an ``S16`` array ``[n]``: fixed-width bytes, which numpy sorts and searches without Python objects."""
Rows: TypeAlias = npt.NDArray[np.int64]
"""Rows ``[n]``, counted over all shards of a store."""
_AT_A_TIME = 1024
_NONE = np.empty(0, dtype=f"S{ID_BYTES}")


class PairIds(Sequence[str]):
    """N pair ids as text, kept in 16 bytes each; equal to any sequence of the same ids."""

    def __init__(self, array: Ids) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...

    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        if isinstance(place, slice):
            return tuple(hex_ids(self.array[place]))
        return hex_ids(self.array[[place]])[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_A_TIME):
            yield from hex_ids(self.array[start : start + _AT_A_TIME])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PairIds):
            return np.array_equal(self.array, other.array)
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def __arrow_array__(self, type: object = None) -> pa.Array | pa.ChunkedArray:  # noqa: A002  # Arrow's names
        """The ids as Arrow's strings, which ``pyarrow.array`` asks for; in chunks where they take more than 2 GiB."""
        import pyarrow as pa

        size = 2**31 // (2 * ID_BYTES) - 1
        chunks = [_arrow_strings(self.array[start : start + size]) for start in range(0, max(1, len(self)), size)]
        return chunks[0] if len(chunks) == 1 else pa.chunked_array(chunks)

    def __repr__(self) -> str:
        return f"PairIds({first_ids(self.array)})"


def _arrow_strings(ids: Ids) -> pa.StringArray:
    import pyarrow as pa

    ends = 2 * ID_BYTES * np.arange(len(ids) + 1, dtype=np.int32)
    text = binascii.hexlify(ids.tobytes())
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(ends), pa.py_buffer(text))


class IdIndex:
    """Finds ids by sorted arrays, 24 bytes an id: each longer than the next, merged as they grow.

    So an id is sorted some log N times, not once for every portion that comes after it.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Ids, Rows]] = []
        self._count = 0

    def find(self, ids: Ids) -> Rows:
        """The row of each id (of a repeated one the first) among all that were appended, -1 where there is none."""
        found: Rows = np.full(len(ids), -1, dtype=np.int64)
        for rising, rows in self._parts:
            places = np.minimum(np.searchsorted(rising, ids), len(rising) - 1)
            found = np.where((found < 0) & (rising[places] == ids), rows[places], found)
        return found

    def append(self, ids: Ids) -> None:
        """Take ``ids`` in as the next rows; none of them may be there already."""
        rows: Rows = np.arange(self._count, self._count + len(ids))
        self._count += len(ids)
        while self._parts and len(self._parts[-1][0]) <= 2 * len(ids):
            before = self._parts.pop()
            ids, rows = np.concatenate([before[0], ids]), np.concatenate([before[1], rows])
        order = np.argsort(ids, kind="stable")
        if len(ids):
            self._parts.append((ids[order], rows[order]))

    def take_new(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Append those of ``ids`` [n] that are not there (of a repeated one, the first); which these are."""
        new = np.zeros(len(ids), dtype=bool)
        new[np.unique(ids, return_index=True)[1]] = True
        new &= self.find(ids) < 0
        self.append(ids[new])
        return new

    def repeated(self) -> Ids:
        """Ids that came more than once in one portion."""
        return np.concatenate([rising[1:][rising[1:] == rising[:-1]] for rising, _ in self._parts] or [_NONE])


def is_pair_id(value: object) -> bool:
    """Whether ``value`` has the form of a pair id: 32 lowercase hex digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value) is not None


def parse_ids(pair_ids: Sequence[str]) -> Ids:
    """Hex ids as an ``S16`` array ``[n]``.

    Raises:
        StoreError: one of them is no pair id; the message shows the first such.
    """
    if isinstance(pair_ids, PairIds):
        return pair_ids.array
    try:
        joined = "".join(pair_ids)
        raw = binascii.unhexlify(joined) if joined == joined.lower() else b""
    except (ValueError, TypeError):
        raw = b""
    if len(raw) != ID_BYTES * len(pair_ids) or not set(map(len, pair_ids)) <= {2 * ID_BYTES}:
        wrong = next((value for value in pair_ids if not is_pair_id(value)), pair_ids)
        raise StoreError(f"{wrong!r} is not a pair id: one has 32 hex digits, as pair_id() gives them")
    return np.frombuffer(raw, dtype=f"S{ID_BYTES}")


def as_ids(data: bytearray | memoryview) -> Ids:
    """The ids whose bytes lie one after the other in ``data``; nothing is copied."""
    return np.frombuffer(data, dtype=f"S{ID_BYTES}")


def hex_ids(ids: Ids) -> list[str]:
    """The ids as hex strings, a new list."""
    text = ids.tobytes().hex()
    return [text[start : start + 2 * ID_BYTES] for start in range(0, len(text), 2 * ID_BYTES)]


def first_ids(pair_ids: Sequence[str] | Ids) -> str:
    """The first ten ids and the number of the others, for a message."""
    shown = hex_ids(pair_ids[:10]) if isinstance(pair_ids, np.ndarray) else list(pair_ids[:10])
    others = len(pair_ids) - len(shown)
    return ", ".join(shown) + (f" and {others} more" if others else "")
