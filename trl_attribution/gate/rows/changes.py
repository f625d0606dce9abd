"""Which rows a branch adds to a dataset in git: those that the dataset did not hold where the branch left its base."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from itertools import starmap
from operator import and_
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from trl_attribution.errors import DataError, SettingsError
from trl_attribution.gate.rows.repository import Parts, Repository, Snapshot
from trl_attribution.pairs import Pair, PairReader, Reading, RowFault
from trl_attribution.pairs.rows import Row
from trl_attribution.pairs.rows.files import file_kind
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import printable


class Content(NamedTuple):
    """What a row is known by."""

    identity: bytes
    """Its pair id, or where it is no pair a digest of all its values."""
    exact: bytes
    """A digest of all its values: of rows that are the same pair, it tells which one was there."""


def content_of(row: Row, read: Pair | RowFault) -> Content:
    """The content of a row that was ``read`` as a pair or not."""
    values = [member.values for member in row.members] if row.members else row.values
    exact = hashlib.blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return Content(bytes.fromhex(read.pair_id), exact) if isinstance(read, Pair) else Content(exact, exact)


class NewRows:
    """Tells which rows of a dataset its branch brought.

    The rows of the files here are compared, by their content, with those that the dataset held at the merge base of
    ``base_ref`` and HEAD. Both are read by the same rules, the latter from git's objects, so nothing that a request can
    put into a repository takes a row out of the comparison. Of what was there once and is there twice now, one row is
    new: the one that differs in other columns, else the second. With several merge bases, what was at each of them was
    there before.

    Args:
        path: a file or folder, in the working tree of a git repository; its folder may be a part of it.
        base_ref: a branch, tag or commit, such as ``origin/main``.
        reading: how the dataset is read.

    Raises:
        SettingsError: git is missing, this is no repository, the reference is unknown, ambiguous or shares no history
            with HEAD that is here, or what is committed or staged cannot be read.
        DataError: nothing is at ``path``.
    """

    def __init__(self, path: str | Path, base_ref: str, reading: Reading) -> None:
        self._target = _existing(local_path(path))
        self._reading = reading
        self._read: dict[Snapshot, Counter[Content]] = {}
        git = Repository.around(self._target)
        place = self._target.relative_to(git.top).parts
        bases = git.merge_bases(base_ref)
        self._shown = f"{printable(base_ref)} (merge base {', '.join(base[:12] for base in bases)})"
        self.notes: list[str] = []  # on the comparison, for people
        self._before = reduce(and_, (self._rows_before(git, base, place) for base in bases))
        committed = {"HEAD": git.at("HEAD", place), "the index": git.staged(place)}
        self._committed = [self._rows_since(*each) for each in committed.items()]

    def among(self, rows: Sequence[Content]) -> list[bool]:
        """Whether each of ``rows``, all of the dataset in order, is new.

        Raises:
            SettingsError: the branch has rows that are not among them: they would come in unseen.
        """
        exact, left = self._before.copy(), _by_identity(self._before)
        self._refuse_unseen(rows, left)
        new = [True] * len(rows)
        for only_exact in (True, False):
            for place, row in enumerate(rows):
                if new[place] and left[row.identity] > 0 and (exact[row] > 0 or not only_exact):
                    exact[row] -= 1
                    left[row.identity] -= 1
                    new[place] = False
        if not any(new):
            self.notes.append(f"nothing in {_shown(self._target)} differs from {self._shown}")
        return new

    def _refuse_unseen(self, rows: Sequence[Content], before: Counter[bytes]) -> None:
        committed = {row.identity for found in self._committed for row in found}
        unseen = committed - before.keys() - {row.identity for row in rows}
        target = _shown(self._target)
        if unseen:
            raise SettingsError(
                f"--base-ref: {len(unseen):,} rows that are committed or staged since {self._shown} are not in "
                f"{target} as it lies here, so they cannot be judged. The checkout may be sparse, or a submodule out "
                "of date: check all of it out (`git sparse-checkout disable`, `git submodule update --init`). Or what "
                "was changed here is not committed: commit it."
            )

    def _rows_before(self, git: Repository, base: str, place: Parts) -> Counter[Content]:
        snapshot, target = git.at(base, place), _shown(self._target)
        for submodule in snapshot.missing:
            self.notes.append(
                f"the submodule {printable(submodule)} has not that commit, so its rows count as new: "
                "fetch its history (`git submodule update --init`, with `git fetch --unshallow` in it)"
            )
        everything = f"all rows of {target} count as new: at the merge base {base[:12]}"
        if not snapshot.files:
            self.notes.append(f"{everything} nothing is there")
        try:
            return self._rows(snapshot, base[:12])
        except DataError as error:
            self.notes.append(f"{everything} it cannot be read ({printable(error, 400)})")
            return Counter()

    def _rows_since(self, name: str, snapshot: Snapshot) -> Counter[Content]:
        if snapshot.missing:
            raise SettingsError(
                f"--base-ref: {name} has the submodule {printable(', '.join(snapshot.missing))}, whose commit is not "
                "here: `git submodule update --init --recursive`."
            )
        for link in snapshot.links:
            here = self._target.joinpath(*link.path)
            # Path.readlink() would not give the text as it is.
            if not here.is_symlink() or not here.exists() or os.fsencode(os.readlink(here)) != link.content():  # noqa: PTH115
                raise SettingsError(
                    f"--base-ref: {_shown(here)} is a link in {name}, but here it is not, or leads elsewhere or "
                    "nowhere, so its rows cannot be judged. Check out what it leads to, or commit the change."
                )
        try:
            return self._rows(snapshot, name)
        except DataError as error:
            raise SettingsError(
                f"--base-ref: what {name} holds cannot be compared with the files here: {error} "
                "Commit what mends it, or leave --base-ref out."
            ) from error

    def _rows(self, snapshot: Snapshot, name: str) -> Counter[Content]:
        if not any(file_kind(Path(self._target.name, *file.path)) for file in snapshot.files):
            return Counter()
        if snapshot not in self._read:
            self._read[snapshot] = _rows_of(snapshot, self._target.name, name, self._reading)
        return self._read[snapshot]


def _rows_of(snapshot: Snapshot, dataset: str, name: str, reading: Reading) -> Counter[Content]:
    """How often the stored dataset holds each row.

    Raises:
        DataError: it cannot be read.
    """
    rows: Counter[Content] = Counter()
    with TemporaryDirectory(prefix="gate-") as folder:
        for file in snapshot.files:
            file.write(Path(folder, dataset))
        try:
            reader = PairReader(Path(folder, dataset), reading)
            rows.update(starmap(content_of, reader.each()))
        except DataError as error:
            raise DataError(str(error).replace(f"{folder}/", f"{name}:")) from error
    return rows


def _by_identity(rows: Counter[Content]) -> Counter[bytes]:
    found = Counter[bytes]()
    for row, count in rows.items():
        found[row.identity] += count
    return found


def _existing(path: Path) -> Path:
    """The absolute path, its links kept: a link is a way around a comparison."""
    target = Path(os.path.abspath(path))  # noqa: PTH100
    if not path.exists():
        raise DataError(
            f"{printable(path)}: no such file or folder, and --base-ref compares files. "
            "Give a local path, or leave --base-ref out."
        )
    if not target.exists() or not target.samefile(path):
        raise DataError(f"{printable(path)}: '..' leads out of a link here. Give the path without '..'.")
    return target


def _shown(path: Path) -> str:
    return printable(os.path.relpath(path))
