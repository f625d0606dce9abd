"""An audit as it lies on disk, and what can be asked of it: flags, source tables, manifests."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import filelock
import torch

from trl_attribution.audit.census import PairIndex
from trl_attribution.errors import SettingsError, StoreError, describe_difference
from trl_attribution.manifest import Decision, Manifest, ManifestHeader
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Reading, SkippedRow, Survey
from trl_attribution.pairs.rows import RowSource
from trl_attribution.probes import Probe
from trl_attribution.scoring import Flags, Rule, Scores, SourceRow, flag, source_table
from trl_attribution.store import StoreSettings, VectorStore
from trl_attribution.utils.atomic import write_json
from trl_attribution.utils.format_version import check_format_version

AUDIT_FORMAT = "trl-attribution audit"
SETTINGS_FORMAT = "trl-attribution audit settings"
AUDIT_VERSION = 1
_PACKAGES = ("trl-attribution", "torch", "transformers", "trl", "datasets", "accelerate", "safetensors")


@dataclass(frozen=True)
class AuditInfo:
    """``audit.json``: what was audited, with what, and what it cost."""

    dataset: Mapping[str, Any]
    model: Mapping[str, Any]
    probes: Mapping[str, str]
    """Fingerprint of each probe by name."""
    settings: Mapping[str, Any]
    vectors: Mapping[str, Any]
    cost: Mapping[str, Any]
    versions: Mapping[str, str]
    training: Mapping[str, Any] | None = None
    """How the vectors were read while training; None for an audit of a dataset by itself."""

    def save(self, folder: Path) -> None:
        """Write ``audit.json``, atomically."""
        write_json(folder / "audit.json", {"format": AUDIT_FORMAT, "format_version": AUDIT_VERSION, **asdict(self)})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read ``audit.json``.

        Raises:
            StoreError: there is no finished audit, or a newer version wrote it.
        """
        path = Path(folder) / "audit.json"
        values = read_json(path, AUDIT_FORMAT, AUDIT_VERSION)
        if values is None:
            raise StoreError(
                f"there is no finished audit at {folder}: it has no audit.json. Run `trl-attribution audit`."
            )
        try:
            return cls(
                **{name: values[name] for name in cls.__dataclass_fields__ if name != "training"},
                training=values.get("training"),
            )
        except KeyError as error:
            raise StoreError(f"{path} is broken: it lacks {error}. Run the audit again.") from error


def check_folder(folder: Path) -> None:
    """Make sure that an audit can be written to ``folder``, before hours are spent on it; nothing is written.

    Raises:
        StoreError: a file is in the way, the folder is not writable, or a newer version wrote what is there.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise StoreError(f"cannot write to {folder}: {there} is a file. Choose another output folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StoreError(f"cannot write to {folder}: {there} is read-only. Choose another output folder.")
    read_json(folder / "audit.json", AUDIT_FORMAT, AUDIT_VERSION)
    read_json(folder / "settings.json", SETTINGS_FORMAT, AUDIT_VERSION)


class FolderClaim:
    """Binds ``folder`` to one dataset and one way of computing vectors, before anything else is written to it.

    Raises:
        SettingsError: it is bound to another; both are printed.
    """

    def __init__(self, folder: Path, vectors: Path, settings: StoreSettings, survey: Survey, name: str) -> None:
        self._folder = folder
        self._path = folder / "settings.json"
        self._vectors = vectors
        self._name = name
        self._asked = {"dataset_fingerprint": survey.fingerprint, "pairs": survey.pairs, **settings.as_dict()}
        self._new_folders = [path for path in (vectors, folder) if not path.exists()]
        self._shards = self._shard_files()
        self._new_files = [path for path in (vectors / "store.json", self._path) if not path.exists()]
        self._written = False
        self._is_bound()

    def write(self) -> None:
        """Write ``settings.json``, unless it is there.

        Raises:
            SettingsError: a simultaneous audit has bound the folder to something else; both are printed.
            AttributionError: the folder cannot be written.
        """
        if not self._is_bound():
            header = {"format": SETTINGS_FORMAT, "format_version": AUDIT_VERSION}
            write_json(self._path, {**header, "dataset": self._name, "bound_to": self._asked})
            self._written = True

    def _is_bound(self) -> bool:
        stored = read_json(self._path, SETTINGS_FORMAT, AUDIT_VERSION)
        if stored is None:
            return False
        if stored.get("bound_to") != self._asked:
            raise SettingsError(
                f"{self._folder} holds an audit made with something else:\n"
                f"{describe_difference(dict(stored.get('bound_to') or {}), self._asked)}\n"
                "Choose another output folder. To compute only the pairs that are new to a dataset, give it the "
                f"vectors of this one: --vectors {self._folder / 'vectors'}"
            )
        return True

    @contextmanager
    def released_on_failure(self) -> Iterator[None]:
        """Undo the claim where the block fails before it stores a vector: the next attempt may be another one."""
        try:
            yield
        except BaseException:
            self._release()
            raise

    def _shard_files(self) -> set[Path]:
        return set(self._vectors.glob("shards/*.safetensors"))

    def _release(self) -> None:
        """Remove what this claim made, unless a simultaneous audit writes there or has bound the folder itself."""
        lock = filelock.FileLock(self._vectors / "writer.lock", timeout=0)
        try:
            with lock:
                # Asked only now: until the lock was ours, another process could still add shards.
                if self._shard_files() == self._shards and (self._written or not self._path.exists()):
                    self._remove(self._new_files, self._new_folders)
        except filelock.Timeout:
            # Somebody writes to these vectors. Where they lie elsewhere, that audit has a folder of its own.
            if self._written and self._folder.resolve() not in self._vectors.resolve().parents:
                self._remove([self._path], [path for path in self._new_folders if path == self._folder])
        except OSError:
            pass  # the folder was never made, or nothing can be changed in it

    def _remove(self, files: list[Path], folders: list[Path]) -> None:
        for file in files:
            file.unlink(missing_ok=True)
        if self._vectors in folders:
            (self._vectors / "writer.lock").unlink(missing_ok=True)
            folders = [self._vectors / "shards", *folders]
        for folder in folders:
            with suppress(OSError):  # somebody else's files are in it, or it was never made
                folder.rmdir()


@dataclass(frozen=True)
class Flagged:
    """The flagged pairs of one audit."""

    audit: Audit
    flags: Flags

    def __len__(self) -> int:
        return len(self.flags)

    def sources(self) -> list[SourceRow]:
        """How much of each source is flagged, strongest evidence first."""
        return source_table(self.flags, self.audit.index.sources)

    def to_manifest(self, action: Literal["filter", "flip"]) -> Manifest:
        """A manifest that filters or flips the flagged pairs.

        Pairs that score 0 or less are left out and counted as ``left_out_not_towards``: removing them does nothing
        against the behavior, and flipping them would teach it.

        Raises:
            SettingsError: ``action`` is neither ``filter`` nor ``flip``.
        """
        if action not in ("filter", "flip"):
            raise SettingsError(f"action: {action!r} is unknown; choose filter or flip")
        decisions = tuple(
            Decision(
                pair_id=found.pair_id,
                row=int(self.audit.index.rows[found.position]),
                action=action,
                probe=found.probe,
                score=round(found.score, 7),
                rank=found.rank,
                q_value=found.q_value,
            )
            for found in self.flags
            if found.score > 0
        )
        info = self.audit.info
        header = ManifestHeader(
            action=action,
            dataset_fingerprint=info.dataset["fingerprint"],
            model_fingerprint=info.model["digest"],
            probe_fingerprints=dict(info.probes),
            rule={**self.flags.rule.as_dict(), "columns": self._columns()},
            counts={"pairs": len(self.audit.index), "left_out_not_towards": len(self.flags) - len(decisions)},
            reading=asdict(self.audit.reading),
        )
        return Manifest(header, decisions)

    def save_manifests(self) -> dict[str, str]:
        """Write ``manifest.filter.jsonl`` and ``manifest.flip.jsonl`` into the audit folder: their paths by action."""
        actions: tuple[Literal["filter", "flip"], ...] = ("filter", "flip")
        paths = {action: self.audit.folder / f"manifest.{action}.jsonl" for action in actions}
        for action, path in paths.items():
            self.to_manifest(action).save(path)
        return {action: str(path) for action, path in paths.items()}

    def _columns(self) -> list[dict[str, Any]]:
        """The score columns that the rule looked at, with the null behind each one's q-values."""
        return [{**asdict(column), "null": self.flags.nulls[column.probe]} for column in self.flags.columns]


