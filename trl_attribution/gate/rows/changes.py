"""What a branch adds to a dataset that is kept in git: the lines that a gate judges, and no way around them."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO

from trl_attribution.errors import DataError, SettingsError
from trl_attribution.pairs.rows.files import file_kind
from trl_attribution.pairs.rows.lines import is_one_document
from trl_attribution.pairs.rows.opening import split_word
from trl_attribution.pairs.rows.tables import is_packed
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import printable

Lines = tuple[range, ...]
"""Line numbers counted from 1, as ascending ranges."""

_REGULAR = {"100644", "100755"}
# Variables that git sets for the hooks it runs, or that point it at another repository or make patterns of paths.
_NOT_INHERITED = {
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_NAMESPACE",
    "GIT_GLOB_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
}
_FETCH = (
    "Fetch the branch with its history first: `git fetch origin`; on GitHub `fetch-depth: 0` for actions/checkout, "
    "on GitLab `GIT_DEPTH: 0`, elsewhere `git fetch --unshallow`."
)


@dataclass(frozen=True)
class ChangedLines:
    """What of a dataset differs from the commit where the branch left its base, as :func:`changed_lines` found it."""

    base_ref: str
    base: str
    """The merge base, a commit hash."""
    files: Mapping[Path, Lines | None] = field(default_factory=dict)
    """Changed file, as an absolute path, to its changed lines; None where all of its rows count. A dataset saved by
    ``save_to_disk`` is one entry, its folder."""
    notes: tuple[str, ...] = ()
    """Which files could not be limited to lines and why, and whether nothing changed at all: printable sentences."""


def changed_lines(path: str | Path, base_ref: str) -> ChangedLines:
    """What the working tree adds to or changes in the dataset ``path`` since it left ``base_ref``.

    The comparison is with the merge base of ``base_ref`` and HEAD. A line of a JSONL file counts as changed if the file
    had no such line there (a line that only moved did not change); the file may have been renamed within the dataset.
    All rows count of a file that git does not track or that is new in the dataset, and of changed files that a diff
    cannot limit to lines: compressed files, Parquet, CSV (an added quote changes what the lines after it mean), and
    links. Deleted files do not count.

    Args:
        path: a file or folder, in the working tree of a git repository; its folder may be a part of it.
        base_ref: a branch, tag or commit, such as ``origin/main``.

    Raises:
        SettingsError: git is missing, this is no repository, or the reference is unknown, ambiguous or shares no
            history with HEAD that is here.
        DataError: nothing is at ``path``, or a file cannot be read.
    """
    path = local_path(path)
    target = _absolute(path)
    if not path.exists():
        raise DataError(
            f"{printable(path)}: no such file or folder, and --base-ref compares files. "
            "Give a local path, or leave --base-ref out."
        )
    if not target.exists() or not target.samefile(path):
        raise DataError(f"{printable(path)}: '..' leads out of a link here. Give the path without '..'.")
    git = _open_repository(target)
    base = _merge_base(git, base_ref)
    comparison = _Comparison(git, target, base, _tracked(git, target), _changes(git, target, base))
    found = {file: comparison.of(file) for file in _dataset_files(target)}
    files = {file: change.lines for file, change in found.items() if change.lines != ()}
    notes = [change.note for change in found.values() if change.note]
    if not files:
        notes.append(f"nothing in {_shown(target)} differs from {printable(base_ref)} (merge base {base[:12]})")
    return ChangedLines(base_ref, base, files, tuple(notes))


def _absolute(path: Path) -> Path:
    """Without '..', but with the links that resolve() would follow: a link is a way around a diff."""
    return Path(os.path.abspath(path))  # noqa: PTH100


@dataclass(frozen=True)
class _Change:
    lines: Lines | None
    note: str = ""


@dataclass(frozen=True)
class _Repository:
    top: Path
    """Where paths are counted from, as the user spells it; real path and this one lead to the same folder."""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(_command(self.top, arguments), env=_environment(), capture_output=True, check=False)

    def read(self, *arguments: str) -> bytes:
        """What git prints.

        Raises:
            SettingsError: git fails; what it says is in the message.
        """
        result = self.run(*arguments)
        if result.returncode != 0:
            raise SettingsError(f"git {arguments[0]} failed in {printable(self.top)}: {_complaint(result.stderr)}.")
        return result.stdout

    @contextmanager
    def blob(self, digest: str) -> Iterator[IO[bytes]]:
        """The bytes of a stored file, as a stream."""
        command = _command(self.top, ("cat-file", "blob", digest))
        with subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            yield process.stdout
            while process.stdout.read(1 << 20):
                pass  # git would end with an error if what is left were not read
            complaint = process.stderr.read()
        if process.returncode != 0:
            raise SettingsError(f"git cannot read {digest[:12]} of {printable(self.top)}: {_complaint(complaint)}.")


@dataclass(frozen=True)
class _Before:
    """What the merge base has for a file that differs from it."""

    blob: str
    path: str


@dataclass(frozen=True)
class _Comparison:
    git: _Repository
    target: Path
    base: str
    tracked: Mapping[str, str]
    """Path from the top to its mode."""
    changes: Mapping[str, _Before | None]
    """Path from the top to what the merge base has for it, None where that has nothing."""

    def of(self, file: Path) -> _Change:
        name = str(file.relative_to(self.git.top))
        if file.is_dir():
            return self._saved(file, name)
        if self.tracked.get(name) not in _REGULAR:
            return _whole(file, "git does not track it, or only a link to it")
        if name not in self.changes:
            return _Change(())
        before = self.changes[name]
        if before is None or not self._was_read(before.path, name):
            return _Change(None)
        if not _has_lines(file):
            return _whole(file, "only JSONL that is not compressed can be limited to the lines that changed")
        with _opened(file) as now, self.git.blob(before.blob) as then:
            return _Change(_new_lines(then, now))

    def _saved(self, folder: Path, name: str) -> _Change:
        prefix = "" if name == "." else f"{name}/"
        inner = {str(path.relative_to(self.git.top)) for path in folder.rglob("*") if not path.is_dir()}
        if inner <= self.tracked.keys() and not any(path.startswith(prefix) for path in self.changes):
            return _Change(())
        return _whole(folder, "a save_to_disk folder cannot be limited to rows")

    def _was_read(self, before: str, now: str) -> bool:
        """Whether the file counted as part of this dataset under its old name; else its rows were never judged."""
        if before == now:
            return True
        root = self.target.relative_to(self.git.top)
        if not self.target.is_dir() or not Path(before).is_relative_to(root):
            return False
        old, new = Path(before).relative_to(root), Path(now).relative_to(root)
        return _is_dataset_file(old) and split_word(str(old)) == split_word(str(new))


def _whole(file: Path, reason: str) -> _Change:
    return _Change(None, f"{_shown(file)}: all of its rows are examined ({reason})")


def _shown(path: Path) -> str:
    return printable(os.path.relpath(path))


def _has_lines(file: Path) -> bool:
    """Whether the reader's line numbers are those of the file's bytes; it unpacks by content, whatever the name."""
    if file_kind(file) != "jsonl" or is_packed(file):
        return False
    return not is_one_document(file, str(file))


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    try:
        with file.open("rb") as handle:
            yield handle
    except OSError as error:
        raise DataError(f"{_shown(file)}: cannot be read ({error.strerror}). Check its permissions.") from error


def _new_lines(before: Iterable[bytes], now: Iterable[bytes]) -> Lines:
    """Numbers of the lines of ``now`` that ``before`` does not hold, each line of it standing for one of ``now``."""
    old_lines, numbered = map(_content, before), enumerate(map(_content, now), start=1)
    for number, line in numbered:
        old = next(old_lines, None)
        if old != line:
            # Most branches append: what both begin with needs no memory.
            rest = chain([] if old is None else [old], old_lines)
            known = Counter(_digest(other) for other in rest)
            return _ranges(_unknown(known, chain([(number, line)], numbered)))
    return ()


def _unknown(known: Counter[bytes], numbered: Iterable[tuple[int, bytes]]) -> Iterator[int]:
    for number, line in numbered:
        digest = _digest(line)
        if known[digest] > 0:
            known[digest] -= 1
        else:
            yield number


def _ranges(numbers: Iterable[int]) -> Lines:
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return tuple(found)


def _content(line: bytes) -> bytes:
    """Without its end: git may check files out with other ones, and the last line may have none."""
    return line.rstrip(b"\r\n")


def _digest(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=16).digest()


def _dataset_files(target: Path) -> list[Path]:
    """The files that make up the dataset; a ``save_to_disk`` folder is one by itself."""
    if not target.is_dir() or (target / "dataset_dict.json").exists() or (target / "state.json").exists():
        return [target]
    return [file for file in sorted(target.rglob("*")) if file.is_file() and _is_dataset_file(file.relative_to(target))]


def _is_dataset_file(inner: Path) -> bool:
    return file_kind(inner) is not None and not any(part.startswith(".") for part in inner.parts)


def _open_repository(target: Path) -> _Repository:
    folder = target if target.is_dir() else target.parent
    try:
        result = _top_of(folder)
        for link in (place for place in (folder, *folder.parents) if place.is_symlink()):
            # The repository that holds a link decides, not the one that the link leads to.
            outer = _top_of(link.parent)
            result = outer if outer.returncode == 0 else result
    except FileNotFoundError as error:
        raise SettingsError(
            "--base-ref needs git, which is not installed here. Install it, or leave it out."
        ) from error
    if result.returncode != 0:
        raise SettingsError(
            f"--base-ref: git cannot use {printable(folder)} as a repository: {_complaint(result.stderr)}. "
            "Give a dataset in a git working tree, or leave --base-ref out."
        )
    real = Path(os.fsdecode(result.stdout.removesuffix(b"\n")))
    for place in (folder, *folder.parents):
        if place.samefile(real):
            return _Repository(place)
    raise SettingsError(
        f"--base-ref: {printable(target)} is a link into the repository {printable(real)}. "
        "Give the dataset's path in the working tree itself."
    )


def _top_of(folder: Path) -> subprocess.CompletedProcess[bytes]:
    command = _command(folder, ("rev-parse", "--show-toplevel"))
    return subprocess.run(command, env=_environment(), capture_output=True, check=False)


def _merge_base(git: _Repository, base_ref: str) -> str:
    commit = _commit(git, base_ref)
    result = git.run("merge-base", commit, "HEAD")
    if result.returncode == 0:
        return result.stdout.decode("ascii").strip()
    shallow = git.read("rev-parse", "--is-shallow-repository").strip() == b"true"
    reason = "this clone is shallow, its history was cut off" if shallow else "they have no commit in common"
    said = _complaint(result.stderr) if result.stderr.strip() else reason
    raise SettingsError(f"--base-ref {printable(base_ref)}: no merge base with HEAD: {said}. {_FETCH}")


def _commit(git: _Repository, base_ref: str) -> str:
    shown = printable(base_ref)
    if not base_ref.strip():
        raise SettingsError(
            "--base-ref is empty: a variable of the CI may be unset. Give a branch such as origin/main."
        )
    if base_ref.startswith("-") or not base_ref.isprintable():
        raise SettingsError(f"--base-ref {shown}: not the name of a branch, tag or commit, such as origin/main.")
    result = git.run("rev-parse", "--verify", f"{base_ref}^{{commit}}")
    if b"is ambiguous" in result.stderr:
        raise SettingsError(
            f"--base-ref {shown}: several branches or tags have this name. Spell it in full, "
            "such as refs/remotes/origin/main."
        )
    if result.returncode != 0:
        raise SettingsError(f"--base-ref {shown}: unknown here. {_FETCH}")
    return result.stdout.decode("ascii").strip()


def _tracked(git: _Repository, target: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in _entries(git.read("ls-files", "-z", "--stage", "--", _pathspec(git, target))):
        attributes, _, name = entry.partition("\t")
        mode, _, stage = attributes.split(" ")
        # A file in conflict is there more than once, under the stages 1 to 3.
        found[name] = mode if stage == "0" else ""
    return found


def _changes(git: _Repository, target: Path, base: str) -> dict[str, _Before | None]:
    """What differs between the merge base and the working tree, by its path of today; deletions left out."""
    options = ("-z", "--raw", "-r", "--find-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=none")
    entries = iter(_entries(git.read("diff-index", *options, base, "--", _pathspec(git, target))))
    found: dict[str, _Before | None] = {}
    for entry in entries:
        mode, mode_now, blob, blob_now, status = entry.removeprefix(":").split(" ")
        old = next(entries)
        name = next(entries) if status[0] in "RC" else old
        # No blob of today: the file is newer than git's index, which need not mean that it differs.
        unknown = status == "M" and mode == mode_now and not blob_now.strip("0")
        if status[0] == "D" or (unknown and git.read("hash-object", "--", name).decode("ascii").strip() == blob):
            continue
        found[name] = _Before(blob, old) if mode in _REGULAR else None
    return found


def _entries(output: bytes) -> list[str]:
    return [os.fsdecode(entry) for entry in output.split(b"\0") if entry]


def _pathspec(git: _Repository, target: Path) -> str:
    return str(target.relative_to(git.top))


def _command(folder: Path, arguments: Iterable[str]) -> list[str]:
    # No pager, no prompt, no lock: reading must not disturb a git that works beside us.
    return ["git", "--no-pager", "--no-optional-locks", "--literal-pathspecs", "-C", str(folder), *arguments]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    return {**kept, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}


def _complaint(stderr: bytes) -> str:
    return printable(stderr.decode("utf-8", "replace").strip() or "it gives no reason", 400).rstrip(".")
