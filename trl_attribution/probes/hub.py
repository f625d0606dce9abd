"""Probes on a hub: put there with a card that says what each is and how well it tells, and fetched from there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from trl_attribution.errors import ProbeError, SettingsError
from trl_attribution.probes.controls import controls_text
from trl_attribution.probes.probe import Probe
from trl_attribution.probes.registry import ProbeRegistry
from trl_attribution.utils.card import CARD, Section, hub_name, read_card, shown_name
from trl_attribution.utils.hub import HubRepository, Pushed, hub_faults
from trl_attribution.utils.markdown import code, inline, table
from trl_attribution.utils.text import counted, printable
from trl_attribution.utils.version import __version__

_PUSH, _PULL = "probe push", "probe pull"
_WANTED = ("*/probe.json", "*/probe.safetensors")


def push_probe(probe: Probe, repo_id: str, *, private: bool = True, overwrite: bool = False) -> Pushed:
    """Put ``probe`` into the model repository ``repo_id``, beside those that are there; its section joins the card.

    The repository is a registry: a gate's policy may name it (``probes: hf://owner/name``).

    Raises:
        SettingsError: ``repo_id`` is no ``owner/name``, is public where a private one is wanted, or has a probe of that
            name and ``overwrite`` is not set.
        AttributionError: the hub cannot be reached, or refuses.
    """
    repository = HubRepository.check(repo_id, "model", _PUSH, private)
    if f"{probe.name}/probe.json" in repository.there and not overwrite:
        raise SettingsError(f"{_PUSH}: {repo_id} has a probe {probe.name!r}; replace it with --overwrite")
    with tempfile.TemporaryDirectory() as scratch:
        folder = ProbeRegistry(Path(scratch, "probes")).save(probe)
        files = {f"{probe.name}/{one.name}": one for one in sorted(folder.iterdir())}
        old = Path(scratch, "none")
        if CARD in repository.there:
            old = repository.file(CARD, Path(scratch, "card"))
        files[CARD] = Path(scratch, CARD)
        probe_section(probe, repo_id).write(files[CARD], read_card(old, _begun(probe, repo_id)))
        return repository.upload(files, f"Probe {probe.name}", f"fingerprint {probe.fingerprint}")


def pull_probes(
    repo_id: str,
    registry: ProbeRegistry,
    name: str | None = None,
    *,
    revision: str | None = None,
    overwrite: bool = False,
) -> list[Probe]:
    """Fetch the probe ``name``, or all, from the repository ``repo_id`` into ``registry``; nothing in a file is run.

    Raises:
        ProbeError: the repository holds none, or not that one; one is broken, or is there already and ``overwrite`` is
            not set: then none is saved.
        AttributionError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import snapshot_download

    with tempfile.TemporaryDirectory() as scratch:
        with hub_faults(_PULL, repo_id, "read"):
            snapshot_download(repo_id, revision=revision, local_dir=scratch, allow_patterns=list(_WANTED))
        try:
            found = ProbeRegistry(scratch).load_all(None if name is None else [name])
        except ProbeError as error:  # which names a folder that is gone when this is read
            raise ProbeError(f"{_PULL}: {str(error).replace(scratch, repo_id)}") from error
    taken = [one.name for one in found if one.name in registry]
    if taken and not overwrite:
        raise ProbeError(
            f"{_PULL}: {registry.path} has a probe {', '.join(taken)} already; replace it with --overwrite"
        )
    for probe in found:
        registry.save(probe, overwrite=overwrite)
    return found


def probe_section(probe: Probe, repo_id: str) -> Section:
    """What a card says of ``probe``: the behavior, the model, the layer, and how well it tells."""
    lines = [f"## {inline(probe.name)}", ""]
    if probe.description:
        lines += [inline(probe.description), ""]
    lines += [*table(("", ""), _facts(probe)), ""]
    lines += [f"`trl-attribution probe pull {repo_id} {probe.name}` fetches it. It fits this model alone."]
    return Section(f"probe {probe.name}", lines)


def _facts(probe: Probe) -> Iterator[tuple[str, str]]:
    auc = probe.separability.get(probe.layer)
    told = "not known" if auc is None else f"AUC {auc:.3f}, cross-validated on its own examples (0.5 is chance)"
    model = probe.built.get("model_name")
    named = "" if model is None else f"{inline(shown_name(model))}, "
    yield "model", f"{named}fingerprint {code(probe.model.digest)}"
    yield "layer", f"{probe.layer} (it has {counted(len(probe.layers), 'layer')})"
    yield "separability", told
    yield "prompts", "not known" if probe.contexts is None else str(len(probe.contexts))
    yield "controls", inline(controls_text(probe))
    yield "built by", inline(printable(probe.built.get("method", "?"), 60))
    yield "fingerprint", code(probe.fingerprint)
    yield "tool", f"trl-attribution {inline(__version__)}"


def _begun(probe: Probe, repo_id: str) -> str:
    """A card to begin with; only what is a Hub id is named as the base model."""
    from huggingface_hub import ModelCardData

    base = hub_name(probe.built.get("model_name") or "")
    values = ModelCardData(base_model=base, tags=["trl-attribution", "probe"])
    return (
        f"---\n{values.to_yaml()}\n---\n\n# {inline(repo_id.partition('/')[2])}\n\n"
        "Directions of behaviors in a model's activations, to audit training data with.\n"
    )
