"""Probes on disk: one folder a probe, NAME/probe.safetensors + NAME/probe.json, that appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from pydantic import BaseModel, TypeAdapter

from trl_attribution.behaviors.names import check_name
from trl_attribution.errors import WRONG_VALUES, ProbeError
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.probes.probe import Probe
from trl_attribution.utils.atomic import flush_folder
from trl_attribution.utils.json_file import DescribedFile, validated
from trl_attribution.utils.text import json_bytes, printable

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "trl-attribution probe"
VERSION = 3
"""2 added the behavior's own pairs and controls, 3 the center of everyday prompts; older files have none of it."""
SIGN = "towards"
AXES = {
    "vector": ["layer", "hidden"],
    "prompt_vectors": ["prompt", "layer", "hidden"],
    "contexts": ["prompt", "layer", "hidden"],
    "reference_scores": ["layer", "reference"],
    "reference_center": ["layer", "hidden"],
    "example_vectors": ["example", "layer", "hidden"],
    "example_prompts": ["example"],
    "control_contexts": ["control", "layer", "hidden"],
    "control_vectors": ["control pair", "layer", "hidden"],
    "control_prompts": ["control pair"],
    "neutral_center": ["layer", "hidden"],
}
_AXES_OF = {1: dict(list(AXES.items())[:4]), 2: dict(list(AXES.items())[:10]), VERSION: AXES}
"""By version."""
_TENSORS, _DESCRIPTION = "probe.safetensors", "probe.json"
_OF_THE_FILE = ("version", "sign", "axes", "fingerprint")
_AGAIN = "Build the probe again."


