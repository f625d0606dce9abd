"""Files and folders that appear whole or not at all: written under a name of their own, flushed to disk, renamed."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trl_attribution.errors import AttributionError
from trl_attribution.utils.text import json_bytes

_MACHINE = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
_PART = re.compile(rf".*\.{_MACHINE}-(\d+)-\d+\.part", re.DOTALL)
_COUNT = itertools.count()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path that ends in ``.part`` to write to; on success flush it and rename it to ``path``.

    The part is this writer's own: of several that write ``path`` at once each puts its whole content there, and the
    last one's stays. On any exception it is removed and ``path`` is untouched. Missing parent folders are made.

    Raises:
        AttributionError: the disk is full or the folder cannot be written; the message names the path.
    """
    target = Path(path)
    part = part_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_away(target.parent.absolute())
        yield part
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(part, target)
        flush_folder(target.parent)
    except OSError as error:
        # Where the folder itself cannot be made, there is no part file to remove either.
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise _cannot_write(target, error) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success flush all that is in it and rename it to ``path``.

    Its name ends in ``.part`` and is this writer's own. On any exception it is removed and ``path`` is untouched.
    Missing parent folders are made; a folder that is at ``path`` already, unless empty, is an error.

    Raises:
        AttributionError: the disk is full or the folder cannot be written; the message names the path.
    """
    target = Path(path)
    part = part_of(target)
    try:
        part.mkdir(parents=True)
        _clear_away(target.parent.absolute())
        yield part
        for folder, _, files in os.walk(part):
            for name in files:
                with Path(folder, name).open("rb") as handle:
                    os.fsync(handle.fileno())
            flush_folder(Path(folder))
        os.replace(part, target)
        flush_folder(target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def part_of(target: Path) -> Path:
    """A name beside ``target`` that no other writer has: of no other machine, process or call."""
    return target.with_name(f"{target.name}.{_MACHINE}-{os.getpid()}-{next(_COUNT)}.part")


@functools.cache
def _clear_away(folder: Path) -> None:
    """Remove, once, what writers of this machine left in ``folder`` when they were killed."""
    with suppress(OSError):  # what cannot be cleared away is in nobody's way
        for path in folder.iterdir():
            found = _PART.fullmatch(path.name)
            if found is None or _is_alive(int(found[1])):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # where asking would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; keys keep their order."""
    with atomic_path(path) as part:
        part.write_bytes(json_bytes(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"))


def write_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``rows`` as JSON lines, atomically."""
    with atomic_path(path) as part, part.open("wb") as handle:
        handle.writelines(json_bytes(json.dumps(row, ensure_ascii=False) + "\n") for row in rows)


def _cannot_write(target: Path, error: OSError) -> AttributionError:
    return AttributionError(
        f"cannot write {target}: {error.strerror or error}. "
        "Free some space or choose another output folder; nothing was left half-written."
    )


def flush_folder(folder: Path) -> None:
    """Make the rename itself durable (POSIX keeps it in the folder's own data)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
