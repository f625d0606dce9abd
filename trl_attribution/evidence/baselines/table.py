"""A comparison as a rich table. Names and notes only ever enter as ``Text`` made printable, never as markup."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from trl_attribution.evidence.baselines.comparing import ComparedRow, Comparison
from trl_attribution.utils.tables import table
from trl_attribution.utils.text import printable

_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def comparison_table(found: Comparison) -> RenderableType:
    """Rankings by quality where the truth is known, by agreement with the audit's where not; then the notes."""
    columns = ("ranking", *(f">{column}" for column in _columns(found)))
    return Group(table(_title(found), columns, map(_row, found.rows)), *_notes(found.rows))


def _row(row: ComparedRow) -> list[str | Text]:
    name = Text(printable(row.name, 60), "bold" if row.ours else "")
    return [name, *_quality(row), *_agreement(row), _seconds(row), _flops(row.cost.flops)]


def _title(found: Comparison) -> str:
    title = f"{found.pairs:,} pairs of {printable(found.dataset, 60)}, k = {found.k:,}"
    if found.truth is not None:
        values = ", ".join(printable(value, 40) for value in found.truth.values)
        title += f"; {int(found.truth.wanted.sum()):,} marked by {printable(found.truth.column, 40)} = {values}"
    return title


def _columns(found: Comparison) -> list[str]:
    measured = ["avg. precision", "precision at k", "AUC"] if found.truth is not None else []
    return [*measured, "rank corr.", "overlap at k", "seconds", "FLOPs"]


def _quality(row: ComparedRow) -> list[str]:
    if row.quality is None:
        return []
    return [f"{value:.3f}" for value in (row.quality.average_precision, row.quality.precision_at_k, row.quality.auc)]


def _agreement(row: ComparedRow) -> list[str]:
    if row.agreement is None:
        return ["-", "-"]
    return [f"{row.agreement.spearman:+.2f}", f"{row.agreement.overlap_at_k:.0%}"]


def _seconds(row: ComparedRow) -> str:
    calls = f" ({row.cost.calls:,} calls)" if row.cost.calls is not None else ""
    return f"{row.cost.seconds:,.2f}{calls}{' *' if row.stored else ''}"


def _flops(flops: int | None) -> str:
    if flops is None:
        return "-"
    return next((f"{flops / size:.3g} {letter}" for size, letter in _SCALES if flops >= size), str(flops))


def _notes(rows: Iterable[ComparedRow]) -> list[Text]:
    lines = [f"{printable(row.name, 60)}: {printable(note, 300)}" for row in rows for note in row.notes]
    if any(row.stored for row in rows):
        lines.append("* scores of an earlier run with the same settings, at that run's cost")
    return [Text(line, "dim") for line in lines]