class ProbeRegistry:
    """A folder of probes. Iterating gives every probe in order of name.

    A visible subfolder is a probe; one that cannot be read is an error, never skipped. Several processes can
    save into one registry: writers take turns by a lock file.
    """

    def __init__(self, path: str | Path) -> None:
        """``path`` is the registry's folder; it is made when the first probe is saved."""
        self.path = Path(path)

    def names(self) -> list[str]:
        """Names of all probes, sorted.

        Raises:
            ProbeError: the folder does not exist, or cannot be read.
        """
        if not self.path.is_dir():
            raise ProbeError(
                f"no probe registry at {self.path}: not a folder. "
                "Build a probe with `trl-attribution probe build NAME --probes FOLDER` first, or check the path."
            )
        try:
            folders = [entry for entry in self.path.iterdir() if entry.is_dir()]
        except OSError as error:
            raise ProbeError(f"cannot read the probe registry {self.path}: {error.strerror or error}") from error
        visible = {entry.name for entry in folders if not entry.name.startswith(".")}
        set_aside = {
            entry.name[1:-4] for entry in folders if entry.name.startswith(".") and entry.name.endswith(".old")
        }
        return sorted(visible | set_aside)

    def __len__(self) -> int:
        return len(self.names())

    def __iter__(self) -> Iterator[Probe]:
        return (self.load(name) for name in self.names())

    def __contains__(self, name: object) -> bool:
        return self.path.is_dir() and name in self.names()

    def load(self, name: str) -> Probe:
        """The probe called ``name``.

        Raises:
            ProbeError: there is none (the message lists what there is), or its files are broken, foreign, or
                written by a newer version.
        """
        check_name(name)
        there = self.names()
        if name not in there:
            raise ProbeError(f"no probe {name!r} in {self.path}; there {_count(there)}")
        return read_probe(self._folder(name), expected_name=name)

    def load_all(self, names: Sequence[str] | None = None) -> list[Probe]:
        """The probes called ``names`` in that order, or all of them in order of name.

        Raises:
            ProbeError: the registry is empty, a name is not there (all missing ones are named and what there is
                is listed), or a probe cannot be read.
        """
        there = self.names()
        wanted = there if names is None else list(dict.fromkeys(names))
        missing = [name for name in wanted if name not in there]
        if missing:
            listed = ", ".join(repr(printable(name, 80)) for name in missing)
            raise ProbeError(f"no probe {listed} in {self.path}; there {_count(there)}")
        if not wanted:
            raise ProbeError(f"the probe registry {self.path} holds no probes; build or import one first")
        return [self.load(name) for name in wanted]

    def save(self, probe: Probe, overwrite: bool = False) -> Path:
        """Write ``probe`` to its folder and return that; the folder appears whole or not at all.

        With ``overwrite`` an existing probe of that name is replaced; when that fails, or the process dies in
        between, the old one is still there.

        Raises:
            ProbeError: the name is taken and ``overwrite`` is not set, the description has values that JSON
                cannot hold, or the folder cannot be written.
        """
        files = {_TENSORS: _render_tensors(probe)}
        files[_DESCRIPTION] = _render_description(probe, files[_TENSORS])
        target = self.path / probe.name
        with self._writing(), _explained(target):
            self._clean_up(probe.name)
            if target.exists() and not overwrite:
                raise ProbeError(
                    f"probe {probe.name!r} is already in {self.path}. "
                    "Choose another name, or ask for it to be overwritten (--overwrite)."
                )
            self._put(target, files)
        return target

    def _put(self, target: Path, files: dict[str, bytes]) -> None:
        part, old = target.with_name(f".{target.name}.part"), self._set_aside(target.name)
        try:
            part.mkdir()
            for name, content in files.items():
                _write_flushed(part / name, content)
            flush_folder(part)
            if target.exists():
                os.replace(target, old)
            os.replace(part, target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            if old.exists() and not target.exists():
                os.replace(old, target)
            raise
        flush_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _folder(self, name: str) -> Path:
        """Where the probe called ``name`` lies: set aside, if a process died while replacing it."""
        target, old = self.path / name, self._set_aside(name)
        return old if old.is_dir() and not target.is_dir() else target

    def _set_aside(self, name: str) -> Path:
        return self.path / f".{name}.old"

    def _clean_up(self, name: str) -> None:
        """Finish what a killed writer of ``name`` left: an old probe comes back, a part is removed."""
        target, old = self.path / name, self._set_aside(name)
        if old.is_dir():
            if target.is_dir():
                shutil.rmtree(old)
            else:
                os.replace(old, target)
        shutil.rmtree(target.with_name(f".{name}.part"), ignore_errors=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with _explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


class _Description(BaseModel):
    """What ``probe.json`` says, besides format and checksum."""

    version: int
    name: str
    layers: tuple[int, ...]
    layer: int
    sign: str
    axes: dict[str, Any]
    model: ModelFingerprint
    fingerprint: str
    separability: dict[int, float]
    promoted_tokens: list[str]
    built: dict[str, Any]
    description: str | None = None


_DESCRIBED = TypeAdapter(_Description)


def read_probe(folder: str | Path, expected_name: str | None = None) -> Probe:
    """The probe in ``folder``.

    Raises:
        ProbeError: a file is missing, broken or foreign, does not belong to the other one, or is of a newer
            format version; the message names the file.
    """
    path = Path(folder) / _DESCRIPTION
    files = DescribedFile(path, path.with_name(_TENSORS), FORMAT, VERSION, _AGAIN, error=ProbeError)
    stored = files.load()
    said = validated(_DESCRIBED, stored.values, path, ProbeError, _AGAIN)
    axes = _AXES_OF.get(said.version, AXES)
    if said.sign != SIGN or said.axes != axes:
        raise ProbeError(
            f"{path}: `sign` must be {SIGN!r} and `axes` {axes}: with another meaning of the numbers "
            f"the wrong pairs would be flagged. {_AGAIN}"
        )
    if expected_name is not None and said.name != expected_name:
        raise ProbeError(
            f"{path}: this is probe {printable(said.name, 80)!r} in a folder called {expected_name!r}. "
            "Rename the folder back."
        )
    try:
        about: dict[str, Any] = {name: value for name, value in said if name not in _OF_THE_FILE}
        about.update(_tensors_in(stored.payload, files.payload))
        probe = Probe(**about)
    except ProbeError as error:
        raise ProbeError(f"{path}: {error}") from error
    if probe.fingerprint != said.fingerprint:
        raise ProbeError(f"{path}: the description was changed after the probe was built. {_AGAIN}")
    return probe


def _tensors_in(payload: bytes, path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(payload)
    except (SafetensorError, *WRONG_VALUES) as error:
        raise ProbeError(f"{path} is not a safetensors file: {error}") from error
    unknown = sorted(tensors.keys() - AXES.keys())
    if unknown or "vector" not in tensors:
        raise ProbeError(f"{path}: a probe has the tensors {', '.join(AXES)}; this file has {sorted(tensors)}")
    return tensors


def _render_tensors(probe: Probe) -> bytes:
    from safetensors.torch import save

    tensors = {name: getattr(probe, name) for name in AXES}
    # One entry only: safetensors writes several in an order that differs from run to run.
    metadata = {FORMAT: json.dumps({"version": VERSION, "axes": AXES}, sort_keys=True)}
    return save({name: tensor for name, tensor in tensors.items() if tensor is not None}, metadata)


def _render_description(probe: Probe, payload: bytes) -> bytes:
    description = {
        "format": FORMAT,
        "version": VERSION,
        "name": probe.name,
        "layers": list(probe.layers),
        "layer": probe.layer,
        "sign": SIGN,
        "axes": AXES,
        "model": probe.model.to_json(),
        "fingerprint": probe.fingerprint,
        "separability": {str(layer): auc for layer, auc in probe.separability.items()},
        "promoted_tokens": probe.promoted_tokens,
        "built": probe.built,
        **({} if probe.description is None else {"description": probe.description}),
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
    }
    try:
        text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return json_bytes(text)
    except (TypeError, ValueError) as error:
        raise ProbeError(f"probe {probe.name!r}: what it was built from cannot be written as JSON ({error})") from error


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProbeError(
            f"cannot write {path}: {error.strerror or error}. "
            "Free some space or choose another registry folder; nothing was left half-written."
        ) from error


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _count(names: Sequence[str]) -> str:
    listed = ", ".join(names) if names else "none; build or import one first"
    return f"{'is' if len(names) == 1 else 'are'} {listed}"
