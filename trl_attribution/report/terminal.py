"""Audits and probes as rich tables. Dataset text only ever enters as ``Text`` made printable, never as markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trl_attribution.audit.estimate import Estimate
from trl_attribution.audit.folder import Audit, Flagged
from trl_attribution.pairs import Pair
from trl_attribution.probes import Probe, cosine_table
from trl_attribution.report.units import bytes_text, duration_text
from trl_attribution.scoring import SourceRow
from trl_attribution.utils.text import printable

_SNIPPET = 90


def audit_summary(audit: Audit) -> RenderableType:
    """What was audited, what was left out and why, and what it cost."""
    info = audit.info
    dataset, vectors, cost = info.dataset, info.vectors, info.cost
    lines = [
        ("dataset", f"{printable(dataset['name'])} ({dataset['format']} format)"),
        ("pairs", _pairs_line(dataset)),
        ("model", f"{printable(info.model['name'])} in {info.model['dtype']} on {info.model['device']}"),
        ("layers", ", ".join(str(layer) for layer in audit.store.layers)),
        ("vectors", _vectors_line(vectors, cost) if info.training is None else _read_line(vectors, info.training)),
    ]
    if dataset["skipped"]:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in dataset["skipped"].items())
        lines.insert(2, ("left out", reasons))
    if audit.scores is not None:
        for layer, count in audit.scores.zero_pairs.items():
            if count:
                lines.append(("zero vectors", f"{count:,} pairs at layer {layer} score 0"))
        for layer, count in audit.scores.no_context.items():
            if count:
                lines.append(("no context", f"{count:,} pairs at layer {layer} score 0 contextually"))
    return _facts(lines)


def top_pairs_table(flagged: Flagged, pairs: Mapping[str, Pair], shown: int, of: int) -> Table:
    """The most suspicious pairs, ``of`` of which are flagged; ``pairs`` by id holds the texts of those shown."""
    extent = f"first {shown} of {of:,} flagged" if of else f"first {shown}, none of them flagged"
    table = Table(title=f"Most suspicious pairs ({extent})", title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    table.add_column("q", justify="right")
    table.add_column("source / where", max_width=24)
    table.add_column("prompt, chosen (+), rejected (-)", ratio=1)
    for found, _ in zip(flagged.flags, range(shown), strict=False):
        pair = pairs[found.pair_id]
        where = Text(printable(pair.source, 40))
        where.append(f"\n{printable(pair.location, 60)}\n{found.probe}, layer {found.layer}", style="dim")
        content = Text(_snippet(pair.prompt))
        content.append("\n+ " + _snippet(pair.chosen), style="green")
        content.append("\n- " + _snippet(pair.rejected), style="red")
        table.add_row(str(found.rank), f"{found.score:.3f}", f"{found.q_value:.2g}", where, content, end_section=True)
    return table


def sources_table(rows: Sequence[SourceRow]) -> Table:
    """How much of each source is flagged, strongest evidence first."""
    # Without vertical lines eight columns fit into 80 characters.
    table = Table(title="Flagged pairs by source", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("source")
    for column in ("pairs", "flagged", "share", "enrichment", "p (Fisher)", "q", "mean score"):
        table.add_column(column, justify="right")
    for row in rows:
        enrichment = "-" if row.enrichment is None else f"{row.enrichment:.2f}x"
        table.add_row(
            Text(printable(row.source, 60)),
            f"{row.pairs:,}",
            f"{row.flagged:,}",
            f"{row.share:.1%}",
            enrichment,
            f"{row.p_value:.2g}",
            f"{row.q_value:.2g}",
            f"{row.mean_score:+.3f}",
        )
    return table


def flagged_summary(flagged: Flagged, manifests: Mapping[str, str]) -> RenderableType:
    """How many pairs are flagged by which rule and null, and where everything lies."""
    flags = flagged.flags
    rule = ", ".join(f"{name} {value:g}" for name, value in flags.rule.as_dict().items())
    lines = [("flagged", f"{len(flags):,} of {len(flagged.audit.index):,} pairs ({rule})")]
    lines += [("decision", one.sentence(name)) for name, one in flags.decisions.items()]
    for column in flags.columns:
        null = flags.nulls[column.probe]
        meaning = "clean reference pairs" if null == "reference" else "mirror null: each pair against its own flip"
        lines.append(("score", f"{column.probe}: {column.kind}, layer {column.layer}; q-values by {meaning}"))
    if flags.not_towards:
        lines.append(("left out", f"{flags.not_towards:,} flagged pairs score 0 or less and are not in the manifests"))
    lines += [(action, path) for action, path in manifests.items()]
    lines += [
        ("scores", str(flagged.audit.folder / "scores.parquet")),
        ("vectors", str(flagged.audit.store.path)),
    ]
    return _facts(lines)


def estimate_table(found: Estimate) -> RenderableType:
    """What an audit will take."""
    lines = [
        ("pairs", f"{found.pairs:,}"),
        ("tokens", f"{found.tokens:,} to compute (each prompt once a pair); longest sequence {found.longest:,}"),
        ("FLOPs", f"{found.flops:.3g} in the linear layers"),
        ("disk", bytes_text(found.disk_bytes)),
        ("memory", f"{bytes_text(found.memory_bytes)} (peak of the trial run, model included)"),
        ("time", f"{duration_text(found.seconds)} at {found.pairs_per_second:.1f} pairs/s, this machine"),
        ("path", f"{found.path} ({printable(found.path_reason)})"),
        ("trial run", f"{found.sample_pairs} pairs"),
    ]
    if found.skipped:
        lines.insert(1, ("left out", ", ".join(f"{reason}: {count:,}" for reason, count in found.skipped.items())))
    return _facts(lines)


def probes_table(probes: Sequence[Probe]) -> Table:
    """One line a probe."""
    table = Table(title="Probes", title_justify="left")
    for column in ("name", "method", "layers", "layer", "AUC", "prompts", "calibrated", "M0", "fingerprint"):
        table.add_column(column, justify="left")
    for probe in probes:
        auc = probe.separability.get(probe.layer)
        table.add_row(
            probe.name,
            Text(printable(probe.built.get("method", "?"), 30)),
            _span(probe.layers),
            str(probe.layer),
            "-" if auc is None else f"{auc:.3f}",
            "-" if probe.contexts is None else str(len(probe.contexts)),
            "no" if probe.reference_scores is None else f"{probe.reference_scores.shape[1]:,} pairs",
            probe.model.digest[:12],
            probe.fingerprint[:12],
        )
    return table


def probe_details(probe: Probe, others: Sequence[Probe]) -> RenderableType:
    """One probe: how it was built, its layers, the tokens it promotes, its cosine with the others."""
    facts = [
        ("name", probe.name),
        ("fingerprint", probe.fingerprint),
        ("M0", probe.model.digest),
        ("built", printable(", ".join(f"{key}={value}" for key, value in probe.built.items()), 2000)),
        ("promotes", " ".join(repr(token) for token in probe.shown_tokens) or "unknown"),
    ]
    layers = Table(title="By layer", title_justify="left")
    for column in ("layer", "norm", "separability (cross-validated AUC)"):
        layers.add_column(column, justify="right")
    for layer in probe.layers:
        auc = probe.separability.get(layer)
        mark = " *" if layer == probe.layer else ""
        layers.add_row(f"{layer}{mark}", f"{probe.norms[layer]:.3f}", "unknown" if auc is None else f"{auc:.3f}")
    parts: list[RenderableType] = [_facts(facts), layers, Text("* the layer that flags are taken at", style="dim")]
    comparable = [other for other in others if probe.layer in other.layers and other.name != probe.name]
    if comparable:
        parts.append(_cosines(probe, comparable))
    return Group(*parts)


def truth_table(counts: Mapping[str, tuple[int, int]], flagged: int) -> Table:
    """For a model organism: how many pairs of each known kind are among the flagged; (flagged, all) by kind."""
    table = Table(title=f"What the {flagged:,} flagged pairs really are", title_justify="left")
    for column in ("truth", "flagged", "of"):
        table.add_column(column, justify="left" if column == "truth" else "right")
    for truth, (hits, total) in counts.items():
        table.add_row(truth, f"{hits:,}", f"{total:,}", style="bold" if truth == "contaminated" else None)
    return table


def message_text(content: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt or response as one string: the last message of a conversation, with its role where it is not alone."""
    if isinstance(content, str):
        return content
    last = content[-1] if content else {}
    earlier = f"[{len(content) - 1} earlier turns] " if len(content) > 1 else ""
    return f"{earlier}{last.get('content') or ''}"


