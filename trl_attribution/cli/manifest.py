"""``trl-attribution manifest``: look at manifests, and make new ones of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.settings import Only
from trl_attribution.errors import SettingsError
from trl_attribution.manifest.config import MergeRules

if TYPE_CHECKING:
    from trl_attribution.manifest import Manifest
    from trl_attribution.manifest.by_source import Share

manifest_app = typer.Typer(help="Look at manifests, and merge, subtract or cut them.", no_args_is_help=True)

One = Annotated[Path, typer.Argument(metavar="MANIFEST", help="A manifest."), paths.MANIFEST]
Target = Annotated[Path, typer.Option("--output", "-o", help="Where the new manifest goes."), paths.A_MANIFEST]
SourcesFrom = Annotated[
    str,
    typer.Option("--sources-from", help="The audit's folder or scores.parquet, or the audited dataset."),
    paths.SOURCES,
]
Shown = Annotated[int, typer.Option("--show", min=0, help="How many pairs to list.")]


@manifest_app.command("show")
@verb
def show(
    manifest: One,
    sources_from: Annotated[
        str | None,
        typer.Option("--sources-from", help="Count by source: the audit's folder, its scores.parquet, or the dataset."),
        paths.SOURCES,
    ] = None,
    shown: Shown = 10,
    *,
    out: Output,
) -> None:
    """Say what MANIFEST decides, about which dataset, by which probes, and its digest."""
    from trl_attribution.manifest import Manifest, Sources
    from trl_attribution.report import manifests

    loaded = Manifest.load(manifest)
    sources = None if sources_from is None else Sources.read(sources_from, loaded)
    out.show(manifests.manifest_summary(loaded, shown, sources))
    document: dict[str, Any] = {"digest": loaded.digest, "header": asdict(loaded.header)}
    if sources is not None:
        document["sources"] = _by_source(loaded, sources.of)
    out.document({**document, "decisions": [asdict(one) for one in loaded.decisions[:shown]]})


@manifest_app.command("diff")
@verb
def diff(
    first: Annotated[Path, typer.Argument(help="A manifest."), paths.MANIFEST],
    second: Annotated[Path, typer.Argument(help="Another."), paths.MANIFEST],
    shown: Shown = 10,
    *,
    out: Output,
) -> None:
    """Say where FIRST and SECOND decide differently; exit code 0 either way."""
    from trl_attribution.manifest import Manifest
    from trl_attribution.manifest import diff as difference_of
    from trl_attribution.report import manifests

    found = difference_of(Manifest.load(first), Manifest.load(second))
    out.show(manifests.difference_summary(found, shown))
    out.document(asdict(found))


@manifest_app.command("merge")
@verb
def merge(
    given: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="One manifest or more."), paths.MANIFEST],
    output: Target,
    decisions: Annotated[
        list[Path] | None,
        typer.Option("--decisions", help="Reviewers' decisions, which count for more than any manifest; repeatable."),
        paths.DECISIONS,
    ] = None,
    shown: Shown = 10,
    *,
    rules: MergeRules,
    out: Output,
) -> None:
    """Make one manifest of several, or of one and its reviewers' decisions."""
    from trl_attribution.manifest import Manifest, ReviewDecisions
    from trl_attribution.manifest import merge as merged_of
    from trl_attribution.report import manifests

    if len(given) < 2 and not decisions:
        raise SettingsError("there is nothing to merge: give two manifests or more, or --decisions")
    options.check_apart(output, *given, *(decisions or []))
    loaded = [Manifest.load(path) for path in given]
    merged = merged_of(loaded, rules, [ReviewDecisions.load(path) for path in decisions or []])
    merged.manifest.save(output)
    out.show(manifests.merge_summary(merged, str(output), shown))
    out.document(
        {
            **_made(merged.manifest, output),
            "conflicts": [asdict(one) for one in merged.conflicts],
            "overridden": merged.overridden,
            "added": merged.added,
        }
    )


@manifest_app.command("subtract")
@verb
def subtract(
    manifest: One,
    others: Annotated[
        list[Path], typer.Argument(metavar="OTHER...", help="Manifests whose pairs are taken out."), paths.MANIFEST
    ],
    output: Target,
    *,
    rules: Annotated[MergeRules, Only("allow_other_datasets")],
    out: Output,
) -> None:
    """Take the pairs that the OTHER manifests list out of MANIFEST, whatever they decide about them."""
    from trl_attribution.manifest import Manifest
    from trl_attribution.manifest import subtract as without

    options.check_apart(output, manifest, *others)
    loaded = Manifest.load(manifest)
    made = without(loaded, [Manifest.load(path) for path in others], rules.allow_other_datasets)
    _save(out, loaded, made, output)


@manifest_app.command("restrict")
@verb
def restrict(
    manifest: One,
    sources_from: SourcesFrom,
    output: Target,
    only: Annotated[list[str] | None, typer.Option("--only", help="A source that stays; repeatable.")] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="A source that is left out; repeatable.")
    ] = None,
    *,
    out: Output,
) -> None:
    """Keep only the decisions about some sources."""
    from trl_attribution.manifest import Manifest, Sources
    from trl_attribution.manifest import restrict as restricted

    options.check_apart(output, manifest, sources_from)
    loaded = Manifest.load(manifest)
    made = restricted(loaded, Sources.read(sources_from, loaded), only or (), without or ())
    _save(out, loaded, made, output)


@manifest_app.command("cap")
@verb
def cap(
    manifest: One,
    sources_from: SourcesFrom,
    output: Target,
    max_share: Annotated[float, typer.Option("--max-share", help="Most of any source, above 0 and at most 1.")],
    of: Annotated[
        str,
        typer.Option("--of", help="source: the share of each source's pairs that changes; manifest: of all changes."),
    ] = "source",
    *,
    out: Output,
) -> None:
    """Keep the best-ranked decisions, so that no source has more than its share."""
    from trl_attribution.manifest import Manifest, Sources
    from trl_attribution.manifest import cap as capped

    options.check_apart(output, manifest, sources_from)
    loaded = Manifest.load(manifest)
    made = capped(loaded, Sources.read(sources_from, loaded), max_share, cast("Share", of))
    _save(out, loaded, made, output)


def _save(out: Output, before: Manifest, made: Manifest, output: Path) -> None:
    from trl_attribution.report import manifests

    made.save(output)
    out.show(manifests.made_summary(before, made, str(output)))
    out.document({**_made(made, output), "left_out": len(before.decisions) - len(made.decisions)})


def _made(manifest: Manifest, output: Path) -> dict[str, Any]:
    return {"output": str(output), "digest": manifest.digest, "header": asdict(manifest.header)}


def _by_source(manifest: Manifest, sources: Any) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for decision in manifest.decisions:
        actions = found.setdefault(sources[decision.pair_id], {})
        actions[decision.action] = actions.get(decision.action, 0) + 1
    return found
