"""``trl-attribution probe show``: one probe, and on request what a sparse autoencoder says it is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.settings import Only, Without
from trl_attribution.errors import SettingsError
from trl_attribution.lenses.config import SaeConfig
from trl_attribution.models.config import LoadConfig

if TYPE_CHECKING:
    from trl_attribution.probes import Probe

_BELONGING = {"sae": (*options.SAE_OPTIONS, "latents", "text", "model", "dtype", "device", "adapter")}


@verb
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the probe.")],
    probes: options.Registry = Path("probes"),
    sae: options.Sae = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="M0, with --sae: the autoencoder is checked on it."),
        paths.MODEL,
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", help="Dataset that it is checked and shown on; default: harmless requests."),
        paths.DATASET,
    ] = None,
    latents: Annotated[int, typer.Option("--latents", min=1, help="How many latents to show.")] = 10,
    *,
    fitting: Annotated[SaeConfig, Without("sae")],
    loading: Annotated[LoadConfig, Only("dtype", "device", "adapter")],
    out: Output,
) -> None:
    """Show a probe: norm and separability by layer, the tokens it promotes, its cosine with the others.

    With --sae and --model, the latents of a sparse autoencoder that its vector is made of too.
    """
    from trl_attribution.probes import ProbeRegistry
    from trl_attribution.report import terminal

    options.refuse_idle(context, _BELONGING, () if sae is None else ("sae",))
    if sae is not None and model is None:
        raise SettingsError("--sae needs --model: an autoencoder is checked on M0 before it is used")
    registry = ProbeRegistry(probes)
    probe = registry.load(name)
    made_of = None
    if sae is not None:
        made_of = _made_of(probe, replace(fitting, sae=sae), str(model), text, latents, loading, out)
    out.show(terminal.probe_details(probe, registry.load_all()))
    if made_of is not None:
        out.show("", made_of.pop("view"))
    out.document(described_probe(probe) | ({} if made_of is None else {"latents": made_of}))


def _made_of(
    probe: Probe, config: SaeConfig, model: str, text: str | None, count: int, loading: LoadConfig, out: Output
) -> dict[str, Any]:
    """The latents of ``probe``'s vector, to be shown and as plain values."""
    from dataclasses import asdict

    from trl_attribution.lenses import check_sae, compose, describe_latents
    from trl_attribution.lenses.texts import text_sequences
    from trl_attribution.models import load_model
    from trl_attribution.report.latents import composition_view

    out.say(f"Loading {model}")
    loaded = load_model(model, **vars(loading))
    probe.check_model(loaded.fingerprint)
    sequences = text_sequences(loaded, text)
    checked = check_sae(config, loaded, sequences)
    found = compose(probe.at(checked.sae.layer), checked.sae, count)
    words = describe_latents(checked.sae, [part.latent for part in found.parts], loaded, sequences)
    view = composition_view(found, words, checked)
    return {"view": view, **checked.to_json(), **found.to_json(), "words": [asdict(one) for one in words]}


def described_probe(probe: Probe) -> dict[str, Any]:
    """A probe as plain values."""
    return {
        "name": probe.name,
        "fingerprint": probe.fingerprint,
        "model": probe.model.to_json(),
        "layers": list(probe.layers),
        "layer": probe.layer,
        "norms": probe.norms,
        "separability": probe.separability,
        "promoted_tokens": probe.promoted_tokens,
        "prompts": None if probe.contexts is None else len(probe.contexts),
        "controls": None if probe.control_contexts is None else len(probe.control_contexts),
        "calibrated": probe.reference_scores is not None,
        "description": probe.description,
        "built": probe.built,
    }
