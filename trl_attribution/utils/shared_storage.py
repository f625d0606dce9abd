"""Whether all processes see one folder: those of several machines do only on storage that the machines share."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

from trl_attribution.errors import StoreError
from trl_attribution.utils.distributed import Ranks

# Seconds; longer than network file systems remember that a file was not there.
PATIENCE = 90.0
_POLL_SECONDS = 0.1


def check_shared(folder: Path, ranks: Ranks) -> None:
    """Make sure that all ``ranks`` see what the main one writes to ``folder``. A collective.

    Args:
        folder: the audit folder, as each rank knows it.
        ranks: the processes of this run.

    Raises:
        AttributionError: on all ranks, where one of them does not see it or the main rank cannot write.
    """
    if ranks.world == 1:
        return
    token = folder / ranks.broadcast(f".shared-{uuid.uuid4().hex}")
    try:
        with ranks.together():
            if ranks.is_main:
                _leave(token)
        with ranks.together():
            await_visible(
                token.exists,
                f"the audit folder {folder} is not on storage that all processes see: rank {ranks.rank} has not found "
                f"there within {PATIENCE:.0f} s what the main rank has written",
            )
    finally:
        if ranks.is_main:
            token.unlink(missing_ok=True)


def await_visible(is_visible: Callable[[], bool], otherwise: str) -> None:
    """Wait until ``is_visible`` finds what another process has written: storage of a network may be late to show it.

    Raises:
        StoreError: it does not within ``PATIENCE``; says ``otherwise`` and what to do.
    """
    deadline = time.monotonic() + PATIENCE
    while not is_visible():
        if time.monotonic() > deadline:
            raise StoreError(f"{otherwise}. Choose an output folder on storage that all machines share.")
        time.sleep(_POLL_SECONDS)


def _leave(token: Path) -> None:
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        raise StoreError(
            f"cannot write to {token.parent}: {error.strerror or error}. Choose another output folder."
        ) from error
