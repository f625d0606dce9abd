"""Where a cleaned dataset came from, as a section of its dataset card; all names in it are hostile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trl_attribution.errors import ManifestError
from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.markdown import Marks, inline, put_section, table
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import counted, is_hub_id, printable
from trl_attribution.utils.version import __version__

if TYPE_CHECKING:
    from trl_attribution.manifest.applying import ApplyReport
    from trl_attribution.manifest.manifest import Manifest

CARD = "README.md"
_SOURCES_SHOWN = 50


@dataclass(frozen=True)
class Provenance:
    """What a card says of the manifest that made a dataset out of another."""

    dataset: str
    """The input's name: a hub id, or the last part of a path."""
    digest: str
    """Of the manifest."""
    undo: bool
    dataset_fingerprint: str
    model_fingerprint: str
    probes: tuple[tuple[str, str, int], ...]
    """Name, fingerprint and number of decisions of each probe."""
    reviewed: tuple[str, ...]
    """Reviewers who decided about pairs."""
    reviewed_pairs: int
    rule: str
    parents: tuple[str, ...]
    reviews: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Manifest, dataset: str, undo: bool = False) -> Provenance:
        """What there is to say of one manifest; ``dataset`` is what the user gave."""
        header = manifest.header
        acting = [one for one in manifest.decisions if one.action != "keep"]
        counts = Counter(one.probe for one in acting if one.reviewer is None)
        by_person = [one for one in manifest.decisions if one.reviewer is not None]
        rule = {name: value for name, value in header.rule.items() if isinstance(value, str | int | float)}
        local = local_path(dataset).exists() or not is_hub_id(dataset)
        return cls(
            dataset=Path(dataset).name if local else dataset,
            digest=manifest.digest,
            undo=undo,
            dataset_fingerprint=header.dataset_fingerprint,
            model_fingerprint=header.model_fingerprint,
            probes=tuple((name, print_, counts[name]) for name, print_ in sorted(header.probe_fingerprints.items())),
            reviewed=tuple(sorted({one.reviewer or "unnamed" for one in by_person})),
            reviewed_pairs=len(by_person),
            rule=", ".join(f"{name} {value}" for name, value in rule.items()),
            parents=header.parents,
            reviews=header.reviews,
        )


def section(provenance: Provenance, report: ApplyReport) -> str:
    """The section between its marks, the same for the same input."""
    facts = [
        ("made from", inline(provenance.dataset)),
        ("rows", f"{report.rows_in:,} before, {report.rows_out:,} after"),
        ("left out", counted(report.filtered, "row")),
        ("flipped", f"{counted(report.flipped, 'row')}: chosen and rejected changed places"),
        *_changes(report),
        ("manifest", f"sha256 {provenance.digest}"),
        *(("made of manifest", f"sha256 {parent}") for parent in provenance.parents),
        *(("reviewed in", f"decisions, sha256 {review}") for review in provenance.reviews),
        ("audited dataset", f"fingerprint {provenance.dataset_fingerprint}"),
        ("M0", f"fingerprint {inline(provenance.model_fingerprint, 400)}"),
        ("rule", inline(provenance.rule) or "none stated"),
    ]
    facts += [
        ("probe", f"{inline(name)}: {counted(count, 'pair')}, fingerprint {inline(fingerprint, 400)}")
        for name, fingerprint, count in provenance.probes
    ]
    if provenance.reviewed_pairs:
        people = inline(", ".join(provenance.reviewed), 400)
        facts.append(("reviewers", f"{people}: decided about {counted(provenance.reviewed_pairs, 'pair')}"))
    facts.append(("tool", f"trl-attribution {inline(__version__)}"))
    marks = _marks(provenance.digest)
    title = "## Provenance of this cleaned dataset"
    lines = [marks.begin, title, "", *table(("", ""), facts), *_sources(report), "", marks.end]
    return "\n".join(lines)


