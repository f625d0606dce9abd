"""What a dataset was at a commit, from git's objects alone: no index flag, attribute, filter or rename has a say."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trl_attribution.errors import SettingsError
from trl_attribution.utils.text import printable

_LINK = "120000"
_SUBMODULE = "160000"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
# Of git's variables only those of configuration and access: others point it at another repository, history or index.
_INHERITED = ("GIT_CONFIG", "GIT_SSH", "GIT_SSL", "GIT_ASKPASS")
_FETCH = (
    "Fetch the branch with its history first: `git fetch origin`; on GitHub `fetch-depth: 0` for actions/checkout, "
    "on GitLab `GIT_DEPTH: 0`, elsewhere `git fetch --unshallow`."
)
Parts = tuple[str, ...]
"""A path within a repository or dataset, part by part."""


@dataclass(frozen=True)
class StoredFile:
    """A file as git keeps it."""

    path: Parts
    """Seen from the dataset; empty where the dataset is this file."""
    blob: str
    repository: Repository = field(compare=False)

    def content(self) -> bytes:
        """Its bytes; of a link, the path that it leads to."""
        return self.repository.read("cat-file", "blob", self.blob)

    def write(self, root: Path) -> None:
        """Write it to its place below ``root``; of a file in Git LFS what it stands for, where that is stored here."""
        target = root.joinpath(*self.path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as handle:  # two names that differ only in case are one file on some disks
                self.repository.run("cat-file", "blob", self.blob, into=handle.fileno())
        except OSError as error:
            raise SettingsError(
                f"--base-ref: cannot write {printable('/'.join(self.path))} to {root.parent} ({error.strerror}). "
                "Set TMPDIR to a folder with enough space that keeps names apart that differ only in case."
            ) from error
        stored = self.repository.lfs_object(target)
        if stored is not None:
            target.unlink()
            target.symlink_to(stored)


@dataclass(frozen=True)
class Snapshot:
    """The files of a dataset at one commit or in the index."""

    files: frozenset[StoredFile]
    links: frozenset[StoredFile]
    """What they lead to is not the commit's: only their text is stored."""
    missing: tuple[str, ...]
    """Submodules whose recorded commit is not here."""


