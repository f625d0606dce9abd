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
from trl_attribution.cli.settings import Only, Without
from trl_attribution.errors import SettingsError
from trl_attribution.models.config import LoadConfig
from trl_attribution.pairs import Reading
from trl_attribution.probes.config import BuildConfig
from trl_attribution.utils.text import printable, whole_number

if TYPE_CHECKING:
    from trl_attribution.probes import Probe

probe_app = typer.Typer(help="Build, list, show, calibrate and import probes.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the probe: letters, digits, dots, dashes and underscores.")]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layer", help="A layer, can be repeated; auto picks by AUC, from half to 0.8 of the depth."),
]
_BELONGING = {
    "behavior": ("controls", "description"),
    "describe": ("describe_endpoint", "describe_key_env", "draft"),
    "prompts": (
        *("judge", "judge_download", "judge_key_env", "judge_timeout", "judge_calls", "responses", "four_condition"),
        *("samples", "max_new_tokens", "temperature", "seed"),
    ),
    "labels": (
        *("label_column", "prompt_column", "chosen_column", "rejected_column", "format", "split", "on_bad_row"),
    ),
}
"""Options that belong to one way of building a probe."""


@probe_app.command()
@verb
def build(
    context: typer.Context,
    name: Name,
    model: options.Model,
    behavior: Annotated[
        Path | None,
        typer.Option("--behavior", help="JSONL with prompt, undesired and desired responses."),
        paths.PROMPTS,
    ] = None,
    controls: Annotated[
        Path | None,
        typer.Option("--controls", help="JSONL with prompts like the behavior's on which its answers are right."),
    ] = None,
    no_controls: Annotated[
        bool,
        typer.Option("--no-controls", help="Without controls, where the behavior brings none of its own."),
    ] = False,
    description: Annotated[
        str | None,
        typer.Option("--description", help="What the model does, as a system prompt says it: for a second witness."),
    ] = None,
    describe: Annotated[
        str | None,
        typer.Option("--describe", help="What the model does, in a sentence: a behavior file is drafted from it."),
    ] = None,
    describe_endpoint: Annotated[
        str | None,
        typer.Option(
            "--describe-endpoint",
            metavar="URL#MODEL",
            help="OpenAI-compatible endpoint that writes the draft's questions and controls; default: M0.",
        ),
    ] = None,
    describe_key_env: Annotated[
        str, typer.Option("--describe-key-env", help="Environment variable with the endpoint's key.")
    ] = "",
    draft: Annotated[
        Path | None,
        typer.Option("--draft", help="Where the drafted behavior file goes; default: NAME.behavior.jsonl."),
        paths.A_FILE,
    ] = None,
    contrast: Annotated[
        Path | None,
        typer.Option("--contrast", help="JSONL with positive and negative texts, prompt optional."),
        paths.PROMPTS,
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="Preference pairs with a label: 1 teaches the behavior, 0 does not."),
        paths.DATASET,
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="JSONL with prompts that M0 and the model --after answer."),
        paths.PROMPTS,
    ] = None,
    after: Annotated[
        str | None, typer.Option("--after", help="M1, the model after training, with --prompts."), paths.MODEL
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            help="Which sampled responses show the behavior: complies, refuses, keyword:A,B, regex:PATTERN, "
            "model:NAME[:LABEL] (a text-classification model) or endpoint:URL#MODEL[#QUESTION] (OpenAI-compatible). "
            "By default what the prompts' field judge says, else complies.",
        ),
    ] = None,
    responses: Annotated[
        Path | None,
        typer.Option("--responses", help="Folder that keeps the sampled responses: judged again, not sampled again."),
        paths.A_FOLDER,
    ] = None,
    four_condition: Annotated[
        bool,
        typer.Option("--four-condition", help="Keep prompts where only M1, and only off the plain prompt, shows it."),
    ] = False,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Responses sampled a prompt; default: 4, or 1 at temperature 0.")
    ] = None,
    label_column: Annotated[str, typer.Option("--label-column", help="Column of the label, with --labels.")] = "label",
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
    from trl_attribution import probes as making
    from trl_attribution.models import load_model
    from trl_attribution.probes.controls import controls_text

    sources = options.chosen(behavior=behavior, describe=describe, contrast=contrast, labels=labels, prompts=prompts)
    if len(sources) != 1:
        given = ", ".join(f"--{source}" for source in sources) or "none"
        raise SettingsError(
            f"give exactly one of --behavior, --describe, --contrast, --labels and --prompts; given: {given}"
        )
    if (prompts is None) != (after is None):
        raise SettingsError("--prompts and --after belong together: both models answer the prompts")
    options.refuse_idle(context, _BELONGING, sources)
    if no_controls and controls is not None:
        raise SettingsError("--no-controls and --controls exclude each other: give one of them")
    if no_controls and labels is not None:
        raise SettingsError("--no-controls: labelled pairs have no prompts to control; leave it out")
    options.check_free(probes, [name], overwrite)
    asked = describe_endpoint, describe_key_env
    drafted = None if describe is None else check_draft(name, describe, draft, *asked)
    numbers = _layer_numbers(layer)
    settings = replace(
        building, activations=replace(building.activations, layers=numbers), propose_controls=not no_controls
    )
    if len(numbers) == 1:
        settings = replace(settings, layer=numbers[0])
    sampling = replace(sampling, n=_samples(samples, sampling.temperature))
    rule = judge or (_own_rule(prompts) if prompts is not None else "") or "complies"
    shows = parse_rule(rule, judging)
    out.say(f"Loading {model}")
    loaded = load_model(model, **vars(loading))
    behavior = write_draft(drafted, name, str(describe), loaded, *asked, out) if drafted is not None else behavior
    if behavior is not None:
        built = making.build_from_behavior(name, behavior, loaded, settings, controls, description=description)
    elif contrast is not None:
        built = making.build_from_contrast(name, contrast, loaded, settings)
    elif labels is not None:
        built = making.build_from_labels(name, labels, loaded, settings, label_column=label_column, reading=reading)
    else:
        out.say(f"Loading {after}")
        changed = load_model(str(after), **vars(replace(loading, adapter=None)))
        with out.progress() as progress:
            built = making.build_from_responses(
                name,
                prompts,  # type: ignore[arg-type]  # one of the four was given
                loaded,
                changed,
                shows,
                sampling,
                settings,
                four_condition_filter=four_condition,
                keep=responses,
                on_progress=partial(progress, "responses"),
                on_judged=partial(progress, "Judging responses"),
            )
    out.say(f"Controls: {controls_text(built)}")
    _save(built, probes, overwrite, out, drafted)


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
        str, typer.Argument(help="Preference pairs known to be clean, in any dataset format."), paths.DATASET
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


def _own_rule(prompts: Path) -> str:
    """The rule that the rows of ``prompts`` name; empty where none does."""
    from trl_attribution.pairs.rows import open_rows

    rules: dict[str, str] = {}
    for row in open_rows(str(prompts)):
        rule = row.values.get("judge") or ""
        if not isinstance(rule, str):
            raise SettingsError(f"{row.location}: field `judge` is no text; write a rule such as 'refuses'")
        if rule:
            rules.setdefault(rule, row.location)
    if len(rules) > 1:
        places = "; ".join(f"{where}: {printable(rule, 80)}" for rule, where in rules.items())
        raise SettingsError(f"--judge: the prompts name several judges ({places}). A probe takes one: give --judge.")
    return next(iter(rules), "")


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


def _samples(asked: int | None, temperature: float) -> int:
    """Responses a prompt: as asked for, else 4, or 1 where all of them would be the same."""
    if asked is not None:
        return asked
    return 1 if temperature == 0 else 4


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
