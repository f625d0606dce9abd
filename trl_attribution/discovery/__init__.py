"""Behaviors that nobody named: tight, stable, confirmed clusters of prompts that changed, or of pairs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.discovery.audited import AuditedPairs
    from trl_attribution.discovery.changes import (
        Change,
        ChangeVectors,
        answered_changes,
        change_vectors,
        changes_of,
        read_changes,
    )
    from trl_attribution.discovery.config import MODES, DiscoveryConfig, Mode
    from trl_attribution.discovery.findings import Agreement, Finding, Prediction, ScanResult, TraitChange
    from trl_attribution.discovery.naming import EndpointNames, Naming
    from trl_attribution.discovery.registering import cluster_probe
    from trl_attribution.discovery.result import (
        Cluster,
        ClusterVectors,
        Discovery,
        MapPoint,
        Rejected,
        StoredDiscovery,
        TopPair,
        TypicalPrompt,
    )
    from trl_attribution.discovery.run import discover_pairs, discover_prompts
    from trl_attribution.discovery.scan import scan_dataset
    from trl_attribution.discovery.scan_config import ScanConfig
    from trl_attribution.discovery.traits.drafting import Draft, check_absent, check_told, draft_behavior
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "MODES",
    "Agreement",
    "AuditedPairs",
    "Change",
    "ChangeVectors",
    "Cluster",
    "ClusterVectors",
    "Discovery",
    "DiscoveryConfig",
    "Draft",
    "EndpointNames",
    "Finding",
    "MapPoint",
    "Mode",
    "Naming",
    "Prediction",
    "Rejected",
    "ScanConfig",
    "ScanResult",
    "StoredDiscovery",
    "TopPair",
    "TraitChange",
    "TypicalPrompt",
    "answered_changes",
    "change_vectors",
    "changes_of",
    "check_absent",
    "check_told",
    "cluster_probe",
    "discover_pairs",
    "discover_prompts",
    "draft_behavior",
    "read_changes",
    "scan_dataset",
]
