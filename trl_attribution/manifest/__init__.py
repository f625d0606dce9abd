"""Decisions about a dataset's pairs, and applying them."""

from trl_attribution.manifest.applying import ApplyReport
from trl_attribution.manifest.manifest import Decision, Manifest, ManifestHeader

__all__ = ["ApplyReport", "Decision", "Manifest", "ManifestHeader"]
