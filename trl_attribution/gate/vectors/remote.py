"""A vector cache that jobs share: shards are copied from and to any place that fsspec reaches."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.store import StoreSettings
from trl_attribution.store.header import read_settings
from trl_attribution.store.shards import read_shard
from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.text import printable

log = logging.getLogger("trl_attribution")

KEY = re.compile(r"[0-9a-f]{16}")
_SHARD = re.compile(r"[A-Za-z0-9_]{1,80}-\d{6}\.safetensors")
_FETCHED = ".fetched-"
_LONGEST_FETCH = 24 * 3600
"""Seconds after which nobody is fetching a file any more."""
_SECRET = re.compile(r"//[^/\s]*@")


class RemoteCache:
    """Vector stores below one URL, ``URL/KEY/store.json`` and ``URL/KEY/shards/NAME``: read and added to, not changed.

    A shard is named by the pairs that it holds, so that jobs which compute the same pairs write one name. It appears
    whole: it is uploaded under another name, then moved.

    Raises:
        SettingsError: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._shown = _without_secret(url, 200)
        from fsspec.core import url_to_fs

        try:
            # A listing that was kept from before would hide what other jobs have added since.
            self._fs, root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError, TypeError, OSError) as error:
            raise SettingsError(
                f"cache.remote: {self._shown} cannot be used ({_without_secret(error, 300)}). "
                "Give an fsspec URL, and install the package of its protocol (s3fs, gcsfs, adlfs)."
            ) from error
        self._root = str(root).rstrip("/")

    def pull_settings(self, folder: Path) -> None:
        """Bring the ``store.json`` of every store to ``folder/KEY``, where there is none yet.

        Raises:
            StoreError: the place cannot be read.
        """
        with self._explained("read"):
            for key in self._names(self._root):
                target = folder / key / "store.json"
                source = f"{self._root}/{key}/store.json"
                if KEY.fullmatch(key) and not target.exists() and self._fs.exists(source):
                    with self._fetched(source, target.parent) as fetched:
                        fetched.replace(target)

    def pull(self, folder: Path) -> int:
        """Bring the shards that the store at ``folder`` (named by its key) lacks, and return how many came.

        Those that are broken are left out with a warning; what they hold is computed again.

        Raises:
            StoreError: the place cannot be read.
        """
        settings = read_settings(folder)
        there = f"{self._root}/{folder.name}/shards"
        count = 0
        with self._explained("read"):
            for name in self._names(there):
                target = folder / "shards" / name
                if _SHARD.fullmatch(name) and not target.exists():
                    count += self._take(f"{there}/{name}", target, settings)
        return count

    def push(self, folder: Path, shards: Iterable[Path]) -> None:
        """Add shards of the store at ``folder``; names that are there already are left as they are.

        Raises:
            StoreError: the place cannot be written.
        """
        there = f"{self._root}/{folder.name}"
        with self._explained("written"):
            self._fs.makedirs(f"{there}/shards", exist_ok=True)
            self._put(folder / "store.json", f"{there}/store.json")
            for shard in shards:
                self._put(shard, f"{there}/shards/{shard.name}")

    def _take(self, source: str, target: Path, settings: StoreSettings) -> bool:
        try:
            # No name that the store takes for a shard, until it has been checked.
            with self._fetched(source, target.parents[1]) as fetched:
                shard = read_shard(
                    fetched, len(settings.layers), settings.hidden_size, settings.vector_dtype, settings.digest
                )
                if shard.checksum() != shard.sha256:
                    raise StoreError("its bytes do not match their checksum")
                target.parent.mkdir(exist_ok=True)
                fetched.replace(target)
        except StoreError as error:
            log.warning("cache.remote: left out the broken shard %s (%s)", printable(target.name), error)
            return False
        return True

    @contextmanager
    def _fetched(self, source: str, folder: Path) -> Iterator[Path]:
        """A file brought to a place below ``folder`` that no other job touches; it is gone afterwards, unless moved."""
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with tempfile.TemporaryDirectory(prefix=_FETCHED, dir=folder) as place:
            path = Path(place) / "file"
            with atomic_path(path) as part:
                self._fs.get_file(source, str(part))
            yield path

    def _put(self, source: Path, target: str) -> None:
        if self._fs.exists(target):
            return
        part = f"{target}.{uuid.uuid4().hex}.part"
        self._fs.put_file(str(source), part)
        self._fs.mv(part, target)

    def _names(self, folder: str) -> list[str]:
        """The names in a remote folder, in order; none where it does not exist."""
        if not self._fs.exists(folder):
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in self._fs.ls(folder, detail=False))

    @contextmanager
    def _explained(self, done: str) -> Iterator[Any]:
        try:
            yield
        except (SettingsError, StoreError):
            raise
        except Exception as error:
            # Every protocol has exceptions of its own.
            raise StoreError(
                f"cache.remote: {self._shown} cannot be {done} ({_without_secret(error, 300)}). "
                "Check the address and the credentials, or leave `remote` out."
            ) from error


def _remove_leftovers(folder: Path) -> None:
    """What jobs left below ``folder`` that were killed while they fetched a file."""
    for place in folder.glob(f"{_FETCHED}*"):
        with suppress(OSError):  # another job has removed it
            if time.time() - place.stat().st_mtime > _LONGEST_FETCH:
                shutil.rmtree(place)


def _without_secret(text: object, limit: int) -> str:
    """Printable, and without the user's name and password that stand in URLs; the messages of protocols quote them."""
    return printable(_SECRET.sub("//***@", str(text)), limit)
