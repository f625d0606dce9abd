"""``trl-attribution apply``: a manifest and a dataset make a cleaned dataset."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.settings import Only, Without
from trl_attribution.errors import ManifestError, SettingsError
from trl_attribution.manifest.config import ApplyOptions, ColumnRules, MergeRules
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.manifest import Manifest

_SHORTEST_DIGEST = 12
_APPLYING = Only("undo", "allow_missing", "zero_advantages", "action", "weight_column", "weight_floor")


@verb
def apply(
    manifest: Annotated[
        Path, typer.Argument(help="manifest.filter.jsonl or manifest.flip.jsonl of an audit."), paths.MANIFEST
    ],
    dataset: Annotated[
        str, typer.Argument(help="The audited dataset, in any format that can be audited."), paths.DATASET
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=".jsonl, .csv, .tsv (also .gz), .parquet, or a new folder."),
        paths.Made(),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Which split to read; default: the audited one. '' where the file has no splits."),
    ] = None,
    decisions: Annotated[
        list[Path] | None,
        typer.Option("--decisions", help="Reviewers' decisions, which count for more than the manifest; repeatable."),
        paths.DECISIONS,
    ] = None,
    swap_columns: Annotated[
        list[str] | None,
        typer.Option("--swap-columns", metavar="A:B", help="Exchange these two when a pair is flipped; repeatable."),
    ] = None,
    negate_columns: Annotated[
        list[str] | None,
        typer.Option("--negate-columns", metavar="NAME", help="Turn this number's sign in a flipped pair; repeatable."),
    ] = None,
    leave_columns: Annotated[
        list[str] | None,
        typer.Option("--leave-columns", metavar="NAME", help="Leave this column alone in flipped pairs; repeatable."),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option("--digest", help="Refuse a manifest other than the one with this digest (or its start)."),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option("--check", metavar="CLEANED", help="Write nothing; say whether CLEANED is the result, exactly."),
        paths.DATASET,
    ] = None,
    card: Annotated[
        bool, typer.Option("--card/--no-card", help="Write where the data came from: README.md or OUTPUT.card.md.")
    ] = True,
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload the result to a dataset repository."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Let everybody read what is pushed.")] = False,
    *,
    applying: Annotated[ApplyOptions, _APPLYING],
    rules: Annotated[MergeRules, Without("allow_other_models")],
    out: Output,
) -> None:
    """Write DATASET with the decisions of MANIFEST applied; untouched rows come out unchanged, in their order."""
    from trl_attribution.manifest.card import Provenance, file_card
    from trl_attribution.manifest.checking import check_applied
    from trl_attribution.manifest.files import write_applied
    from trl_attribution.manifest.hub import HubTarget
    from trl_attribution.report import manifests

    _check_options(output, check, push_to_hub, public)
    options.check_apart(output, manifest, *(decisions or []))
    if output is not None and output.exists() and not overwrite:
        raise SettingsError(f"--output: {output} is there already; choose another name, or replace it (--overwrite)")
    loaded = _load(manifest, digest)
    loaded = _reviewed(loaded, decisions or [], rules)
    reading = loaded.reading if split is None else replace(loaded.reading, split=split or None)
    columns = ColumnRules.parse(swap_columns or (), negate_columns or (), leave_columns or ())
    applying = replace(applying, columns=columns)
    if check is not None:
        report = check_applied(loaded, dataset, check, reading, applying)
        out.show(manifests.apply_summary(report, check, "checked"))
        out.document({"checked": check, "manifest": loaded.digest, "report": asdict(report)})
        return
    target = None if push_to_hub is None else HubTarget.check(push_to_hub, private=not public)
    with ExitStack() as stack:
        written = output or Path(stack.enter_context(TemporaryDirectory()), "dataset")
        report = write_applied(loaded, dataset, written, reading, applying, card)
        document = {"output": output and str(output), "manifest": loaded.digest, "report": asdict(report)}
        beside = None if output is None else file_card(output)
        has_card = beside is not None and beside.is_file()
        out.show(manifests.apply_summary(report, str(output or push_to_hub), card=beside if has_card else None))
        if target is not None:
            pushed = target.push(written, Provenance(loaded, dataset, applying.undo), report)
            out.show(f"pushed to {pushed.url} ({'private' if pushed.private else 'public'})")
            document["pushed"] = asdict(pushed)
        out.document(document)


def _check_options(output: Path | None, check: str | None, push_to_hub: str | None, public: bool) -> None:
    if check is not None and (output is not None or push_to_hub is not None):
        raise SettingsError("--check: writes nothing, so leave out --output and --push-to-hub")
    if check is None and output is None and push_to_hub is None:
        raise SettingsError("--output: say where the cleaned dataset goes (or --push-to-hub, or --check)")
    if public and push_to_hub is None:
        raise SettingsError("--public: only says something about --push-to-hub")


def _load(path: Path, digest: str | None) -> Manifest:
    from trl_attribution.manifest import Manifest

    loaded = Manifest.load(path)
    if digest is not None and (len(digest) < _SHORTEST_DIGEST or not loaded.digest.startswith(digest.lower())):
        raise ManifestError(
            f"{path}: has the digest {loaded.digest}, not {printable(digest, 64)} (at least {_SHORTEST_DIGEST} digits "
            "of it). Get the manifest that was signed off, or look at this one with `trl-attribution manifest show`."
        )
    return loaded


def _reviewed(manifest: Manifest, decisions: list[Path], rules: MergeRules) -> Manifest:
    from trl_attribution.manifest import ReviewDecisions, merge

    if not decisions:
        return manifest
    return merge([manifest], rules, [ReviewDecisions.load(path) for path in decisions]).manifest
