"""A cluster becomes a probe: bound to M0 as any other, so that audits and gates can use it from now on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trl_attribution.behaviors.names import check_name
from trl_attribution.discovery.result import StoredDiscovery
from trl_attribution.errors import ModelError
from trl_attribution.models import LoadedModel
from trl_attribution.models.fingerprint import ModelFingerprint
from trl_attribution.probes import Probe
from trl_attribution.probes.assembly import assemble


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
    one = stored.discovery.of(cluster)
    _check_model(stored, m0.fingerprint, m0.name)
    vectors = stored.vectors[cluster]
    return assemble(
        name,
        m0,
        layers=stored.discovery.layers,
        layer=one.layer,
        vector=vectors.vector,
        prompt_vectors=vectors.prompt_vectors,
        contexts=vectors.contexts,
        built=_built(stored, cluster),
        blocks_path=None if blocks_path is None else str(blocks_path),
    )


def cluster_probe_without_model(stored: StoredDiscovery, cluster: str, name: str, model: ModelFingerprint) -> Probe:
    """The same probe, with the same fingerprint, where M0 is not at hand: the tokens that it promotes are not known.

    Raises:
        SettingsError: there is no such cluster.
        ModelError: ``model`` is not that of the audit.
        ProbeError: ``name`` cannot be a probe's.
    """
    check_name(name)
    found, one = stored.discovery, stored.discovery.of(cluster)
    _check_model(stored, model, "this")
    vectors = stored.vectors[cluster]
    return Probe(
        name=name,
        layers=found.layers,
        vector=vectors.vector,
        layer=one.layer,
        model=model,
        prompt_vectors=vectors.prompt_vectors,
        contexts=vectors.contexts,
        built={**_built(stored, cluster), "model_name": found.model["name"], "layer_asked": one.layer},
    )


def _check_model(stored: StoredDiscovery, model: ModelFingerprint, name: str) -> None:
    known = stored.discovery.model
    if model.digest != known["digest"]:
        raise ModelError(
            f"{name} is not the M0 of this audit ({known['name']}): fingerprint {model.digest}, "
            f"the audit has {known['digest']}. Give the model that was audited (--model)."
        )


def _built(stored: StoredDiscovery, cluster: str) -> dict[str, Any]:
    found, one = stored.discovery, stored.discovery.of(cluster)
    return {
        "method": "discovery",
        "mode": found.mode,
        "cluster": cluster,
        "dataset_fingerprint": found.dataset["fingerprint"],
        "kind": one.kind,
        "counts": {"members": one.members, "exemplars": len(stored.vectors[cluster].prompt_vectors)},
        "stability": one.stability,
        "adjusted_p": one.adjusted_p,
        "settings": dict(found.settings),
    }
