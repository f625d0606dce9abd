"""The public names, nothing else: each is loaded on first use, so that importing the package costs nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from trl_attribution.utils.version import __version__

if TYPE_CHECKING:
    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.callbacks import AttributionCallback, AttributionTracker
    from trl_attribution.manifest import Manifest
    from trl_attribution.pairs import pair_id
    from trl_attribution.probes import Probe, ProbeRegistry
    from trl_attribution.store import VectorStore

__all__ = [
    "AttributionCallback",
    "AttributionTracker",
    "DataAuditor",
    "Manifest",
    "Probe",
    "ProbeRegistry",
    "VectorStore",
    "__version__",
    "pair_id",
]

_HOMES = {
    "AttributionCallback": "trl_attribution.callbacks",
    "AttributionTracker": "trl_attribution.callbacks",
    "DataAuditor": "trl_attribution.audit.auditor",
    "Manifest": "trl_attribution.manifest",
    "Probe": "trl_attribution.probes",
    "ProbeRegistry": "trl_attribution.probes",
    "VectorStore": "trl_attribution.store",
    "pair_id": "trl_attribution.pairs",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its public names are {__all__}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
