"""Options that several verbs share."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trl_attribution.activations.config import ActivationConfig
from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.cli import paths
from trl_attribution.cli.settings import Only
from trl_attribution.errors import SettingsError
from trl_attribution.utils.paths import local_path


def current_name(name: str) -> str:
    """An option's name of today, so that scripts and files that say ``--registry`` go on to work."""
    return "probes" if name == "registry" else name


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults of this command's options; what the command line says still wins."""
    if path is None:
        return None
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{path}: expected a mapping of option names to values, such as 'top_k: 500'")
    known = {_written(parameter): parameter for parameter in context.command.params}
    settings = {current_name(str(name).replace("-", "_")): value for name, value in values.items()}
    unknown = sorted(settings.keys() - (known.keys() - {"config"}))
    if unknown:
        choices = ", ".join(sorted(known.keys() - {"config"}))
        raise typer.BadParameter(f"{path}: unknown option {', '.join(unknown)}; choose from {choices}")
    defaults = {
        str(known[name].name): _given(value, known[name], f"{path}: {name}") for name, value in settings.items()
    }
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _written(parameter: Any) -> str:
    """The name that a file has for a parameter: its long option's, with _; an argument's own."""
    long = next((option for option in parameter.opts if option.startswith("--")), str(parameter.name))
    return long.removeprefix("--").replace("-", "_")


def _given(value: Any, parameter: Any, place: str) -> Any:
    """The value as a default; one value may stand for a list of one."""
    several = parameter.multiple or parameter.nargs != 1
    if isinstance(value, dict) or (isinstance(value, list) and not several):
        raise typer.BadParameter(f"{place}: expected a single value, not a {type(value).__name__}")
    return [value] if several and value is not None and not isinstance(value, list) else value


CONFIG_FILE = typer.Option(
    "--config",
    metavar="FILE.yaml",
    help="Options in a YAML file (names with _ or -); the command line wins.",
    is_eager=True,
    callback=_read_config,
)

Model = Annotated[str, typer.Option("--model", help="M0: a Hub id, a local folder, or a GGUF file."), paths.MODEL]
GivenModel = Annotated[str, typer.Argument(help="M0: a Hub id, a local folder, or a GGUF file."), paths.MODEL]
GivenDataset = Annotated[
    str,
    typer.Argument(help="A Hub id, a JSONL / Parquet / CSV file (gzip too), or a folder; see Formats."),
    paths.DATASET,
]
Registry = Annotated[Path, typer.Option("--probes", help="Folder of probes."), paths.REGISTRY]
OwnRegistry = Annotated[Path, typer.Option("--probes", help="Folder of probes."), paths.A_FOLDER]
Computing = Annotated[ActivationConfig, Only("token_budget", "blocks_path")]
NO_LAYERS = ActivationConfig(())
"""Which layers are computed is only known where the work begins."""
ONE_RESPONSE = SamplingConfig(n=1)
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a probe of the same name.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]


Sae = Annotated[
    str | None,
    typer.Option(
        "--sae",
        help="A sparse autoencoder of M0's residual stream: a folder (SAELens, Gemma Scope, Sparsify), a .safetensors "
        "or .npz file, or a Hub id (owner/name or owner/name:folder).",
    ),
    paths.SAE,
]
SAE_OPTIONS = ("sae_layer", "sae_k", "sae_min_explained")
PromptFormat = Annotated[
    str, typer.Option("--prompt-format", help="chat makes a text prompt a user message, text does not.")
]
RuleForPrompts = Annotated[
    str | None, typer.Option("--judge", help="Which responses show it, where the prompts do not say: a rule.")
]
KeptResponses = Annotated[
    Path | None, typer.Option("--output", "-o", help="Keep every response and its verdict (JSONL)."), paths.A_FILE
]


def check_apart(output: Path | None, *inputs: str | Path | None) -> None:
    """Refuse to replace a file that is being read: what was signed off, or the only copy, must stay what it is.

    Raises:
        SettingsError: ``output`` is one of ``inputs``.
    """
    for given in inputs:
        path = None if given is None else local_path(given)
        if output is not None and path is not None and path.exists() and output.exists() and path.samefile(output):
            raise SettingsError(f"--output: {output} is one of the inputs; choose another file")


def check_kept(output: Path | None, *inputs: str | Path | None) -> None:
    """As :func:`check_apart`, for an output that is a file, before anything is sampled.

    Raises:
        SettingsError: ``output`` is one of ``inputs``, or a folder.
    """
    check_apart(output, *inputs)
    if output is not None and output.is_dir():
        raise SettingsError(f"--output: {output} is a folder; name a file in it")


def check_responses(prompts: Path | None, responses: Path | None, after: str | None) -> None:
    """Refuse two ways at once of having both models' responses.

    Raises:
        SettingsError: they exclude one another.
    """
    if prompts is not None and responses is not None:
        raise SettingsError("give --prompts or --responses, not both: a file of responses has its own prompts")
    if after is not None and prompts is None:
        raise SettingsError("--after needs --prompts: both models answer the prompts")


def check_free(registry: Path, names: Sequence[str], overwrite: bool) -> None:
    """Refuse a name that is taken before hours of work rather than after.

    Raises:
        SettingsError: ``registry`` has a probe of one of ``names``, and it is not to be replaced.
    """
    from trl_attribution.probes import ProbeRegistry

    taken = [name for name in names if not overwrite and name in ProbeRegistry(registry)]
    if taken:
        raise SettingsError(f"{registry} has a probe {taken[0]!r} already: add --overwrite, or choose another name")


def refuse_ranks(what: str, instead: str = "") -> None:
    """Refuse a launcher's processes; ``instead`` goes on with what to do with them.

    Raises:
        SettingsError: this is one of several.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        raise SettingsError(f"{what}: runs on one process, but a launcher started {world}; run it without{instead}")


def refuse_idle(context: typer.Context, belonging: Mapping[str, Sequence[str]], given: Container[str]) -> None:
    """Refuse options that would do nothing.

    Args:
        context: of the command.
        belonging: for an option, by its parameter's name, the parameters that only mean something beside it.
        given: the options that were given.

    Raises:
        SettingsError: one of them was given without it, on the command line or in a file.
    """
    for owner, names in belonging.items():
        for name in names if owner not in given else ():
            source = context.get_parameter_source(name)
            if source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP"):
                raise SettingsError(f"--{name.replace('_', '-')}: only says something about --{owner}; leave it out")


def chosen(**values: Any) -> dict[str, Any]:
    """The options that were given, without those left at None."""
    return {name: value for name, value in values.items() if value is not None}
