"""A discovery as rich tables. Dataset text only ever enters as ``Text`` made printable, never as markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trl_attribution.report.terminal import examples_table, sides_text, sources_table
from trl_attribution.utils.tables import facts, table
from trl_attribution.utils.text import counted, printable, tally

if TYPE_CHECKING:
    from trl_attribution.discovery import Cluster, Discovery

_UNNAMED = ("", "", "")
NO_WORDS = "(no words)"


def discovery_view(discovery: Discovery, shown: int = 3) -> RenderableType:
    """What was compared, the clusters by size of effect, then each with ``shown`` typical prompts and top pairs."""
    parts: list[RenderableType] = [summary(discovery)]
    if discovery.clusters:
        parts += ["", clusters_table(discovery)]
    for one in discovery.clusters if shown else ():
        parts += ["", cluster_details(one, shown)]
    return Group(*parts)


def summary(discovery: Discovery) -> RenderableType:
    """:func:`discovery_facts` as a table."""
    return facts(discovery_facts(discovery))


def clusters_table(discovery: Discovery) -> Table:
    """One line a cluster, largest effect first."""
    what = "Behaviors that changed" if discovery.mode == "prompts" else "What the dataset teaches"
    rows = (
        (
            one.cluster,
            f"{one.effect:.3f}",
            f"{one.share:.1%}",
            f"{one.towards:,}/{one.against:,}",
            f"{one.adjusted_p:.2g}",
            f"{one.pairs_towards:,}",
            cluster_title(one, 4) or NO_WORDS,
        )
        for one in discovery.clusters
    )
    columns = ("", ">effect", ">share", ">held +/-", ">p", ">pairs", "what")
    return table(f"{what}, by size of effect", columns, rows)


def cluster_details(one: Cluster, shown: int) -> RenderableType:
    """One cluster: its words, typical prompts, top pairs, and the sources of the pairs that push towards it."""
    head = Text(f"{one.cluster}  ", style="bold")
    head.append(cluster_title(one) or NO_WORDS)
    numbers = f"tightness {one.tightness:.2f}, stability {one.stability:.2f}, consistency {one.consistency:.2f}"
    parts: list[RenderableType] = [head, Text(numbers, style="dim")]
    if one.lost_words:
        parts.append(Text(f"instead of: {_listed(one.lost_words)}", style="dim"))
    if one.prompt_words:
        parts.append(Text(f"on prompts with: {_listed(one.prompt_words)}", style="dim"))
    if one.typical_prompts:
        title = "Typical prompts: prompt, before (-), after (+)"
        parts.append(examples_table(title, _UNNAMED, _typical_rows(one, shown)))
    if one.top_pairs:
        title = "Pairs that push towards it: prompt, chosen (+), rejected (-)"
        parts.append(examples_table(title, _UNNAMED, _pair_rows(one, shown)))
    if len(one.sources) > 1:
        title = f"Sources of the pairs that push towards it ({one.sources_by})"
        parts.append(sources_table(one.sources[:8], title=title))
        if len(one.sources) > 8:
            parts.append(Text(f"and {counted(len(one.sources) - 8, 'more source')}", style="dim"))
    return Group(*parts)


def discovery_facts(discovery: Discovery) -> list[tuple[str, str]]:
    """How many items were compared, what was left out, what was not reported and why, as names and printable values."""
    layers = ", ".join(map(str, discovery.layers))
    lines = [
        ("dataset", f"{printable(discovery.dataset['name'])}: {counted(int(discovery.dataset['pairs']), 'pair')}"),
        (
            "compared",
            f"{discovery.items:,} {discovery.mode}: {discovery.fit:,} clustered, {discovery.held_out:,} held out",
        ),
        ("similarity", f"{discovery.kind}, layer {layers}"),
    ]
    if discovery.left_out:
        listed = tally(discovery.left_out)
        lines.append(("left out", listed))
    lines.append(("found", counted(len(discovery.clusters), "cluster") if discovery.clusters else "nothing"))
    if discovery.rejected:
        counts = {
            fault: sum(one.fault == fault for one in discovery.rejected) for fault in ("unstable", "not confirmed")
        }
        listed = ", ".join(f"{count:,} {fault}" for fault, count in counts.items() if count)
        lines.append(("not reported", f"tight clusters: {listed}"))
    lines += [("note", printable(note, 500)) for note in discovery.notes]
    return lines


def cluster_title(one: Cluster, most: int = 8) -> str:
    """Its name and its first words, printable; empty where it has neither."""
    words = _listed(one.words[:most])
    if not one.name:
        return words
    return f"{printable(one.name, 60)} ({words})" if words else printable(one.name, 60)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(printable(word, 30) for word in words)


def _typical_rows(one: Cluster, shown: int) -> list[tuple[str, Text, Text]]:
    return [
        (
            f"{found.closeness:.3f}",
            Text(printable(found.location, 60), "dim"),
            sides_text(found.prompt, ("-", found.before), ("+", found.after)),
        )
        for found in one.typical_prompts[:shown]
    ]


def _pair_rows(one: Cluster, shown: int) -> list[tuple[str, Text, Text]]:
    rows = []
    for found in one.top_pairs[:shown]:
        has_texts = found.chosen or found.rejected
        sides = sides_text(found.prompt, ("+", found.chosen), ("-", found.rejected))
        where = Text(f"{printable(found.source, 40)}\nrow {found.row}", "dim")
        rows.append((f"{found.score:.3f}", where, sides if has_texts else Text(found.pair_id)))
    return rows
