"""Score columns on disk: any number of pairs and probes without holding them in memory."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trl_attribution.errors import AttributionError

_ITEM = np.dtype(np.float32).itemsize


class ColumnFile:
    """C columns of N float32 values in one scratch file, column after column.

    The file has no name: the system frees it when this object goes, also after a kill.
    Values are written with plain writes and read as a memory map, so that they live in the page cache only.
    """

    def __init__(self, columns: int, pairs: int, folder: str | Path | None = None) -> None:
        self.columns = columns
        self.pairs = pairs
        self._descriptor = _nameless_file(folder, columns * pairs * _ITEM)
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)

    def write(self, column: int, start: int, values: npt.NDArray[np.float32]) -> None:
        """Put ``values`` [n] at positions ``start`` to ``start + n`` of ``column``.

        Raises:
            AttributionError: the disk is full.
        """
        data = np.ascontiguousarray(values, dtype=np.float32).view(np.uint8).data
        offset = (column * self.pairs + start) * _ITEM
        while data:
            try:
                written = os.pwrite(self._descriptor, data, offset)
            except OSError as error:
                raise _cannot_hold(None, self.columns * self.pairs * _ITEM, error) from error
            data, offset = data[written:], offset + written

    def read(self, column: int) -> npt.NDArray[np.float32]:
        """The values of ``column`` [N], memory-mapped and read-only."""
        if self.pairs == 0:
            return np.empty(0, dtype=np.float32)
        # Only this column is mapped: the mapping goes with the array, and resident memory stays flat in C.
        with os.fdopen(os.dup(self._descriptor), "rb") as handle:
            return np.memmap(
                handle, dtype=np.float32, mode="r", offset=column * self.pairs * _ITEM, shape=(self.pairs,)
            )


def _nameless_file(folder: str | Path | None, size: int) -> int:
    """Descriptor of a new file without a name in ``folder``, with ``size`` bytes reserved."""
    try:
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix="scores-", suffix=".scratch", dir=folder)
        Path(name).unlink()
    except OSError as error:
        raise _cannot_hold(folder, size, error) from error
    try:
        _reserve(descriptor, size)
    except OSError as error:
        os.close(descriptor)
        raise _cannot_hold(folder, size, error) from error
    return descriptor


def _reserve(descriptor: int, size: int) -> None:
    """Claim ``size`` bytes of disk now, so that a full disk shows before hours of work rather than after."""
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise
    # Some systems and network folders cannot reserve: writes find out instead.
    os.ftruncate(descriptor, size)


def _cannot_hold(folder: str | Path | None, size: int, error: OSError) -> AttributionError:
    place = Path(folder) if folder is not None else Path(tempfile.gettempdir())
    return AttributionError(
        f"cannot keep {size / 2**20:.1f} MiB of scores in the scratch folder {place}: {error.strerror or error}. "
        "Free some space or choose another scratch folder."
    )