def _snippet(content: str | Sequence[Mapping[str, Any]]) -> str:
    return printable(message_text(content).strip(), _SNIPPET)


def _cosines(probe: Probe, others: Sequence[Probe]) -> Table:
    found = cosine_table([probe, *others], probe.layer)
    table = Table(title=f"Cosine with other probes at layer {probe.layer}", title_justify="left")
    table.add_column("probe")
    table.add_column("cosine", justify="right")
    for index, other in enumerate(others, start=1):
        table.add_row(other.name, f"{found.values[0][index]:+.3f}")
    return table


def _pairs_line(dataset: Mapping[str, Any]) -> str:
    parts = [f"{dataset['pairs']:,} different pairs in {dataset['rows']:,} rows"]
    if dataset["duplicate_rows"]:
        parts.append(f"{dataset['duplicate_rows']:,} rows repeat a pair")
    if dataset["contradictions"]:
        parts.append(f"{dataset['contradictions']:,} pairs also stand there the other way round")
    if dataset["truncated_pairs"]:
        parts.append(f"{dataset['truncated_pairs']:,} reach max_length and may be cut")
    return "; ".join(parts)


def _vectors_line(vectors: Mapping[str, Any], cost: Mapping[str, Any]) -> str:
    if not vectors["computed"]:
        return f"all {vectors['reused']:,} were stored already"
    line = f"{vectors['computed']:,} computed in {duration_text(cost['seconds']['vectors'])}"
    line += f" ({cost['pairs_per_second']:.1f} pairs/s, {vectors['path']} path)"
    return line + (f", {vectors['reused']:,} stored already" if vectors["reused"] else "")


def _read_line(vectors: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    line = f"{vectors['computed']:,} read while training ({vectors['path']})"
    if vectors["reused"]:
        line += f", {vectors['reused']:,} stored already"
    return line + (f"; {training['never_seen']:,} pairs were not trained on" if training["never_seen"] else "")


def _facts(lines: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in lines:
        table.add_row(name, Text(value))
    return table


def _span(layers: Sequence[int]) -> str:
    consecutive = len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}..{layers[-1]}" if consecutive else ", ".join(str(layer) for layer in layers)
