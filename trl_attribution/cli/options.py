"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trl_attribution.errors import SettingsError


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the defaults of this command's options; what the command line says still wins."""
    if path is None:
        return None
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{path}: expected a mapping of option names to values, such as 'top_k: 500'")
    known = {parameter.name for parameter in context.command.params} - {"config"}
    settings = {str(name).replace("-", "_"): value for name, value in values.items()}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise typer.BadParameter(f"{path}: unknown option {', '.join(unknown)}; choose from {', '.join(sorted(known))}")
    context.default_map = {**(context.default_map or {}), **settings}
    return path


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
    str, typer.Option("--score", help="contextual, response (the paper's), or auto by what the probe knows.")
]
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


def chosen(**values: Any) -> dict[str, Any]:
    """The options that were given, without those left at None."""
    return {name: value for name, value in values.items() if value is not None}