@dataclass(frozen=True)
class Audit:
    """The result of :meth:`DataAuditor.audit`."""

    folder: Path
    info: AuditInfo
    store: VectorStore
    index: PairIndex
    scores: Scores | None
    """None where no probes were given."""
    probes: tuple[Probe, ...]
    reading: Reading
    skipped: tuple[SkippedRow, ...] = ()
    """Rows left out, with the reason each; none unless ``on_bad_row="skip"``."""
    source: RowSource | None = None
    """The dataset that was audited, as it was opened; None for an audit that was opened again."""
    is_main: bool = True
    """False on the ranks that did not merge and score: they know neither the index nor the scores."""

    def flag(
        self,
        *,
        top_k: int | None = None,
        threshold: float | None = None,
        fdr: float | None = None,
        recall: float | None = None,
        probe: str | None = None,
        layer: int | None = None,
    ) -> Flagged:
        """The pairs that push towards a behavior, by exactly one rule; see :class:`Rule`.

        Raises:
            SettingsError: none or several rules, a value out of range, an unknown probe or layer, or an audit
                without probes.
        """
        if not self.is_main:
            raise SettingsError("flag: only the main process has the scores; ask it (Audit.is_main tells which it is)")
        if self.scores is None:
            raise SettingsError("flag: this audit has no scores; audit again with probes")
        return Flagged(self, flag(self.scores, Rule(top_k, threshold, fdr, recall), probe, layer))


def remove_results(folder: Path) -> None:
    """Remove what an earlier audit in ``folder`` derived from its vectors, so that nothing stale stands beside new."""
    for name in ("scores.parquet", "manifest.filter.jsonl", "manifest.flip.jsonl", "report.html"):
        (folder / name).unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    return {"python": platform.python_version(), **{package: version(package) for package in _PACKAGES}}


def model_info(model: LoadedModel, dtype: str) -> dict[str, Any]:
    """M0 as ``audit.json`` describes it; ``dtype`` is what it computed in."""
    return {
        "name": model.name,
        "fingerprint": model.fingerprint.to_json(),
        "digest": model.fingerprint.digest,
        "dtype": dtype,
        "device": model.device,
    }


def machine() -> dict[str, Any]:
    """The machine, and the most memory that this process has used."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cuda = torch.cuda.is_available()
    return {
        "peak_memory_bytes": peak,
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "device_name": torch.cuda.get_device_name() if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def read_json(path: Path, expected: str, newest: int) -> dict[str, Any] | None:
    """The object in ``path``, which has to be of the ``expected`` format; None where there is no such file.

    Raises:
        StoreError: it cannot be read, is of another format, or of a version above ``newest``.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read {path}: {error}. Choose another folder, or remove this one.") from error
    if not isinstance(values, dict) or values.get("format") != expected:
        raise StoreError(f"{path} was not written by an audit; choose another folder")
    check_format_version(values.get("format_version"), newest, path)
    return values
