"""``trl-attribution probe steer``: what M0 does when a direction is added to its residual stream."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.settings import Without
from trl_attribution.errors import SettingsError
from trl_attribution.models.config import LoadConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from trl_attribution.behaviors import Judge
    from trl_attribution.behaviors.responses import Behavior
    from trl_attribution.evidence.readouts import DoseConfig
    from trl_attribution.models import LoadedModel
    from trl_attribution.probes import Probe

_SHORT = replace(options.ONE_RESPONSE, max_new_tokens=64)


@verb
def steer(
    name: Annotated[str, typer.Argument(help="Name of the probe whose layers, and direction, are taken.")],
    model: options.Model,
    behavior: Annotated[
        Path, typer.Option("--behavior", help="JSONL with the prompts that M0 is asked."), paths.PROMPTS
    ],
    alphas: Annotated[str, typer.Option("--alphas", help="Doses, such as 0.5,1,2.")] = "0.5,1,2,4",
    scale: Annotated[
        str, typer.Option("--scale", help="A dose of 1: the direction as it is (vector), or as long as the stream.")
    ] = "vector",
    positions: Annotated[
        str, typer.Option("--positions", help="Where it is added: all tokens, or those that the response comes from.")
    ] = "all",
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
    prompt_format: options.PromptFormat = "auto",
    output: options.KeptResponses = None,
    registry: options.Registry = Path("probes"),
    *,
    sampling: SamplingConfig = _SHORT,
    computing: options.BlocksPath = options.NO_LAYERS,
    loading: Annotated[LoadConfig, Without("adapter", "quantization")],
    out: Output,
) -> None:
    """Add a probe's direction to M0, dose by dose and layer by layer, and count how often the behavior shows."""
    from rich.text import Text

    from trl_attribution.behaviors import parse_rule
    from trl_attribution.evidence.readouts import DoseConfig, dose_curve, one_behavior
    from trl_attribution.evidence.readouts.behavior_change import resolve_judges
    from trl_attribution.models import load_model
    from trl_attribution.probes import ProbeRegistry
    from trl_attribution.report import readouts

    options.check_kept(output, behavior)
    settings = DoseConfig(
        _doses(alphas),
        scale,  # type: ignore[arg-type]  # checked by DoseConfig
        positions,  # type: ignore[arg-type]  # checked by DoseConfig
        sampling,
        prompt_format,  # type: ignore[arg-type]  # checked where it is used
        computing.blocks_path,
    )
    probe = ProbeRegistry(registry).load(name)
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
        changed = load_model(after, **vars(loading))
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


def _doses(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingsError(f"--alphas: {text!r} is not a list of numbers such as 0.5,1,2") from error
