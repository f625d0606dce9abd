"""What a rank or job notes beside its part of the vectors, and how it takes its place in an audit folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from trl_attribution.audit.folder import FolderClaim, read_json
from trl_attribution.audit.shares import Share
from trl_attribution.errors import StoreError
from trl_attribution.pairs import Survey
from trl_attribution.store import StoreSettings, VectorStore
from trl_attribution.store.merging import part_folder
from trl_attribution.utils.atomic import write_json

PART_FORMAT = "trl-attribution audit part"
PART_VERSION = 1
_FILE = "part.json"
_PATIENCE = 120.0


@dataclass(frozen=True)
class PartRecord:
    """``part.json``: whose part it is, and what it cost so far."""

    share: str
    """``3/8``: the third of eight."""
    began: float
    """Seconds since the epoch."""
    model: Mapping[str, Any]
    """M0, as ``audit.json`` describes it."""
    cost: Mapping[str, Any] | None = None
    """What the last run took; None until one has ended."""

    def save(self, part: Path) -> None:
        """Write ``part.json`` into the folder of the part, atomically."""
        write_json(part / _FILE, {"format": PART_FORMAT, "format_version": PART_VERSION, **asdict(self)})

    @classmethod
    def load(cls, part: Path) -> PartRecord | None:
        """The record in the folder of a part, None where there is none.

        Raises:
            StoreError: it is broken or of a newer version.
        """
        values = read_json(part / _FILE, PART_FORMAT, PART_VERSION)
        if values is None:
            return None
        try:
            return cls(**{name: values[name] for name in cls.__dataclass_fields__})
        except KeyError as error:
            raise StoreError(f"{part / _FILE} is broken: it lacks {error}. Run that shard again.") from error


class PartClaim:
    """Binds an audit folder, and a part of it, to one dataset and one way of computing vectors.

    Ranks and jobs do so one after the other, under a lock: the first one binds the folder, the others compare.
    """

    def __init__(self, folder: Path, vectors: Path, share: Share) -> None:
        self.part = part_folder(folder, share.index)
        self._folder = folder
        self._vectors = vectors

    def take(self, settings: StoreSettings, survey: Survey, name: str) -> VectorStore:
        """The part's own store, made or opened.

        Raises:
            SettingsError: the folder or the part was made with something else; both are printed.
            StoreError: a part is broken, or the folder cannot be written.
        """
        claim = FolderClaim(self._folder, self._vectors, settings, survey, name)  # refuses before anything is written
        with self._locked():
            claim.write()
            return VectorStore.create(self.part, settings)

    @contextmanager
    def released_on_failure(self) -> Iterator[None]:
        """Undo what was taken where the block fails before anybody stores a vector: the next attempt may be another."""
        try:
            yield
        except BaseException:
            self._release()
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        parts = self._folder / "parts"
        try:
            parts.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(parts / "claim.lock", timeout=_PATIENCE):
                yield
        except filelock.Timeout:
            raise StoreError(
                f"{parts / 'claim.lock'} is held by another process for more than {_PATIENCE:.0f} s: end it, or choose "
                "another output folder"
            ) from None
        except OSError as error:
            raise StoreError(
                f"cannot write to {self._folder}: {error.strerror or error}. Choose another folder."
            ) from error

    def _release(self) -> None:
        with suppress(StoreError), self._locked():
            if not self._remove_part():
                return
            others = [path for path in (self._folder / "parts").iterdir() if path.is_dir()]
            if others or _has_shards(self._vectors) or (self._folder / "audit.json").exists():
                return
            (self._folder / "settings.json").unlink(missing_ok=True)
            (self._folder / "parts" / "claim.lock").unlink(missing_ok=True)
            for folder in (self._folder / "parts", self._folder):
                with suppress(OSError):  # somebody else's files are in it
                    folder.rmdir()

    def _remove_part(self) -> bool:
        """Remove the part, unless a simultaneous start of the same share is about to store its first vectors there."""
        try:
            with filelock.FileLock(self.part / "writer.lock", timeout=0):
                # Asked only now: until the lock was ours, another process could still add shards.
                if not _has_shards(self.part):
                    shutil.rmtree(self.part, ignore_errors=True)
        except filelock.Timeout:
            return False
        return True


def remove_parts(folder: Path) -> None:
    """Remove all parts of an audit folder, once they are merged."""
    shutil.rmtree(folder / "parts", ignore_errors=True)


def total_cost(records: Sequence[PartRecord]) -> dict[str, Any]:
    """What computing the vectors took, on all ranks and jobs together.

    Seconds, memory and what describes a machine are those of the slowest or largest; tokens and FLOPs are summed.
    """
    costs = [record.cost for record in records if record.cost is not None]
    if not costs:
        return {}
    total = dict(max(costs, key=lambda cost: float(cost["seconds"])))
    for key in ("tokens_computed", "tokens_in_sequences", "flops"):
        total[key] = sum(cost[key] for cost in costs)
    for key in ("peak_memory_bytes", "peak_device_memory_bytes"):
        total[key] = max((cost[key] for cost in costs if cost[key] is not None), default=None)
    total["parts"] = len(costs)
    total["device_seconds"] = round(sum(float(cost["seconds"]) for cost in costs), 3)
    return total


def _has_shards(store: Path) -> bool:
    return any((store / "shards").glob("*.safetensors"))
