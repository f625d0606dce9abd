"""The public names, nothing else: each is loaded on first use, so that importing the package costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names
from trl_attribution.utils.version import __version__

if TYPE_CHECKING:
    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.callbacks import AttributionCallback, AttributionTracker
    from trl_attribution.manifest import Manifest
    from trl_attribution.pairs import pair_id
    from trl_attribution.probes import Probe, ProbeRegistry
    from trl_attribution.store import VectorStore
else:
    __getattr__, __dir__ = lazy_names(__name__)

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
