"""A cluster becomes a probe: bound to M0 as any other, so that audits and gates can use it from now on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trl_attribution.behaviors.names import check_name
from trl_attribution.discovery.result import StoredDiscovery
from trl_attribution.models import LoadedModel
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.probes import Probe
from trl_attribution.probes.assembly import assemble


def cluster_probe(
    stored: StoredDiscovery,
    cluster: str,
    name: str,
    m0: LoadedModel | ModelFingerprint,
    blocks_path: str | Path | None = None,
) -> Probe:
    """The probe of ``cluster``: its exemplars are the probe's prompts, and their mean is its vector.

    Exemplars among pairs are pairs of its own, so that the default rule takes its threshold from them; those among
    prompts are means over responses, which scatter less than single pairs do, and would promise too much. By the
    fingerprint of M0 alone the probe is the same, with the same fingerprint; the tokens that it promotes are not known.

    Raises:
        SettingsError: there is no such cluster.
        ModelError: ``m0`` is not the model that the audit was made with.
        ProbeError: ``name`` cannot be a probe's.
    """
    check_name(name)
    found, one, vectors = stored.discovery, stored.discovery.of(cluster), stored.vectors[cluster]
    loaded = m0 if isinstance(m0, LoadedModel) else None
    model = m0.fingerprint if isinstance(m0, LoadedModel) else m0
    known = stored.discovery.model
    model.check_digest(known["digest"], "this" if loaded is None else loaded.name, f"this audit ({known['name']})")
    parts: dict[str, Any] = {
        "layers": found.layers,
        "layer": one.layer,
        "vector": vectors.vector,
        "prompt_vectors": vectors.prompt_vectors,
        "contexts": vectors.contexts,
        "built": _built(stored, cluster),
    }
    pairs: dict[str, Any] = {
        "example_vectors": vectors.prompt_vectors,
        "example_prompts": torch.arange(len(vectors.prompt_vectors)),
    }
    known = pairs if found.mode == "pairs" else {}
    if loaded is not None:
        return assemble(
            name, loaded, **parts, known=known, blocks_path=None if blocks_path is None else str(blocks_path)
        )
    parts["built"] |= {"model_name": found.model["name"], "layer_asked": one.layer}
    return Probe(name=name, model=model, **parts, **known)


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
