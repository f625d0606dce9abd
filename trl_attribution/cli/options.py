"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trl_attribution.errors import SettingsError
from trl_attribution.utils.paths import local_path


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
    settings = {str(name).replace("-", "_"): value for name, value in values.items()}
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


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.yaml",
        help="Options in a YAML file (names with _ or -); the command line wins.",
        is_eager=True,
        callback=_read_config,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print results and errors only, no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

Model = Annotated[str, typer.Option("--model", help="M0: a Hub id, a local folder, or a GGUF file.")]
Registry = Annotated[Path, typer.Option("--registry", help="Folder of probes.")]
Dtype = Annotated[str, typer.Option("--dtype", help="What M0 computes in: auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", help="A torch device; auto takes CUDA, then MPS, then CPU.")]
MaxLength = Annotated[
    str, typer.Option("--max-length", help="Most tokens of prompt and response, as DPOConfig's; none for no limit.")
]
TruncationMode = Annotated[
    str, typer.Option("--truncation-mode", help="Which end of a longer sequence stays: keep_start or keep_end.")
]
TokenBudget = Annotated[
    int | None, typer.Option("--token-budget", help="Tokens in one forward pass; chosen by device if left out.")
]
BlocksPath = Annotated[
    str | None, typer.Option("--blocks-path", help="Where the decoder blocks live, such as model.layers.")
]
ForwardPath = Annotated[str, typer.Option("--path", help="packed, plain, or auto by a self-check.")]
Score = Annotated[
    str,
    typer.Option("--score", help="controlled, contextual, response (the paper's), or auto by what the probe knows."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a probe of the same name.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
PromptColumn = Annotated[
    str, typer.Option("--prompt-column", help="Column with the prompt; '' where it is inside both responses.")
]
ChosenColumn = Annotated[str, typer.Option("--chosen-column", help="Column with the preferred response.")]
RejectedColumn = Annotated[str, typer.Option("--rejected-column", help="Column with the other response.")]
SourceColumn = Annotated[str, typer.Option("--source-column", help="Column that says where a pair comes from.")]
Format = Annotated[
    str, typer.Option("--format", help="trl, anthropic (raw Human/Assistant transcripts), or auto by the first row.")
]
Split = Annotated[str | None, typer.Option("--split", help="Which split to read where there are several.")]
OnBadRow = Annotated[
    str, typer.Option("--on-bad-row", help="error refuses a dataset with bad rows; skip leaves them out and says so.")
]


MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Tokens of a sampled response.")]
Temperature = Annotated[float, typer.Option("--temperature", help="Of sampling; 0 is greedy.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Prompts generated for at once.")]
Seed = Annotated[int, typer.Option("--seed", help="Of sampling.")]
PromptFormat = Annotated[
    str, typer.Option("--prompt-format", help="chat makes a text prompt a user message, text does not.")
]
RuleForPrompts = Annotated[
    str | None, typer.Option("--judge", help="Which responses show it, where the prompts do not say: a rule.")
]
KeptResponses = Annotated[
    Path | None, typer.Option("--output", "-o", help="Keep every response and its verdict (JSONL).")
]
JudgeKeyEnv = Annotated[str, typer.Option("--judge-key-env", help="Environment variable with the key of an endpoint.")]
JudgeCalls = Annotated[int, typer.Option("--judge-calls", help="Budget: calls of an endpoint, retries included.")]


def parse_max_length(text: str) -> int | None:
    """``none`` or a positive whole number.

    Raises:
        SettingsError: it is neither.
    """
    if text.lower() == "none":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"--max-length: {text!r} is neither a positive whole number nor none")
    return int(text)


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
