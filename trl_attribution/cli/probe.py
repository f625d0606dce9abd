"""``trl-attribution probe``: build, list, show, calibrate and import the directions of behaviors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trl_attribution.audit.config import AuditConfig
from trl_attribution.behaviors.rules import JudgeConfig, parse_rule
from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.probe_describe import check_draft, write_draft
from trl_attribution.cli.probe_show import described_probe
from trl_attribution.cli.probe_sources import ProbeSources
from trl_attribution.cli.settings import Only, Without
from trl_attribution.errors import SettingsError
from trl_attribution.models.config import LoadConfig
from trl_attribution.pairs import Reading
from trl_attribution.probes.config import BuildConfig
from trl_attribution.utils.text import printable, whole_number

if TYPE_CHECKING:
    from trl_attribution.behaviors import Judge
    from trl_attribution.models import LoadedModel
    from trl_attribution.probes import Probe

probe_app = typer.Typer(help="Build, list, show, calibrate and import probes.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the probe: letters, digits, dots, dashes and underscores.")]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layer", help="A layer, can be repeated; auto picks by AUC, from half to 0.8 of the depth."),
]


@probe_app.command()
@verb
def build(
    context: typer.Context,
    name: Name,
    model: options.Model,
    sources: ProbeSources,
    layer: Layers = None,
    probes: options.OwnRegistry = Path("probes"),
    overwrite: options.Overwrite = False,
    *,
    judging: Annotated[JudgeConfig, Only("allow_download", "api_key_env", "timeout", "max_calls")],
    sampling: Annotated[SamplingConfig, Only("max_new_tokens", "temperature", "seed")] = options.ONE_RESPONSE,
    building: Annotated[BuildConfig, Without("layers", "layer", "path", "workers", "top_tokens", "propose_controls")],
    reading: Annotated[Reading, Without("source_column")],
    loading: LoadConfig,
    out: Output,
) -> None:
    """Build a probe from exactly one of --behavior, --describe, --contrast, --labels and --prompts (with --after).

    The options of columns, format, split and bad rows say how the pairs of --labels are read.
    """
    from trl_attribution.models import load_model
    from trl_attribution.probes.controls import controls_text

    sources.check(context)
    options.check_free(probes, [name], overwrite)
    drafted = check_draft(name, sources)
    numbers = _layer_numbers(layer)
    settings = replace(
        building, activations=replace(building.activations, layers=numbers), propose_controls=not sources.no_controls
    )
    if len(numbers) == 1:
        settings = replace(settings, layer=numbers[0])
    sampling = replace(sampling, n=sources.samples_at(sampling.temperature))
    shows = parse_rule(sources.rule(), judging)
    out.say(f"Loading {model}")
    loaded = load_model(model, **vars(loading))
    if drafted is not None:
        sources = replace(sources, behavior=write_draft(drafted, name, sources, loaded, out))
    if sources.prompts is None:
        built = _from_texts(name, sources, loaded, settings, reading)
    else:
        out.say(f"Loading {sources.after}")
        changed = load_model(str(sources.after), **vars(replace(loading, adapter=None)))
        built = _from_responses(name, sources, loaded, changed, shows, sampling, settings, out)
    out.say(f"Controls: {controls_text(built)}")
    _save(built, probes, overwrite, out, drafted)


def _from_texts(
    name: str, sources: ProbeSources, loaded: LoadedModel, settings: BuildConfig, reading: Reading
) -> Probe:
    from trl_attribution import probes as making

    if sources.behavior is not None:
        controls, description = sources.controls, sources.description
        return making.build_from_behavior(name, sources.behavior, loaded, settings, controls, description=description)
    if sources.contrast is not None:
        return making.build_from_contrast(name, sources.contrast, loaded, settings)
    assert sources.labels is not None  # one of them was given
    column = sources.label_column
    return making.build_from_labels(name, sources.labels, loaded, settings, label_column=column, reading=reading)


def _from_responses(
    name: str,
    sources: ProbeSources,
    loaded: LoadedModel,
    changed: LoadedModel,
    shows: Judge,
    sampling: SamplingConfig,
    settings: BuildConfig,
    out: Output,
) -> Probe:
    from trl_attribution.probes import build_from_responses

    assert sources.prompts is not None  # that way was chosen
    with out.progress() as progress:
        return build_from_responses(
            name,
            sources.prompts,
            loaded,
            changed,
            shows,
            sampling,
            settings,
            four_condition_filter=sources.four_condition,
            keep=sources.responses,
            on_progress=partial(progress, "responses"),
            on_judged=partial(progress, "Judging responses"),
        )


@probe_app.command("import")
@verb
def import_(
    name: Name,
    file: Annotated[Path, typer.Argument(help=".gguf control vector, .pt tensors, or .safetensors."), paths.VECTOR],
    model: options.Model,
    layer: Layers = None,
    away: Annotated[
        bool, typer.Option("--away", help="The vector points away from the undesired behavior: turn it round.")
    ] = False,
    block_offset: Annotated[
        int, typer.Option("--block-offset", help="GGUF: our layer minus N of direction.N; 0 for cvector-generator.")
    ] = 1,
    probes: options.OwnRegistry = Path("probes"),
    overwrite: options.Overwrite = False,
    *,
    loading: LoadConfig,
    out: Output,
) -> None:
    """Import a direction found elsewhere as a probe bound to a model; nothing in the file is run."""
    from trl_attribution.models import load_model
    from trl_attribution.probes import ImportConfig, import_probe

    numbers = _layer_numbers(layer)
    options.check_free(probes, [name], overwrite)
    out.say(f"Loading {model}")
    loaded = load_model(model, **vars(loading))
    settings = ImportConfig(
        layers=numbers or None,
        layer=numbers[0] if len(numbers) == 1 else "auto",
        block_offset=block_offset,
        sign="away" if away else "towards",
    )
    _save(import_probe(name, file, loaded, settings), probes, overwrite, out)


@probe_app.command()
@verb
def calibrate(
    name: Name,
    reference: Annotated[
        str, typer.Argument(help="A dataset known to be clean, of the kind that is to be audited."), paths.DATASET
    ],
    model: options.Model,
    probes: options.Registry = Path("probes"),
    *,
    settings: Annotated[AuditConfig, Without("layers", "vector_dtype", "shard_size", "source_column")],
    out: Output,
) -> None:
    """Score clean pairs and keep the scores with the probe: audits then take their p-values from them."""
    from trl_attribution.audit.calibrate import calibrate_probe
    from trl_attribution.probes import ProbeRegistry

    probe = ProbeRegistry(probes).load(name)
    out.say(f"Loading {model}")
    with out.progress() as progress:
        calibrated = calibrate_probe(probe, model, reference, settings, progress)
    _save(calibrated, probes, True, out)


@probe_app.command("list")
@verb
def list_(
    probes: Annotated[
        Path | None, typer.Option("--probes", help="Folder of probes; default: probes."), paths.REGISTRY
    ] = None,
    traits: Annotated[
        bool, typer.Option("--traits", help="List the traits that ship with the package and that `scan` looks for.")
    ] = False,
    *,
    out: Output,
) -> None:
    """List the probes of a registry, or the traits of the package."""
    if traits:
        if probes is not None:
            raise SettingsError("--traits lists what ships with the package, not a registry: leave --probes out")
        _list_traits(out)
        return
    from trl_attribution.probes import ProbeRegistry
    from trl_attribution.report import terminal

    folder = probes or Path("probes")
    paths.REGISTRY.check("--probes", folder)
    found = ProbeRegistry(folder).load_all()
    out.show(terminal.probes_table(found))
    out.document({"registry": str(folder), "probes": [described_probe(probe) for probe in found]})


def _list_traits(out: Output) -> None:
    from trl_attribution.discovery.traits.trait import packaged_traits
    from trl_attribution.report.scan import traits_listed

    found = packaged_traits()
    out.show(*traits_listed(found))
    told = {"name", "towards", "away", "harmful", "only_on_prompts", "measure"}
    out.document({"traits": [{**one.model_dump(include=told), "examples": len(one.examples)} for one in found]})


def _layer_numbers(asked: list[str] | None) -> tuple[int, ...]:
    """The layers that were asked for by number; none for ``auto``."""
    numbers = {text: whole_number(text) for text in asked or [] if text != "auto"}
    wrong = [text for text, number in numbers.items() if number is None]
    if wrong:
        raise SettingsError(f"--layer: {printable(wrong[0], 40)!r} is neither a layer number nor auto")
    if not asked or asked == ["auto"]:
        return ()
    if "auto" in asked:
        raise SettingsError(f"--layer: give auto alone, or layer numbers only, not {' and '.join(asked)}")
    return tuple(int(text) for text in asked)


def _save(probe: Probe, registry: Path, overwrite: bool, out: Output, drafted: Path | None = None) -> None:
    from trl_attribution.discovery import check_told
    from trl_attribution.probes import ProbeRegistry
    from trl_attribution.report import terminal

    if drafted is not None:
        check_told(probe, drafted)
    folder = ProbeRegistry(registry).save(probe, overwrite=overwrite)
    out.show(terminal.probe_details(probe, []))
    out.say(f"Saved in {folder}")
    out.document({**described_probe(probe), "saved": str(folder)})
