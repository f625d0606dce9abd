"""A cluster becomes a probe: bound to M0 as any other, so that audits and gates can use it from now on."""

from __future__ import annotations

from pathlib import Path

from trl_attribution.discovery.result import StoredDiscovery
from trl_attribution.errors import ModelError
from trl_attribution.models import LoadedModel
from trl_attribution.probes import Probe
from trl_attribution.probes.assembly import assemble
from trl_attribution.probes.probe import check_name


def cluster_probe(
    stored: StoredDiscovery, cluster: str, name: str, m0: LoadedModel, blocks_path: str | Path | None = None
) -> Probe:
    """The probe of ``cluster``: its exemplars are the probe's prompts, and their mean is its vector.

    Raises:
        SettingsError: there is no such cluster.
        ModelError: ``m0`` is not the model that the audit was made with.
        ProbeError: ``name`` cannot be a probe's.
    """
    check_name(name)
    found = stored.discovery
    one = found.of(cluster)
    if m0.fingerprint.digest != found.model["digest"]:
        raise ModelError(
            f"{m0.name} is not the M0 of this audit ({found.model['name']}): fingerprint {m0.fingerprint.digest}, "
            f"the audit has {found.model['digest']}. Give the model that was audited (--model)."
        )
    vectors = stored.vectors[cluster]
    built = {
        "method": "discovery",
        "mode": found.mode,
        "cluster": cluster,
        "dataset_fingerprint": found.dataset["fingerprint"],
        "kind": one.kind,
        "counts": {"members": one.members, "exemplars": len(vectors.prompt_vectors)},
        "stability": one.stability,
        "adjusted_p": one.adjusted_p,
        "settings": dict(found.settings),
    }
    return assemble(
        name,
        m0,
        layers=found.layers,
        layer=one.layer,
        vector=vectors.vector,
        prompt_vectors=vectors.prompt_vectors,
        contexts=vectors.contexts,
        built=built,
        blocks_path=None if blocks_path is None else str(blocks_path),
    )
