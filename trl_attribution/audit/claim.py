"""The claim of an audit folder: bound to one dataset and one way of computing vectors before a vector is stored."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from trl_attribution.audit.info import AuditInfo
from trl_attribution.errors import SettingsError, StoreError, describe_difference
from trl_attribution.pairs import Survey
from trl_attribution.pairs.kept_pass import FILE_NAME as KEPT_PASS
from trl_attribution.store import StoreSettings, VectorStore
from trl_attribution.store.merging import part_folder
from trl_attribution.utils.json_file import JsonFile
from trl_attribution.utils.paths import check_arrow_path, local_path

_PATIENCE = 120.0


class FolderSettings(JsonFile):
    """The content of ``settings.json``."""

    FORMAT = "trl-attribution audit settings"
    ADVICE = "Choose another folder, or remove this one."

    dataset: str
    """What the user gave, for people to read."""
    bound_to: Mapping[str, Any]


def check_folder(folder: Path) -> None:
    """Make sure that an audit can be written to ``folder``, before hours are spent on it; nothing is written.

    Raises:
        StoreError: its name is a URL or not UTF-8, a file is in the way, the folder is not writable, or a newer version
            wrote what is there.
    """
    check_arrow_path(local_path(folder, StoreError), StoreError)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise StoreError(f"cannot write to {folder}: {there} is a file. Choose another output folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StoreError(f"cannot write to {folder}: {there} is read-only. Choose another output folder.")
    AuditInfo.header(folder / "audit.json")
    FolderSettings.header(folder / "settings.json")


class FolderClaim:
    """Binds ``folder`` to one dataset and one way of computing vectors, and takes a store for them.

    Ranks and jobs that share an audit claim its folder one after the other, each with a ``part`` of its own as its
    store: the first one binds the folder, the others compare.

    Args:
        folder: the audit folder.
        vectors: the store that all vectors end up in.
        settings: how they are computed.
        survey: the dataset.
        name: the dataset, for people.
        part: number of this claimant's part; None where one process computes straight into ``vectors``.
        advice: what to do where the folder is bound to something else.
    """

    def __init__(
        self,
        folder: Path,
        vectors: Path,
        settings: StoreSettings,
        survey: Survey,
        name: str,
        *,
        part: int | None = None,
        advice: str | None = None,
    ) -> None:
        self._folder, self._settings, self._name = folder, settings, name
        self._path = folder / "settings.json"
        self._is_part = part is not None
        self._store = vectors if part is None else part_folder(folder, part)
        self._advice = advice or (
            "Choose another output folder. To compute only the pairs that are new to a dataset, give it the vectors of "
            f"this one: --vectors {folder / 'vectors'}"
        )
        self._asked = {"dataset_fingerprint": survey.fingerprint, "pairs": survey.pairs, **settings.as_dict()}
        self._made: set[Path] = set()
        self._shards: set[Path] = set()

    def check(self) -> bool:
        """Whether the folder is bound to this already; nothing is written.

        Raises:
            SettingsError: it is bound to something else; both are printed.
        """
        stored = FolderSettings.read(self._path)
        if stored is not None and stored.bound_to != self._asked:
            raise SettingsError(
                f"{self._folder} holds an audit made with something else:\n"
                f"{describe_difference(dict(stored.bound_to), self._asked)}\n{self._advice}"
            )
        return stored is not None

    def bind(self) -> None:
        """Write ``settings.json``, unless it is there.

        Raises:
            SettingsError: the folder is bound to something else; both are printed.
            AttributionError: the folder cannot be written.
        """
        if not self.check():
            FolderSettings(dataset=self._name, bound_to=self._asked).write(self._path)
            self._made.add(self._path)

    def take(self) -> VectorStore:
        """Bind the folder, and make or open this claimant's store.

        Raises:
            SettingsError: the folder or the store was made with something else; both are printed.
            StoreError: the store is broken, or the folder cannot be written.
        """
        self.check()
        new = {path for path in (self._folder, self._store, self._store / "store.json") if not path.exists()}
        with self._turn():
            self._made |= new
            self._shards = _shards(self._store)
            store = VectorStore.create(self._store, self._settings)
            self.bind()
        return store

    @contextmanager
    def released_on_failure(self) -> Iterator[None]:
        """Undo what was taken where the block fails before a vector is stored: the next attempt may be another one."""
        try:
            yield
        except BaseException:
            with suppress(OSError, StoreError), self._turn():
                self._release()
            raise

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Those that share an audit claim and release it one after the other."""
        if not self._is_part:
            yield
            return
        lock = self._folder / "parts" / "claim.lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(lock, timeout=_PATIENCE):
                yield
        except filelock.Timeout:
            raise StoreError(
                f"{lock} is held by another process for more than {_PATIENCE:.0f} s: end it, or choose another output "
                "folder"
            ) from None
        except OSError as error:
            raise StoreError(
                f"cannot write to {self._folder}: {error.strerror or error}. Choose another folder."
            ) from error

    def _release(self) -> None:
        """Remove what this claim made, unless a simultaneous one stores vectors there or has bound the folder."""
        try:
            with filelock.FileLock(self._store / "writer.lock", timeout=0):
                # Asked only now: until the lock was ours, another process could still add shards.
                if _shards(self._store) != self._shards:
                    return
                if not self._shards:
                    self._remove_store()
        except filelock.Timeout:
            # Somebody writes to these vectors. Where they lie elsewhere, that audit has a folder of its own.
            if self._folder.resolve() in self._store.resolve().parents:
                return
        # A part stands for its claimant, so the last one that goes unbinds the folder, whoever bound it.
        if (self._is_part or self._path in self._made) and not self._is_used():
            self._unbind()

    def _remove_store(self) -> None:
        if self._is_part or self._store in self._made:
            shutil.rmtree(self._store, ignore_errors=True)
        elif self._store / "store.json" in self._made:
            (self._store / "store.json").unlink(missing_ok=True)

    def _is_used(self) -> bool:
        others = any(path.is_dir() for path in (self._folder / "parts").glob("*"))
        return others or bool(_shards(self._folder / "vectors")) or (self._folder / "audit.json").exists()

    def _unbind(self) -> None:
        self._path.unlink(missing_ok=True)
        (self._folder / KEPT_PASS).unlink(missing_ok=True)
        (self._folder / "parts" / "claim.lock").unlink(missing_ok=True)
        with suppress(OSError):  # there are none, or somebody else's files are in it
            (self._folder / "parts").rmdir()
        if self._is_part or self._folder in self._made:
            with suppress(OSError):
                self._folder.rmdir()


def _shards(store: Path) -> set[Path]:
    return set((store / "shards").glob("*.safetensors"))
