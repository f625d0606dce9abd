"""``trl-attribution apply``: a manifest and a dataset make a cleaned dataset."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from trl_attribution.cli import options
from trl_attribution.cli.output import Output, verb


@verb
def apply(
    manifest: Annotated[Path, typer.Argument(help="manifest.filter.jsonl or manifest.flip.jsonl of an audit.")],
    dataset: Annotated[str, typer.Argument(help="The audited dataset, in any format that can be audited.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help=".jsonl, .csv (both also .gz), .parquet, or a new folder.")
    ],
    undo: Annotated[bool, typer.Option("--undo", help="Take back the flips of this manifest.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Go on where the dataset lacks listed pairs.")
    ] = False,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Which split to read; default: the audited one. '' where the file has no splits."),
    ] = None,
    config: options.ConfigFile = None,  # noqa: ARG001  # read before the other options
    quiet: options.Quiet = False,
    as_json: options.Json = False,
    debug: options.Debug = False,  # noqa: ARG001  # acted on by @verb
) -> None:
    """Write DATASET with the decisions of MANIFEST applied; untouched rows come out unchanged, in their order."""
    from trl_attribution.manifest import Manifest
    from trl_attribution.report import terminal

    out = Output(quiet, as_json)
    loaded = Manifest.load(manifest)
    reading = loaded.reading if split is None else replace(loaded.reading, split=split or None)
    report = loaded.apply_file(dataset, output, reading=reading, undo=undo, allow_missing=allow_missing)
    out.show(terminal.apply_summary(report, str(output)))
    out.document({"output": str(output), "report": asdict(report)})
