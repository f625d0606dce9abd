"""Manifests as rich tables: what one says and does, how two differ, what a merge settled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from trl_attribution.manifest import ApplyReport, Conflict, Decision, Difference, Manifest, Merged, Sources
from trl_attribution.manifest.decisions import Action
from trl_attribution.utils.tables import facts, table
from trl_attribution.utils.text import counted, printable

_ACTIONS: tuple[Action, ...] = ("filter", "flip", "keep")


def apply_summary(report: ApplyReport, output: str, done: str = "written", card: Path | None = None) -> RenderableType:
    """What applying a manifest did, and what was ``done`` with ``output``, which ``card`` describes."""
    lines = [
        ("rows", f"{report.rows_in:,} in, {report.rows_out:,} out"),
        ("filtered", counted(report.filtered, "row")),
        ("flipped", counted(report.flipped, "row")),
        *([("set to 0", f"the advantage of {counted(report.zeroed, 'row')}")] if report.zeroed else []),
        *([("weighed", report.weighed_sentence)] if report.weight_column else []),
        (done, printable(output, 400)),
        *([("card", printable(card, 400))] if card is not None else []),
    ]
    if report.files_copied or report.files_rewritten:
        lines.append(
            ("files", f"{report.files_rewritten:,} rewritten, {report.files_copied:,} byte for byte as before")
        )
    notes = {
        "repeats": (report.duplicates, "rows repeat a listed pair and were treated alike"),
        "missing": (report.missing, "listed pairs are not in this dataset"),
        "opposed": (report.opposed, "rows already hold a flipped pair the other way round and stay"),
        "unreadable": (
            report.unreadable,
            "rows are no examples, or teach nothing, and were carried over",
        ),
        "left out": (report.files_left_out, "hidden folders, links to folders and special files were left out"),
    }
    lines += [(name, f"{count:,} {meaning}") for name, (count, meaning) in notes.items() if count]
    lines += _column_lines(report)
    if report.other_splits:
        splits = ", ".join(f"{name} ({counted(rows, 'row')})" for name, rows in report.other_splits.items())
        lines.append(("other splits", f"carried over as they are: {printable(splits, 1000)}"))
    if report.splits_left_out:
        splits = printable(", ".join(report.splits_left_out), 1000)
        lines.append(("splits left out", f"{splits}: a single file holds one split; give a folder as output for all"))
    if not report.same_dataset:
        lines.append(("note", "this is not row for row the dataset that was audited"))
    return facts(lines)


def manifest_summary(manifest: Manifest, shown: int, sources: Sources | None = None) -> RenderableType:
    """The header, what is decided by which probe, and the first decisions; by source where that is known."""
    header = manifest.header
    counts = Counter(decision.action for decision in manifest.decisions)
    decided = ", ".join(f"{counts[action]:,} {action}" for action in _ACTIONS if counts[action])
    lines = [
        ("digest", manifest.digest),
        ("action", header.action),
        ("decisions", f"{len(manifest.decisions):,}" + (f" ({decided})" if decided else "")),
        ("dataset", f"fingerprint {header.dataset_fingerprint}"),
        ("M0", f"fingerprint {printable(header.model_fingerprint)}"),
        ("rule", printable(", ".join(f"{name} {value}" for name, value in header.rule.items()), 500) or "none stated"),
    ]
    lines += [("made of", parent) for parent in header.parents]
    lines += [("reviewed in", review) for review in header.reviews]
    by_people = sum(decision.reviewer is not None for decision in manifest.decisions)
    if by_people:
        lines.append(("by reviewers", counted(by_people, "decision")))
    lines.append(("tool", f"trl-attribution {printable(header.tool_version, 40)}"))
    parts: list[RenderableType] = [facts(lines), _by_probe(manifest)]
    if sources is not None:
        parts.append(_by_source(manifest, sources))
    if shown and manifest.decisions:
        title = f"First {min(shown, len(manifest.decisions))} of {len(manifest.decisions):,} decisions"
        parts.append(decisions_table(title, manifest.decisions[:shown]))
    return Group(*parts)


def decisions_table(title: str, decisions: Sequence[Decision]) -> Table:
    """One line a decision."""
    rows = (
        (
            one.pair_id,
            "-" if one.row is None else str(one.row),
            one.action,
            printable(one.probe, 40),
            "-" if one.score is None else f"{one.score:+.3f}",
            "-" if one.rank is None else f"{one.rank:,}",
            "" if one.reviewer is None else printable(one.reviewer or "unnamed", 40),
        )
        for one in decisions
    )
    return table(title, ("pair", ">row", "action", "probe", ">score", ">rank", "reviewer"), rows)


def difference_summary(found: Difference, shown: int) -> RenderableType:
    """How many decisions two manifests share, and the first of those that they do not."""
    lines = [
        ("same", counted(found.same, "decision")),
        ("only in the first", f"{len(found.only_first):,}"),
        ("only in the second", f"{len(found.only_second):,}"),
        ("another action", f"{len(found.changed):,}"),
    ]
    parts: list[RenderableType] = [facts(lines)]
    for title, decisions in (("Only in the first", found.only_first), ("Only in the second", found.only_second)):
        if decisions and shown:
            parts.append(decisions_table(title, decisions[:shown]))
    if found.changed and shown:
        rows = ((before.pair_id, before.action, after.action) for before, after in found.changed[:shown])
        parts.append(table("Another action", ("pair", "first", "second"), rows))
    return Group(*parts)


def merge_summary(merged: Merged, output: str, shown: int) -> RenderableType:
    """What was merged, what reviewers changed, and which conflicts were settled how."""
    lines = [
        ("decisions", f"{len(merged.manifest.decisions):,}, action {merged.manifest.header.action}"),
        ("reviewers", f"changed {counted(merged.overridden, 'decision')} and added {merged.added:,}"),
        ("conflicts", f"{len(merged.conflicts):,}"),
        ("digest", merged.manifest.digest),
        ("written", printable(output, 400)),
    ]
    if not (merged.overridden or merged.added):
        del lines[1]
    parts: list[RenderableType] = [facts(lines)]
    if merged.conflicts and shown:
        parts.append(_conflicts(merged.conflicts, shown))
    return Group(*parts)


def made_summary(before: Manifest, after: Manifest, output: str) -> RenderableType:
    """How many decisions of a manifest are left in the one made from it."""
    return facts(
        [
            ("decisions", f"{len(after.decisions):,} of {len(before.decisions):,} left"),
            ("digest", after.digest),
            ("written", printable(output, 400)),
        ]
    )


def _column_lines(report: ApplyReport) -> list[tuple[str, str]]:
    """What was done with further columns of flipped rows."""
    swapped = ", ".join(f"{first} and {second}" for first, second in report.swapped_columns)
    columns = {
        "exchanged": swapped,
        "sign turned": ", ".join(report.negated_columns),
        "left as is": ", ".join(report.left_columns),
    }
    return [(name, f"in flipped rows: {printable(text, 1000)}") for name, text in columns.items() if text]


def _conflicts(conflicts: Sequence[Conflict], shown: int) -> Table:
    title = f"Conflicts (first {min(shown, len(conflicts))} of {len(conflicts):,})"
    rows = (
        (one.pair_id, ", ".join(f"{printable(who, 40)}: {action}" for who, action in one.actions[:5]), one.chosen)
        for one in conflicts[:shown]
    )
    return table(title, ("pair", "decided", "now"), rows)


def _by_probe(manifest: Manifest) -> Table:
    counts = Counter((decision.probe, decision.action) for decision in manifest.decisions)
    prints = manifest.header.probe_fingerprints
    rows = (
        (
            printable(probe, 60) or "(reviewers)",
            *(f"{counts[probe, action]:,}" for action in _ACTIONS),
            printable(prints.get(probe, ""), 64),
        )
        for probe in sorted({*prints, *(name for name, _ in counts)})
    )
    return table("By probe", ("probe", *(f">{action}" for action in _ACTIONS), "fingerprint"), rows)


def _by_source(manifest: Manifest, sources: Sources) -> Table:
    counts = Counter((sources.of[decision.pair_id], decision.action) for decision in manifest.decisions)
    changed = {name: counts[name, "filter"] + counts[name, "flip"] for name, _ in counts}
    totals = sources.counts()
    rows = (
        (
            printable(name, 60),
            f"{totals[name]:,}",
            *(f"{counts[name, action]:,}" for action in _ACTIONS),
            f"{changed[name] / totals[name]:.1%}",
        )
        for name in sorted(changed, key=lambda name: (-changed[name], name))
    )
    return table("By source", ("source", ">pairs", *(f">{action}" for action in _ACTIONS), ">share changed"), rows)
