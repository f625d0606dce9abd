"""``trl-attribution probe steer``: what M0 does when a direction is added to its residual stream."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.evidence.readouts.config import DoseConfig
from trl_attribution.models.config import LoadConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from trl_attribution.behaviors import Judge
    from trl_attribution.behaviors.responses import Behavior
    from trl_attribution.models import LoadedModel
    from trl_attribution.probes import Probe


@verb
def steer(
    name: Annotated[str, typer.Argument(help="Name of the probe whose layers, and direction, are taken.")],
    model: options.Model,
    behavior: Annotated[
        Path, typer.Option("--behavior", help="JSONL with the prompts that M0 is asked."), paths.PROMPTS
    ],
    layer: Annotated[
        list[int] | None, typer.Option("--layer", help="One of the probe's layers, repeatable; default: all of them.")
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--after", help="M1: steer with M1 minus M0 on M0's own responses instead of the probe's vector."),
        paths.MODEL,
    ] = None,
    judge: options.RuleForPrompts = None,
    prompts: Annotated[int | None, typer.Option("--prompts", help="Ask the first so many prompts only.")] = None,
    output: options.KeptResponses = None,
    probes: options.Registry = Path("probes"),
    *,
    settings: DoseConfig,
    loading: LoadConfig,
    out: Output,
) -> None:
    """Add a probe's direction to M0, dose by dose and layer by layer, and count how often the behavior shows."""
    from rich.text import Text

    from trl_attribution.behaviors import parse_rule
    from trl_attribution.evidence.readouts import dose_curve, one_behavior
    from trl_attribution.evidence.readouts.behavior_change import resolve_judges
    from trl_attribution.models import load_model
    from trl_attribution.probes import ProbeRegistry
    from trl_attribution.report import readouts

    options.check_kept(output, behavior)
    probe = ProbeRegistry(probes).load(name)
    vectors = {one: probe.at(one) for one in layer or probe.layers}
    asked = one_behavior(behavior, prompts)
    shows = resolve_judges([asked], None if judge is None else parse_rule(judge))[asked.name]
    out.say(f"Loading {model}")
    loaded = load_model(model, **vars(loading))
    probe.check_model(loaded.fingerprint)
    about: dict[str, Any] = {"probe": probe.name, "behavior": asked.name, "prompts": len(asked.prompts.prompts)}
    direction = probe.name
    if after is not None:
        out.say(f"Loading {after}")
        changed = load_model(after, **vars(replace(loading, adapter=None)))
        difference = _difference(probe, vectors, (loaded, changed), asked, shows, settings)
        about |= {"after": after, "promoted_tokens": difference.promoted_tokens, "difference": difference.built}
        direction = f"{after} minus M0"
        vectors = {one: difference.at(one) for one in vectors}
        out.show(Text(f"{direction} promotes: {'  '.join(difference.shown_tokens)}"))
    with out.progress() as progress:
        curve = dose_curve(loaded, asked, shows, vectors, settings, partial(progress, "doses"))
    if output is not None:
        curve.save_responses(output)
    out.show(readouts.dose_table(curve, direction, asked.name))
    best = curve.best_layer
    out.show("No dose brings the behavior out." if best is None else f"Steering works best at layer {best}.")
    out.document({**about, **curve.to_json()})


def _difference(
    probe: Probe,
    vectors: Mapping[int, Tensor],
    models: tuple[LoadedModel, LoadedModel],
    asked: Behavior,
    shows: Judge,
    settings: DoseConfig,
) -> Probe:
    """M1 minus M0 at the layers of ``vectors``, on M0's own responses."""
    from trl_attribution.evidence.readouts import difference_probe, responses_of

    m0, m1 = models
    spoken = responses_of(m0, asked, shows, settings.sampling, settings.prompt_format)
    layers = tuple(sorted(vectors))
    flagging = probe.layer if probe.layer in layers else layers[-1]
    return difference_probe(
        probe.name, m0, m1, spoken, layers, flagging, settings.prompt_format, blocks_path=settings.blocks_path
    )
