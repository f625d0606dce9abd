"""Computed vectors kept between runs: one vector store for each way of computing them, in a folder that CI keeps."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from trl_attribution.errors import AttributionError, StoreBusyError, StoreError
from trl_attribution.gate.vectors.elsewhere import holds_vectors
from trl_attribution.gate.vectors.remote import KEY, RemoteCache
from trl_attribution.store import StoreSettings, VectorStore
from trl_attribution.store.header import read_settings
from trl_attribution.utils.atomic import atomic_path

log = logging.getLogger("trl_attribution")
_PATIENCE = 60.0
_PAUSE = 0.1
T = TypeVar("T")


class VectorCache:
    """Stores in ``folder/KEY``, the key a digest of the settings; a new model or layer makes a new store.

    Pairs that several shards hold, because jobs computed them at the same time, are read from the first of them. Jobs
    that share the folder write to it in turn; one waits for the others up to a minute.

    Args:
        folder: what the CI system keeps; made when the first vectors are stored.
        remote: what several jobs share.
        push: whether new vectors are added to ``remote``.
    """

    def __init__(self, folder: Path, remote: RemoteCache | None = None, push: bool = True) -> None:
        self.folder = folder
        self._remote = remote
        self._push = push

    def best(self, wanted: StoreSettings, pair_ids: Sequence[str]) -> VectorStore | None:
        """The store of the ``wanted`` settings (``compute_dtype`` may be ``auto``) that holds most of the pairs.

        None where there is no such store.

        Raises:
            StoreError: a store is broken, or the remote place cannot be read.
        """
        if self._remote is not None:
            self._remote.pull_settings(self.folder)
        found: list[tuple[int, VectorStore]] = []
        for place in sorted(self.folder.glob("*/store.json")):
            if KEY.fullmatch(place.parent.name) and _fits(wanted, read_settings(place.parent)):
                store = self._opened(place.parent)
                found.append((int(store.holds(pair_ids).sum()), store))
        return max(found, key=lambda each: each[0])[1] if found else None

    def store(self, settings: StoreSettings) -> VectorStore:
        """The store of exactly these settings, made if need be.

        Raises:
            StoreError: it is broken, other jobs are in the way all the time, or the folder cannot be written.
        """
        place = self.folder / settings.digest[:16]
        if not (place / "store.json").exists():
            _in_turn(lambda: VectorStore.create(place, settings))
        return self._opened(place)

    def add(self, settings: StoreSettings, pair_ids: Sequence[str], pair: Tensor, context: Tensor) -> list[Path]:
        """Keep vectors ``[n, L, D]``, of the pairs that the store of ``settings`` lacks; returns the new shard, if any.

        Raises:
            StoreError: other jobs are in the way all the time, or the folder cannot be written.
        """
        return _in_turn(lambda: self._added(settings, pair_ids, pair, context))

    def _added(self, settings: StoreSettings, pair_ids: Sequence[str], pair: Tensor, context: Tensor) -> list[Path]:
        place = self.folder / settings.digest[:16]
        store = VectorStore.open(place, repeats=True)  # anew: another job may have added to it
        new = np.flatnonzero(~store.holds(pair_ids))
        if not len(new):
            return []
        pair_ids = [pair_ids[row] for row in new.tolist()]
        # Named by what it holds, so that jobs with the same new pairs share one name in a remote place.
        name = f"g{hashlib.sha256(''.join(pair_ids).encode()).hexdigest()[:32]}"
        with store.writer(name) as writer:
            writer.add(pair_ids, pair[torch.from_numpy(new)], context[torch.from_numpy(new)])
        return [place / "shards" / f"{name}-000000.safetensors"]

    def share(self, settings: StoreSettings, shards: Sequence[Path]) -> None:
        """Add new shards to the remote place; that it cannot be written is a warning, since the vectors are here."""
        if self._remote is None or not self._push or not shards:
            return
        try:
            self._remote.push(self.folder / settings.digest[:16], shards)
        except StoreError as error:
            log.warning("%s The new vectors stay in %s.", error, self.folder)

    def _hide(self) -> None:
        """The folder often lies in the working tree: nobody is to commit it by mistake."""
        note = self.folder / ".gitignore"
        if not note.exists() and not holds_vectors(self.folder):
            with suppress(AttributionError), atomic_path(note) as part:  # a cache that is only read needs none
                part.write_text("*\n", encoding="utf-8")

    def _opened(self, place: Path) -> VectorStore:
        self._hide()
        if self._remote is not None:
            self._remote.pull(place)
        return VectorStore.open(place, repeats=True)


def _in_turn(write: Callable[[], T]) -> T:
    """What ``write`` returns, once no other job is in its way."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return write()
        except StoreBusyError:
            if time.monotonic() >= end:
                raise
        time.sleep(_PAUSE)


def _fits(wanted: StoreSettings, stored: StoreSettings) -> bool:
    if wanted.compute_dtype == "auto":
        wanted = replace(wanted, compute_dtype=stored.compute_dtype)
    return wanted == stored
