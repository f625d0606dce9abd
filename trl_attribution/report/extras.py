"""What may lie beside an audit: drift, behaviors before and after, probes, a validation, discoveries, a scan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from trl_attribution.audit.info import AuditInfo
from trl_attribution.discovery.config import FILE, MODES
from trl_attribution.discovery.findings import FILE as FINDINGS
from trl_attribution.errors import StoreError
from trl_attribution.probes import Probe, ProbeRegistry
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.discovery import Discovery, ScanResult, StoredDiscovery
    from trl_attribution.evidence.readouts.behavior_change import BehaviorRates
    from trl_attribution.evidence.readouts.drift import LayerDrift
    from trl_attribution.evidence.validation.stored import ValidationFindings


@dataclass(frozen=True)
class Extras:
    """Everything optional."""

    behaviors: tuple[BehaviorRates, ...]
    drift: tuple[LayerDrift, ...]
    probes: tuple[Probe, ...]
    """Probes that lie in the audit folder, whether the audit used them or not."""
    validation: ValidationFindings | None
    """Of ``validation.json`` in the folder, or in its ``validation/``."""
    discoveries: tuple[StoredDiscovery, ...]
    """Over prompts, over pairs."""
    scan: ScanResult | None
    """What the dataset teaches, where it was scanned."""
    discovery_folder: Path
    """Where they lie: ``discovery/`` in the folder, or what the user gave."""
    notes: tuple[str, ...]
    """What was asked for during training and could not be measured."""


def read_extras(folder: Path, info: AuditInfo, discovery: Path | None = None) -> Extras:
    """Whatever of it is in ``folder``, and a discovery in another folder where one is given.

    Raises:
        StoreError: a file is there, and broken, of a newer version or about another audit; or there is no discovery in
            the folder given.
        ProbeError: a probe in the folder is broken.
    """
    training = info.training
    registry = folder / "probes"
    found = folder / "discovery" if discovery is None else discovery
    return Extras(
        behaviors=_behaviors(folder, () if training is None else training.behaviors),
        drift=_drift(folder),
        probes=tuple(ProbeRegistry(registry)) if registry.is_dir() else (),
        validation=_validation(folder),
        discoveries=_discoveries(found, info, asked=discovery is not None),
        scan=_scan(folder, info),
        discovery_folder=found,
        notes=tuple(printable(note, 500) for note in (() if training is None else training.notes)),
    )


def _behaviors(folder: Path, stated: Sequence[Mapping[str, Any]]) -> tuple[BehaviorRates, ...]:
    path = folder / "behaviors" / "changes.json"
    if not stated and not path.exists():
        return ()
    from trl_attribution.evidence.readouts.behavior_change import BehaviorRates

    try:
        changes = stated or json.loads(path.read_text(encoding="utf-8"))["changes"]
        return TypeAdapter(tuple[BehaviorRates, ...]).validate_python(changes)
    except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} is broken ({printable(error)}): remove it, or train again") from error


def _drift(folder: Path) -> tuple[LayerDrift, ...]:
    if not (folder / "drift.json").exists():
        return ()
    from trl_attribution.evidence.readouts.drift import load_drift

    return load_drift(folder).layers


def _validation(folder: Path) -> ValidationFindings | None:
    for path in (folder / "validation.json", folder / "validation" / "validation.json"):
        if path.exists():
            from trl_attribution.evidence.validation.stored import read_validation

            return read_validation(path)
    return None


def _discoveries(folder: Path, info: AuditInfo, asked: bool) -> tuple[StoredDiscovery, ...]:
    places = [folder / mode for mode in MODES if (folder / mode / FILE).exists()]
    if asked and not places:
        raise StoreError(f"there is no discovery in {folder}: it has neither {' nor '.join(MODES)} with a {FILE}")
    return tuple(_discovery(place, info) for place in places)


def _discovery(place: Path, info: AuditInfo) -> StoredDiscovery:
    from trl_attribution.discovery import StoredDiscovery

    stored = StoredDiscovery.load(place)
    found = stored.discovery
    if found.mode != place.name:
        raise StoreError(f"{place} holds a discovery over {found.mode}. Move it to a folder of that name.")
    _check_about(found, info, place, "Discover")
    return stored


def _scan(folder: Path, info: AuditInfo) -> ScanResult | None:
    if not (folder / FINDINGS).exists():
        return None
    from trl_attribution.discovery import ScanResult

    found = ScanResult.load(folder)
    if found is not None:
        _check_about(found, info, folder / FINDINGS, "Scan")
    return found


def _check_about(found: Discovery | ScanResult, info: AuditInfo, place: Path, verb: str) -> None:
    about = (found.dataset.get("fingerprint"), found.model.get("digest"))
    if about != (info.dataset.fingerprint, info.model.digest):
        raise StoreError(f"{place} is about another dataset or model than this audit. {verb} again, or remove it.")
