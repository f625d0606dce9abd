"""``trl-attribution probe ask``: what an activation oracle says of a probe, a cluster or a pair."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.report import Discovery
from trl_attribution.cli.settings import Only, Without
from trl_attribution.errors import SettingsError
from trl_attribution.lenses.config import ANSWERS
from trl_attribution.models.config import LoadConfig

if TYPE_CHECKING:
    from torch import Tensor


_BELONGING = {"audit": ("discovery",)}
_CLUSTER = re.compile(r"[bp]\d{1,6}")
"""Ids of pairs are far longer."""


@verb
def ask(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Name of the probe; with --audit, a cluster of discover (b1, p2) or a pair_id.")
    ],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="What to ask, in plain words.")],
    oracle: Annotated[
        str,
        typer.Option("--oracle", help="A LoRA adapter of M0 that answers: a folder or a Hub id."),
        paths.ORACLE,
    ],
    model: options.Model,
    oracle_preset: Annotated[
        str | None,
        typer.Option(
            "--oracle-preset",
            help="How it is asked, where it has no oracle.json: activation-oracles, the published ones.",
        ),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option("--audit", help="The finished audit that the cluster or pair is of."), paths.AUDIT
    ] = None,
    discovery: Discovery = None,
    layer: Annotated[
        int | None,
        typer.Option(
            "--layer",
            help="Layer of the vector; default: the one that the oracle reads, else the probe's, cluster's or last.",
        ),
    ] = None,
    probes: Annotated[
        Path | None,
        typer.Option("--probes", help="Folder of probes; one of them is asked about too. Default: probes."),
        paths.REGISTRY,
    ] = None,
    *,
    sampling: Annotated[SamplingConfig, Only("n", "max_new_tokens", "temperature", "seed")] = ANSWERS,
    loading: Annotated[LoadConfig, Without("adapter")],
    out: Output,
) -> None:
    """Ask an activation oracle about a vector, and about random ones beside it.

    An oracle is a model with an adapter: it answers about any vector. What it says of this one and not of the others is
    worth reading.
    """
    from trl_attribution.lenses.oracle_config import oracle_folder, read_oracle_config

    options.refuse_idle(context, _BELONGING, () if audit is None else ("audit",))
    config = read_oracle_config(oracle_folder(oracle), oracle_preset)  # before PyTorch is
    options.refuse_ranks("probe ask")
    if layer is None and len(config.reads) == 1:
        layer = config.reads[0]
    registry = probes or Path("probes")
    asked = _of_probe(name, registry, layer) if audit is None else _of_audit(name, audit, discovery, layer)
    config.check_layer(asked.layer)
    others = _least_alike(asked, registry)
    from trl_attribution.lenses import Oracle
    from trl_attribution.models import load_model
    from trl_attribution.report.oracle import answers_view

    out.say(f"Loading {model}")
    loaded = load_model(model, **vars(loading))
    loaded.fingerprint.check_digest(asked.digest, loaded.name, asked.name)
    answering = Oracle.load(oracle, loaded, oracle_preset)
    with out.progress() as progress:
        found = answering.ask(
            asked.vector, questions, asked.layer, sampling, others, partial(progress, "Asking the oracle")
        )
    out.show(answers_view(asked.name, asked.layer, found))
    about = {"asked": asked.name, "layer": asked.layer, "fingerprint": loaded.fingerprint.digest}
    how = config.model_dump(mode="json", exclude={"model"})
    answers = [one.to_json() for one in found]
    out.document({**about, "oracle": {"folder": oracle, **how}, "seed": sampling.seed, "answers": answers})


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is asked about."""

    name: str
    vector: Tensor
    """``[D]``"""
    layer: int
    digest: str
    """M0's."""


def _of_probe(name: str, registry: Path, layer: int | None) -> _Asked:
    from trl_attribution.probes import ProbeRegistry

    paths.REGISTRY.check("--probes", registry)
    probe = ProbeRegistry(registry).load(name)
    chosen = probe.layer if layer is None else layer
    return _Asked(f"probe {probe.name}", probe.at(chosen), chosen, probe.model.digest)


def _of_audit(name: str, audit: Path, discovery: Path | None, layer: int | None) -> _Asked:
    """A cluster by its id, which is short, or a pair by its own."""
    from trl_attribution.audit.saved import SavedAudit
    from trl_attribution.discovery import StoredDiscovery

    saved = SavedAudit.open(audit)
    if _CLUSTER.fullmatch(name):
        where = discovery if discovery is not None else audit / "discovery"
        stored = StoredDiscovery.load(where / ("prompts" if name[0] == "b" else "pairs"))
        cluster = stored.discovery.of(name)
        chosen = cluster.layer if layer is None else layer
        vectors = dict(zip(stored.discovery.layers, stored.vectors[name].vector, strict=True))
        return _Asked(f"cluster {name}", _at(vectors, chosen), chosen, str(stored.discovery.model["digest"]))
    store = saved.store()
    chosen = max(store.layers) if layer is None else layer
    vector = store.select([name]).layer(chosen)[0].float()
    return _Asked(f"pair {name}", vector, chosen, saved.info.model.digest)


def _at(vectors: dict[int, Tensor], layer: int) -> Tensor:
    if layer not in vectors:
        raise SettingsError(f"--layer: {layer} is none that discover compared at: {', '.join(map(str, vectors))}")
    return vectors[layer]


def _least_alike(asked: _Asked, registry: Path) -> dict[str, Tensor]:
    """The probe of the same M0 that points least along the vector, as a control; none where there is no other."""
    from torch.nn.functional import cosine_similarity

    from trl_attribution.probes import ProbeRegistry

    if not registry.is_dir():
        return {}
    fitting = {
        f"probe {one.name}": one.at(asked.layer)
        for one in ProbeRegistry(registry)
        if asked.layer in one.layers and one.model.digest == asked.digest and f"probe {one.name}" != asked.name
    }
    cosines = {name: float(cosine_similarity(one, asked.vector, dim=0)) for name, one in fitting.items()}
    chosen = sorted(cosines, key=lambda name: abs(cosines[name]))[:1]
    return {name: fitting[name] for name in chosen}
