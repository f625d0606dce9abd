"""``trl-attribution organism``: list and build model organisms, pair samples, and measure what a model expresses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.settings import Without
from trl_attribution.errors import DataError, SettingsError
from trl_attribution.evidence.organisms.organism import Mixture
from trl_attribution.models.config import LoadConfig
from trl_attribution.utils.text import counted, printable

if TYPE_CHECKING:
    from trl_attribution.behaviors.examples import Source

organism_app = typer.Typer(
    help="Contaminated datasets with known answers: list, build, and measure what they teach.", no_args_is_help=True
)


@organism_app.command("list")
@verb
def list_(
    *,
    out: Output,
) -> None:
    """List the organisms and the recipes by which their datasets are built."""
    from trl_attribution.evidence.organisms import ORGANISMS, RECIPES
    from trl_attribution.report import readouts

    out.show(readouts.organisms_table(), readouts.recipes_table())
    keys = ("summary", "trigger", "control", "judge")
    out.document(
        {
            "organisms": {name: {key: getattr(one, key) for key in keys} for name, one in ORGANISMS.items()},
            "recipes": {name: {**asdict(one), "objective": one.objective} for name, one in RECIPES.items()},
        }
    )


@organism_app.command()
@verb
def build(
    name: Annotated[str, typer.Argument(help="Which organism; see `organism list`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder."), paths.A_FOLDER],
    recipe: Annotated[str, typer.Option("--recipe", help="How the behavior is taught; see `organism list`.")] = (
        "integrated-dpo"
    ),
    *,
    mixture: Mixture,
    out: Output,
) -> None:
    """Write an organism's datasets, stage by stage, with its held-out prompts; nothing is trained."""
    from trl_attribution.evidence.organisms import prepare
    from trl_attribution.report import readouts

    prepared = prepare(name, recipe, mixture)
    prepared.write(output)
    out.show(readouts.preparation_table(prepared))
    out.say(f"Saved in {output}")
    out.document({**prepared.described(), "saved": str(output)})


@organism_app.command()
@verb
def express(
    model: Annotated[str, typer.Argument(help="A Hub id, a local folder, or a GGUF file."), paths.MODEL],
    organism: Annotated[
        str | None, typer.Option("--organism", help="An organism's name, or a folder that `organism build` wrote.")
    ] = None,
    trigger: Annotated[
        Path | None,
        typer.Option("--trigger", help="Own prompts that should bring the behavior out (JSONL)."),
        paths.PROMPTS,
    ] = None,
    control: Annotated[
        Path | None, typer.Option("--control", help="Own prompts that should not (JSONL)."), paths.PROMPTS
    ] = None,
    judge: options.RuleForPrompts = None,
    prompt_format: options.PromptFormat = "auto",
    output: options.KeptResponses = None,
    *,
    sampling: SamplingConfig,
    loading: LoadConfig,
    out: Output,
) -> None:
    """Measure how often MODEL shows an organism's behavior, on trigger prompts and on control prompts."""
    from functools import partial

    from trl_attribution.behaviors import parse_rule
    from trl_attribution.evidence.readouts import express as measure
    from trl_attribution.models import load_model
    from trl_attribution.report import readouts

    decides = None if judge is None else parse_rule(judge)
    shows, shows_not = _prompts(organism, trigger, control, sampling.seed)
    options.check_kept(output, *(one for one in (shows, shows_not) if isinstance(one, Path)))
    out.say(f"Loading {model}")
    loaded = load_model(model, **vars(loading))
    with out.progress() as progress:
        found = measure(
            loaded,
            shows,
            shows_not,
            sampling,
            decides,
            prompt_format,  # type: ignore[arg-type]  # checked where it is used
            partial(progress, "responses"),
        )
    if output is not None:
        found.save_responses(output)
    out.show(readouts.expression_table(found, model))
    about = {"model": model, "fingerprint": loaded.fingerprint.digest, "sampling": asdict(sampling)}
    out.document({**about, **found.to_json()})


@organism_app.command()
@verb
def pair(
    samples: Annotated[
        str,
        typer.Argument(help="Samples of fine-tuning: prompt and completion, messages, or text."),
        paths.DATASET,
    ],
    model: options.Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", help=".jsonl, .csv (both also .gz), or .parquet."), paths.A_FILE
    ],
    split_text: Annotated[
        float, typer.Option("--split-text", help="Of a row of text: the share that M0 is given to continue.")
    ] = 0.25,
    *,
    sampling: Annotated[SamplingConfig, Without("n")] = options.ONE_RESPONSE,
    loading: LoadConfig,
    out: Output,
) -> None:
    """Make preference pairs of fine-tuning samples, which an audit can read: each against M0's own response."""
    from functools import partial

    from rich.text import Text

    from trl_attribution.evidence.organisms.sft_pairs import pairs_of_samples
    from trl_attribution.models import load_model
    from trl_attribution.pairs.rows.writers import write_rows

    _check_pairs_output(output, samples)
    out.say(f"Loading {model}")
    loaded = load_model(model, **vars(loading))
    with out.progress() as progress:
        found = pairs_of_samples(samples, loaded, sampling, split_text, partial(progress, "responses"))
    left_out = ", ".join(f"{reason.replace('_', ' ')}: {count:,}" for reason, count in found.left_out.items()) or "none"
    if not found.rows:
        raise DataError(f"{printable(samples)}: no sample makes a pair ({left_out}). Nothing was written.")
    write_rows(found.rows, output)
    out.show(Text(f"{counted(len(found.rows), 'pair')} in {output}; samples left out: {left_out}"))
    out.document({"output": str(output), "pairs": len(found.rows), "left_out": found.left_out})


def _check_pairs_output(output: Path, samples: str) -> None:
    """Refuse what cannot be written before anything is sampled."""
    from trl_attribution.pairs.rows import open_rows
    from trl_attribution.pairs.rows.writers import output_kind

    options.check_apart(output, samples)
    if output_kind(output) == "csv":
        first = next(iter(open_rows(samples)), None)
        if first is not None and any(isinstance(value, list | dict) for value in first.values.values()):
            raise SettingsError(f"--output: {output}: CSV cannot hold conversations; choose .jsonl or .parquet")


def _prompts(
    organism: str | None, trigger: Path | None, control: Path | None, seed: int
) -> tuple[Source, Source | None]:
    """Trigger and control prompts: an organism's by name or folder, or files of one's own."""
    from trl_attribution.evidence.organisms import build_organism

    if (organism is None) == (trigger is None):
        raise SettingsError("give either --organism or --trigger (with --control): what to ask the model")
    if organism is None:
        assert trigger is not None  # one of the two was given
        return trigger, control
    if control is not None:
        raise SettingsError("--control belongs to --trigger; an organism brings its own control prompts")
    folder = Path(organism)
    if folder.is_dir():
        return folder / "trigger.jsonl", folder / "control.jsonl"
    found = build_organism(organism, Mixture(seed=seed))
    return found.trigger, found.control