def with_section(card: str, provenance: Provenance, report: ApplyReport) -> str:
    """A card with the section of this manifest: put at the end, or in the place of an earlier one.

    Sections of other manifests stay, so that a dataset cleaned several times tells all of it. Where the manifest was
    undone, its section is taken out.
    """
    return put_section(card, _marks(provenance.digest), "" if provenance.undo else section(provenance, report))


def update_folder_card(folder: Path, name: str, provenance: Provenance, report: ApplyReport) -> None:
    """Bring ``README.md`` in a folder up to date; one that is not there is begun with the folder's name.

    Raises:
        ManifestError: what is there cannot be read as text.
    """
    path = folder / CARD
    if path.exists() or not provenance.undo:
        card = read_card(path, name)
        # Newlines stay as they are: a card with \r\n is not ours to change.
        path.write_bytes(with_section(card, provenance, report).encode("utf-8"))


@contextmanager
def file_card_written(output: Path, provenance: Provenance, report: ApplyReport, source: str | Path) -> Iterator[None]:
    """Write ``OUTPUT.card.md`` beside the output file that the block writes, once it has.

    The card goes on from the one beside the input where there is one. What could go wrong with it does so before the
    block.

    Raises:
        ManifestError: that card cannot be read as text, or a folder has the new one's name.
        AttributionError: the card cannot be written.
    """
    given, target = local_path(source), file_card(output)
    earlier = file_card(given) if given.is_file() and file_card(given).exists() else None
    if provenance.undo and earlier is None:
        yield
        return
    card = _begun(output.name) if earlier is None else read_card(earlier, output.name)
    if target.is_dir():
        raise _no_card(target, "it is a folder")
    with atomic_path(target) as part:
        part.write_bytes(with_section(card, provenance, report).encode("utf-8"))
        yield


def file_card(file: Path) -> Path:
    """Where the card of a single file lies."""
    return file.with_name(f"{file.name}.card.md")


def read_card(path: Path, name: str) -> str:
    """The card at ``path``, or a new one with ``name`` as its title.

    Raises:
        ManifestError: it cannot be read as text.
    """
    if not path.exists():
        return _begun(name)
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _no_card(path, error) from error


def _no_card(path: Path, fault: object) -> ManifestError:
    return ManifestError(
        f"cannot add the provenance to {printable(path, 400)}: {printable(fault)}. Mend or remove it, or write no card "
        "(--no-card)."
    )


def _changes(report: ApplyReport) -> Iterable[tuple[str, str]]:
    if report.swapped_columns:
        pairs = ", ".join(f"{first} and {second}" for first, second in report.swapped_columns)
        yield "exchanged too", inline(pairs, 1000)
    if report.negated_columns:
        yield "sign turned", inline(", ".join(report.negated_columns), 1000)
    if report.missing:
        yield "missing", f"{report.missing:,} listed pairs were not in the dataset"
    if report.unreadable:
        yield "no pairs", f"{report.unreadable:,} rows are no preference pairs and were carried over"
    if report.other_splits:
        splits = ", ".join(f"{name} ({counted(rows, 'row')})" for name, rows in report.other_splits.items())
        yield "other splits", f"as they were: {inline(splits, 1000)}"


def _sources(report: ApplyReport) -> list[str]:
    changed = [one for one in report.sources if one.filtered or one.flipped]
    if not changed:
        return []
    rows = [
        (inline(one.source, 100), f"{one.rows:,}", f"{one.filtered:,}", f"{one.flipped:,}")
        for one in changed[:_SOURCES_SHOWN]
    ]
    lines = ["", *table(("source", "rows before", "left out", "flipped"), rows)]
    if len(changed) > _SOURCES_SHOWN:
        lines += ["", f"and {len(changed) - _SOURCES_SHOWN:,} more sources"]
    return lines


def _begun(name: str) -> str:
    return f"# {inline(name)}\n"


def _marks(digest: str) -> Marks:
    return Marks(*(f"<!-- trl-attribution provenance {digest} {which} -->" for which in ("begin", "end")))