@dataclass(frozen=True)
class Repository:
    """A git repository with a working tree."""

    top: Path
    """Where paths are counted from, as the user spells it."""

    @classmethod
    def around(cls, target: Path) -> Repository:
        """The repository whose branch decides over ``target``, an absolute path.

        It is the innermost one, but what is reached through a submodule or a link belongs to whoever holds that:
        a request to it changes what lies there.

        Raises:
            SettingsError: git is missing, or there is no repository that it can use.
        """
        top, linked = None, False
        for place in (target, *target.parents):
            if (place / ".git").exists() and (top is None or linked or cls(place).has_submodule(top)):
                top, linked = place, False
            linked = linked or place.is_symlink()
        if top is None:
            raise SettingsError(
                f"--base-ref: {printable(target)} is in no git working tree, or reached through a link from outside of "
                "one. Give the dataset's path in the working tree itself, or leave --base-ref out."
            )
        found = cls(top)
        real = os.fsdecode(found.read("rev-parse", "--show-toplevel").removesuffix(b"\n"))
        if not top.samefile(real):
            raise SettingsError(f"--base-ref: the working tree of {printable(top)} is {printable(real)}. Go there.")
        return found

    def run(self, *arguments: str, into: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
        """Run git, its output kept or written to the file descriptor ``into``.

        Raises:
            SettingsError: git is missing, or fails; what it says is in the message.
        """
        result = self._try(*arguments, into=into)
        if result.returncode != 0:
            raise SettingsError(
                f"--base-ref: git {arguments[0]} failed in {printable(self.top)}: {_complaint(result.stderr)}."
            )
        return result

    def read(self, *arguments: str) -> bytes:
        """What git prints; raises as :meth:`run`."""
        return self.run(*arguments).stdout

    def merge_bases(self, base_ref: str) -> tuple[str, ...]:
        """The commits where HEAD left ``base_ref``: one, or several where each was merged into the other.

        Raises:
            SettingsError: the reference is unknown or ambiguous, or the history that decides is not here.
        """
        commit = self._commit(base_ref)
        result = self._try("merge-base", "--all", commit, "HEAD")
        bases = tuple(result.stdout.decode("ascii").split())
        shown = f"--base-ref {printable(base_ref)}: no merge base with HEAD"
        shallow = self.top / os.fsdecode(self.read("rev-parse", "--git-path", "shallow").removesuffix(b"\n"))
        cut = set(shallow.read_text("ascii").split()) if shallow.exists() else set()
        if cut and bases:
            # Where a line of history is cut before it reaches these commits, a later one may be the true merge base.
            cut &= set(self.read("rev-list", commit, "HEAD", "--not", *bases).decode("ascii").split())
        if cut:
            raise SettingsError(f"{shown} that is sure: this clone is shallow, its history was cut off. {_FETCH}")
        if result.returncode != 0:
            said = _complaint(result.stderr) if result.stderr.strip() else "they have no commit in common"
            raise SettingsError(f"{shown}: {said}. {_FETCH}")
        return bases

    def at(self, commit: str, place: Parts) -> Snapshot:
        """The dataset at ``place`` as ``commit`` has it, submodules at the commits that it records."""
        return self._snapshot(self._tree(commit), place)

    def staged(self, place: Parts) -> Snapshot:
        """The dataset at ``place`` as the index has it."""
        entries = _entries(self.read("ls-files", "-z", "--stage", "--full-name"))
        return self._snapshot(((each[0], each[1], name) for each, name in entries if each[2] == "0"), place)

    def lfs_object(self, file: Path) -> Path | None:
        """What a pointer of Git LFS stands for, where it is stored here; None also for any other file."""
        if file.stat().st_size > 1024 or not (pointer := file.read_bytes()).startswith(_LFS_POINTER):
            return None
        digest = next((line[11:].decode() for line in pointer.splitlines() if line.startswith(b"oid sha256:")), "")
        common = os.fsdecode(self.read("rev-parse", "--git-common-dir").removesuffix(b"\n"))
        stored = (self.top / common / "lfs" / "objects" / digest[:2] / digest[2:4] / digest).absolute()
        if not stored.is_file():
            return None
        with stored.open("rb") as handle:
            return stored if hashlib.file_digest(handle, "sha256").hexdigest() == digest else None

    def _tree(self, commit: str) -> Iterator[tuple[str, str, str]]:
        entries = _entries(self.read("ls-tree", "-r", "-z", "--full-tree", commit))
        return ((each[0], each[2], name) for each, name in entries)

    def _snapshot(self, entries: Iterable[tuple[str, str, str]], place: Parts) -> Snapshot:
        missing: list[str] = []
        found = list(self._files(entries, place, (), missing))
        links = frozenset(file for file, mode in found if mode == _LINK)
        return Snapshot(frozenset(file for file, mode in found if mode != _LINK), links, tuple(missing))

    def _files(
        self, entries: Iterable[tuple[str, str, str]], place: Parts, prefix: Parts, missing: list[str]
    ) -> Iterator[tuple[StoredFile, str]]:
        for mode, digest, name in entries:
            parts = tuple(name.split("/"))
            below, above = parts[: len(place)] == place, place[: len(parts)] == parts
            seen = prefix + parts[len(place) :]
            if mode != _SUBMODULE and below and ".." not in parts:
                yield StoredFile(seen, digest, self), mode
            elif mode == _SUBMODULE and (below or above):
                inner = Repository(self.top / name)
                # Without a repository of its own there, git would look for one further out.
                there = (inner.top / ".git").exists() and inner._try("cat-file", "-e", digest).returncode == 0
                if there:
                    yield from inner._files(inner._tree(digest), place[len(parts) :], seen, missing)
                else:
                    missing.append(f"{name} ({digest[:12]})")

    def has_submodule(self, inner: Path) -> bool:
        """Whether the folder ``inner`` is one, by HEAD or the index."""
        name = str(inner.relative_to(self.top))
        listed = [self.read("ls-files", "-z", "--stage", "--", name), self._try("ls-tree", "-z", "HEAD", name).stdout]
        return any(
            attributes[0] == _SUBMODULE and found == name for output in listed for attributes, found in _entries(output)
        )

    def _commit(self, base_ref: str) -> str:
        shown = printable(base_ref)
        if not base_ref.strip():
            raise SettingsError(
                "--base-ref is empty: a variable of the CI may be unset. Give a branch such as origin/main."
            )
        if base_ref.startswith("-") or not base_ref.isprintable():
            raise SettingsError(f"--base-ref {shown}: not the name of a branch, tag or commit, such as origin/main.")
        result = self._try("rev-parse", "--verify", f"{base_ref}^{{commit}}")
        if b"is ambiguous" in result.stderr:
            raise SettingsError(
                f"--base-ref {shown}: several branches or tags have this name. Spell it in full, "
                "such as refs/remotes/origin/main."
            )
        if result.returncode != 0:
            raise SettingsError(f"--base-ref {shown}: unknown here. {_FETCH}")
        return result.stdout.decode("ascii").strip()

    def _try(self, *arguments: str, into: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
        # No pager, no lock: reading must not disturb a git that works beside us.
        command = ["git", "--no-pager", "--no-optional-locks", "--literal-pathspecs", "--no-replace-objects"]
        command += ["-c", "core.warnAmbiguousRefs=true", "-c", "advice.graftFileDeprecated=false"]
        command += ["-C", str(self.top), *arguments]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        kept |= {name: value for name, value in os.environ.items() if name.startswith(_INHERITED)}
        # Grafts are another way to change what a commit's parents are.
        kept |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_GRAFT_FILE": os.devnull}
        try:
            return subprocess.run(command, env=kept, stdout=into, stderr=subprocess.PIPE, check=False)
        except FileNotFoundError as error:
            raise SettingsError(
                "--base-ref needs git, which is not installed here. Install it, or leave it out."
            ) from error


def _entries(output: bytes) -> Iterator[tuple[list[str], str]]:
    """The attributes and the name of each entry that ls-tree and ls-files list."""
    for entry in output.split(b"\0"):
        if entry:
            attributes, _, name = os.fsdecode(entry).partition("\t")
            yield attributes.split(" "), name


def _complaint(stderr: bytes) -> str:
    return printable(stderr.decode("utf-8", "replace").strip() or "it gives no reason", 400).rstrip(".")
