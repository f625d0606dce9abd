"""Where a cleaned dataset came from, as a section of its dataset card; all names in it are hostile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.card import CARD, Section, no_card, read_card
from trl_attribution.utils.kinds import EXAMPLES, ExampleKind
from trl_attribution.utils.markdown import inline, table
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import counted, is_hub_id
from trl_attribution.utils.version import __version__

if TYPE_CHECKING:
    from trl_attribution.manifest.manifest import Manifest
    from trl_attribution.manifest.tally import ApplyReport

_SOURCES_SHOWN = 50


@dataclass(frozen=True)
class Provenance:
    """What made a dataset out of another."""

    manifest: Manifest
    source: str
    """The input, as the user gave it."""
    undo: bool = False

    @property
    def dataset(self) -> str:
        """The input's name: a hub id, or the last part of a path."""
        local = local_path(self.source).exists() or not is_hub_id(self.source)
        return Path(self.source).name if local else self.source


def section(provenance: Provenance, report: ApplyReport) -> Section:
    """The section of this manifest, the same for the same input; none where it was undone.

    Sections of other manifests stay, so that a dataset cleaned several times tells all of it.
    """
    manifest = provenance.manifest
    kind = EXAMPLES[manifest.header.kind]
    about = f"provenance {manifest.digest}"
    if provenance.undo:
        return Section(about, ())
    facts = [
        ("made from", inline(provenance.dataset)),
        ("rows", f"{report.rows_in:,} before, {report.rows_out:,} after"),
        ("left out", counted(report.filtered, "row")),
        *([("flipped", f"{counted(report.flipped, 'row')}: {kind.flip}")] if kind.flip else []),
        *([("weighed", inline(report.weighed_sentence, 1000))] if report.weight_column else []),
        *_changes(report, kind),
        *_origins(manifest),
        ("tool", f"trl-attribution {inline(__version__)}"),
    ]
    title = "## Provenance of this cleaned dataset"
    return Section(about, [title, "", *table(("", ""), facts), *_sources(report)])


def _origins(manifest: Manifest) -> Iterator[tuple[str, str]]:
    header, kind = manifest.header, EXAMPLES[manifest.header.kind]
    yield "manifest", f"sha256 {manifest.digest}"
    yield from (("made of manifest", f"sha256 {parent}") for parent in header.parents)
    yield from (("reviewed in", f"decisions, sha256 {review}") for review in header.reviews)
    yield "audited dataset", f"fingerprint {header.dataset_fingerprint}"
    yield "M0", f"fingerprint {inline(header.model_fingerprint, 400)}"
    rule = {name: value for name, value in header.rule.items() if isinstance(value, str | int | float)}
    yield "rule", inline(", ".join(f"{name} {value}" for name, value in rule.items())) or "none stated"
    counts = Counter(one.probe for one in manifest.decisions if one.action != "keep" and one.reviewer is None)
    for name, fingerprint in sorted(header.probe_fingerprints.items()):
        yield "probe", f"{inline(name)}: {kind.counted(counts[name])}, fingerprint {inline(fingerprint, 400)}"
    by_person = [one for one in manifest.decisions if one.reviewer is not None]
    if by_person:
        people = ", ".join(sorted({one.reviewer or "unnamed" for one in by_person}))
        yield "reviewers", f"{inline(people, 400)}: decided about {kind.counted(len(by_person))}"


def update_folder_card(folder: Path, name: str, provenance: Provenance, report: ApplyReport) -> None:
    """Bring ``README.md`` in a folder up to date; one that is not there is begun with the folder's name.

    Raises:
        DataError: what is there cannot be read as text.
    """
    path = folder / CARD
    if path.exists() or not provenance.undo:
        section(provenance, report).write(path, read_card(path, begun(name)))


@contextmanager
def file_card_written(output: Path, provenance: Provenance, report: ApplyReport) -> Iterator[None]:
    """Write ``OUTPUT.card.md`` beside the output file that the block writes, once it has.

    The card goes on from the one beside the input where there is one. What could go wrong with it does so before the
    block.

    Raises:
        DataError: that card cannot be read as text, or a folder has the new one's name.
        AttributionError: the card cannot be written.
    """
    given, target = local_path(provenance.source), file_card(output)
    earlier = given.is_file() and file_card(given).exists()
    if provenance.undo and not earlier:
        yield
        return
    card = read_card(file_card(given), begun(output.name)) if earlier else begun(output.name)
    if target.is_dir():
        raise no_card(target, "it is a folder")
    with atomic_path(target) as part:
        part.write_bytes(section(provenance, report).within(card).encode("utf-8"))
        yield


def file_card(file: Path) -> Path:
    """Where the card of a single file lies."""
    return file.with_name(f"{file.name}.card.md")


def begun(name: str) -> str:
    """A card that has only a title."""
    return f"# {inline(name)}\n"


def _changes(report: ApplyReport, kind: ExampleKind) -> Iterable[tuple[str, str]]:
    if report.swapped_columns:
        pairs = ", ".join(f"{first} and {second}" for first, second in report.swapped_columns)
        yield "exchanged too", inline(pairs, 1000)
    if report.negated_columns:
        yield "sign turned", inline(", ".join(report.negated_columns), 1000)
    if report.missing:
        yield "missing", f"{report.missing:,} listed {kind.several} were not in the dataset"
    if report.unreadable:
        yield f"no {kind.several}", f"{report.unreadable:,} rows are no {kind} and were carried over"
    if report.other_splits:
        splits = ", ".join(f"{name} ({counted(rows, 'row')})" for name, rows in report.other_splits.items())
        yield "other splits", f"as they were: {inline(splits, 1000)}"


def _sources(report: ApplyReport) -> list[str]:
    changed = [one for one in report.sources if one.changed]
    if not changed:
        return []
    last = "weighed" if report.weight_column else "flipped"
    rows = [
        (inline(one.source, 100), f"{one.rows:,}", f"{one.filtered:,}", f"{one.weighed or one.flipped:,}")
        for one in changed[:_SOURCES_SHOWN]
    ]
    lines = ["", *table(("source", "rows before", "left out", last), rows)]
    if len(changed) > _SOURCES_SHOWN:
        lines += ["", f"and {len(changed) - _SOURCES_SHOWN:,} more sources"]
    return lines
