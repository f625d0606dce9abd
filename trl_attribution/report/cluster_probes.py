"""A cluster becomes a probe at a click: written to the audit folder's own registry, and to nothing else."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trl_attribution.audit.info import AuditInfo
from trl_attribution.behaviors.names import check_name
from trl_attribution.discovery import StoredDiscovery, cluster_probe
from trl_attribution.errors import ProbeError, SettingsError
from trl_attribution.probes import ProbeRegistry


@dataclass(frozen=True)
class Registered:
    """A cluster that is a probe now."""

    folder: Path
    fingerprint: str
    already: bool
    """It was registered by that name before, and nothing was written."""


class ClusterProbes:
    """Registers clusters of an audit's discoveries in ``probes/`` of its folder.

    Args:
        folder: the audit folder; nothing is written outside it.
        info: of the audit, for M0's fingerprint.
        discoveries: as the page shows them, in that order.
    """

    def __init__(self, folder: Path, info: AuditInfo, discoveries: Sequence[StoredDiscovery]) -> None:
        self.registry = ProbeRegistry(folder / "probes")
        self._model = info.model.fingerprint
        self._discoveries = tuple(discoveries)
        self._lock = threading.Lock()

    def register(self, discovery: int, cluster: int, name: str) -> Registered:
        """Make the ``cluster``-th cluster of the ``discovery``-th discovery the probe ``name``.

        Asking for the same again changes nothing.

        Raises:
            SettingsError: there is no such cluster, the name cannot be a probe's or is another one's, or the registry
                is a link that leads elsewhere.
            ProbeError: the probe cannot be written; nothing is left half-written.
        """
        if not (0 <= discovery < len(self._discoveries)):
            raise SettingsError("the page shows no such discovery")
        stored = self._discoveries[discovery]
        if not (0 <= cluster < len(stored.discovery.clusters)):
            raise SettingsError("the discovery has no such cluster")
        try:
            check_name(name)
        except ProbeError as error:
            raise SettingsError(str(error)) from error
        if self.registry.path.is_symlink():
            raise SettingsError(f"{self.registry.path} is a link: probes are written to the audit folder. Remove it.")
        probe = cluster_probe(stored, stored.discovery.clusters[cluster].cluster, name, self._model)
        with self._lock:
            if name in self.registry:
                return self._known(name, probe.fingerprint)
            # Another process may have come in between: then saving refuses.
            return Registered(self.registry.save(probe), probe.fingerprint, already=False)

    def _known(self, name: str, fingerprint: str) -> Registered:
        if self.registry.load(name).fingerprint != fingerprint:
            raise SettingsError(f"{self.registry.path} has another probe called {name!r}: choose another name")
        return Registered(self.registry.path / name, fingerprint, already=True)
