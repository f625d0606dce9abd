"""Lets ranks wait, by files that mark how far it is, for what the main rank does alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trl_attribution.errors import AttributionError
from trl_attribution.utils.distributed import Ranks

_FAILED, _READY = "failed", "ready"
_POLL_SECONDS = 0.1


class MainRank:
    """Marks of one run in ``parts``, the folder of all ranks' stores, which goes when the audit is complete.

    The disk rather than a collective, whose timeout would be a limit on the size of a dataset. All ranks have to see
    it: :func:`check_shared` comes before the first wait.
    """

    def __init__(self, parts: Path, ranks: Ranks) -> None:
        self._parts, self._ranks = parts, ranks

    def clear(self) -> None:
        """Take away the marks of an earlier attempt; by the main rank, before the others look."""
        for mark in (_FAILED, _READY):
            (self._parts / mark).unlink(missing_ok=True)

    @contextmanager
    def first(self) -> Iterator[bool]:
        """Whether this rank is the one to do what the block does; the others leave the block once it has.

        Raises:
            AttributionError: the main rank has failed.
        """
        if not self._ranks.is_main:
            yield False
            self._await((self._parts / _READY).exists)
            return
        with self.failure_told():
            yield True
            (self._parts / _READY).touch()

    def await_end(self) -> None:
        """Wait until the audit is complete.

        Raises:
            AttributionError: the main rank has failed.
        """
        self._await(lambda: not self._parts.exists())

    @contextmanager
    def failure_told(self) -> Iterator[None]:
        """Let the ranks that wait for this one know when the block fails."""
        try:
            yield
        except BaseException:
            with suppress(OSError):  # where the folder is gone, nobody waits any more; the error is what counts
                (self._parts / _FAILED).touch()
            raise

    def _await(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            if (self._parts / _FAILED).exists():
                raise AttributionError("the audit cannot go on: see the main rank's error")
            time.sleep(_POLL_SECONDS)
