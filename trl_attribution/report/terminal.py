"""Audits and probes as rich tables. Dataset text only ever enters as ``Text`` made printable, never as markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from trl_attribution.audit.info import CostInfo, DatasetInfo, TrainingInfo, VectorsInfo
from trl_attribution.pairs import Pair
from trl_attribution.pairs.dataset_pass import alike_text
from trl_attribution.probes import Probe, cosine_table
from trl_attribution.probes.controls import controls_text
from trl_attribution.report.texts import ListedPairs
from trl_attribution.scoring import SourceRow, rule_words
from trl_attribution.utils.kinds import PAIR, ExampleKind
from trl_attribution.utils.tables import WholeTable, as_text, facts, table
from trl_attribution.utils.text import counted, duration_text, printable, shell_command, tally

if TYPE_CHECKING:
    from trl_attribution.audit.estimate import Estimate
    from trl_attribution.audit.folder import Audit, Flagged
    from trl_attribution.audit.witness import Witnessed

_SNIPPET = 90


def audit_summary(audit: Audit) -> RenderableType:
    """What was audited, what was left out and why, and what it cost."""
    info = audit.info
    dataset, vectors, cost = info.dataset, info.vectors, info.cost
    lines = [
        ("dataset", f"{printable(dataset.name)} ({dataset.format} format)"),
        (dataset.kind.several, _pairs_line(dataset)),
        ("model", f"{printable(info.model.name)} in {info.model.dtype} on {info.model.device}"),
        ("layers", ", ".join(str(layer) for layer in audit.store.layers)),
        (
            "vectors",
            _vectors_line(vectors, cost, dataset.kind)
            if info.training is None
            else _read_line(vectors, info.training, dataset.kind),
        ),
    ]
    if dataset.skipped:
        reasons = tally(dataset.skipped)
        lines.insert(2, ("left out", reasons))
    if audit.scores is not None:
        for layer, count in audit.scores.zero_pairs.items():
            if count:
                lines.append(("zero vectors", f"{dataset.kind.counted(count)} at layer {layer} score 0"))
        for layer, count in audit.scores.no_context.items():
            if count:
                lines.append(("no context", f"{dataset.kind.counted(count)} at layer {layer} score 0 contextually"))
    lines += [("note", note) for note in info.notes]
    return facts(lines)


def top_pairs_table(flagged: Flagged, pairs: Mapping[str, Pair], shown: int, of: int) -> Table:
    """The most suspicious pairs, ``of`` of which are flagged; ``pairs`` by id holds the texts of those shown."""
    extent = f"first {shown} of {of:,} flagged" if of else f"first {shown}, none of them flagged"
    by_rate = not flagged.flags.decisions  # where an estimate flags, a false discovery rate is a second opinion
    rows: list[tuple[str | Text, ...]] = []
    for found, _ in zip(flagged.flags, range(shown), strict=False):
        pair = pairs.get(found.pair_id)
        by = f"{found.probe}, layer {found.layer}"
        numbers = (str(found.rank), f"{found.score:.3f}", *([f"{found.q_value:.2g}"] if by_rate else []))
        if pair is None:
            rows.append((*numbers, Text(by, style="dim"), Text(f"its text is not at hand: {found.pair_id}", "dim")))
            continue
        where = Text(printable(pair.source, 40))
        where.append(f"\n{printable(pair.location, 60)}\n{by}", style="dim")
        sides = [_last_message(side) for side in pair.shown]
        rows.append((*numbers, where, sides_text(sides[0], ("+", sides[1]), ("-", sides[2]))))
    kind = flagged.audit.info.dataset.kind
    texts = f"prompt, {kind.raised} (+), {kind.lowered} (-)"
    columns = ("#", "score", *(["q"] if by_rate else []), "source / where", texts)
    return examples_table(f"Most suspicious {kind.several} ({extent})", columns, rows)


def examples_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """A line an example: its numbers, where it stands, and its texts; without a header where columns have no names."""
    shown = WholeTable(
        title=Text(title, "table.title"), title_justify="left", show_header=any(columns), show_lines=True
    )
    for place, name in enumerate(columns):
        shown.add_column(Text(name), justify="right" if place < len(columns) - 2 else "left")
    for row in rows:
        shown.add_row(*map(as_text, row))
    return shown


def sides_text(prompt: str, *sides: tuple[Literal["+", "-"], str]) -> Text:
    """The start of a prompt, beneath it those of responses that training pushes towards (+) or away from (-)."""
    content = Text(_snippet(prompt))
    for sign, text in sides:
        content.append(f"\n{sign} {_snippet(text)}", style="green" if sign == "+" else "red")
    return content


def sources_table(rows: Sequence[SourceRow], kind: ExampleKind = PAIR, title: str = "") -> Table:
    """How much of each source is flagged, strongest evidence first."""
    title = title or f"Flagged {kind.several} by source"
    columns = ("source", f">{kind.several}", ">flagged", ">share", ">enrichment", ">p (Fisher)", ">q", ">mean score")
    return table(
        title,
        columns,
        (
            (
                printable(row.source, 60),
                f"{row.pairs:,}",
                f"{row.flagged:,}",
                f"{row.share:.1%}",
                row.enrichment_text(2),
                f"{row.p_value:.2g}",
                f"{row.q_value:.2g}",
                f"{row.mean_score:+.3f}",
            )
            for row in rows
        ),
    )


def result(flagged: Flagged, manifests: Mapping[str, str], listed: ListedPairs, shown: int) -> Iterator[RenderableType]:
    """What was flagged: the top pairs and their sources, then what a person has to know, and where everything lies.

    Where nothing is flagged the pairs at the top are shown all the same: that there is no evidence does not make them
    good.
    """
    top = flagged if len(flagged) else flagged.top(max(shown, 1))
    count = min(shown, len(top))
    if count:
        yield ""
        yield _top_pairs(top, listed, count, len(flagged))
    if len(flagged):
        yield ""
        yield sources_table(flagged.sources(), flagged.audit.info.dataset.kind)
    for one in flagged.flags.outcomes.values():
        yield ""
        yield Text(one.headline, style="bold")
        yield from (Text(line, style="dim") for line in one.details)
    yield ""
    yield flagged_summary(flagged, manifests)


def run_ending(
    flagged: Flagged, manifests: Mapping[str, str], report: Path | None, listed: ListedPairs, shown: int = 3
) -> Iterator[RenderableType]:
    """What a person wants to know when a training run is over: the finding, the first pairs, and what to do next."""
    for one in flagged.flags.outcomes.values():
        yield Text(one.headline, style="bold")
    top = flagged if len(flagged) else flagged.top(shown)
    if count := min(shown, len(top)):
        yield ""
        yield _top_pairs(top, listed, count, len(flagged))
    yield ""
    info = flagged.audit.info
    lines = [] if info.training is None else [("vectors", _read_line(info.vectors, info.training, info.dataset.kind))]
    yield facts(lines if report is None else [*lines, ("report", str(report))])
    if len(flagged):
        several, paths = info.dataset.kind.several, (Path(manifests["filter"]), Path(info.dataset.argument))
        command = shell_command("trl-attribution", "apply", *paths, "-o", "cleaned.jsonl")
        if command:  # in one piece, to be copied
            yield Text(f"without these {several}: {command}", no_wrap=True, overflow="ignore")


def _top_pairs(top: Flagged, listed: ListedPairs, count: int, flagged: int) -> RenderableType:
    first = zip(top.flags.pair_ids[:count], top.flags.positions[:count], strict=True)
    texts = listed.at({pair_id: int(top.audit.index.rows[position]) for pair_id, position in first})
    return top_pairs_table(top, texts, count, flagged)


def flagged_summary(flagged: Flagged, manifests: Mapping[str, str]) -> RenderableType:
    """By which rule and null pairs were flagged, and where everything lies."""
    flags, kind = flagged.flags, flagged.audit.info.dataset.kind
    rules = {rule_words(flags.rule, by_recall=one.decision is not None) for one in flags.outcomes.values()}
    lines = [("rule", "; ".join(sorted(rules)))]
    for column in flags.columns:
        null = flags.nulls[column.probe]
        meaning = (
            f"clean reference {kind.several}"
            if null == "reference"
            else f"mirror null: each {kind.one} against its own flip"
        )
        lines.append(("score", f"{column.probe}: {column.kind}, layer {column.layer}; q-values by {meaning}"))
    if flags.not_towards:
        lines.append(
            ("left out", f"{flags.not_towards:,} flagged {kind.several} score 0 or less and are not in the manifests")
        )
    lines += [(action, path) for action, path in manifests.items()]
    lines += [
        ("scores", str(flagged.audit.folder / "scores.parquet")),
        ("vectors", str(flagged.audit.store.path)),
    ]
    return facts(lines)


def witness_summary(found: Witnessed) -> RenderableType:
    """Where the likelihood under each description agrees with what is flagged, and which probes it is silent on."""
    lines = []
    for one in found.agreements:
        lines.append(("witness", f"{one.probe}: {one.sentence()}"))
        taken = "" if one.own is None else f"; it {one.own.sentence()}"
        lines.append(("", f"asked with {one.description!r} as {one.way}{taken}"))
    lines += [("witness", f"{name}: not heard; its description {why}") for name, why in found.silent.items()]
    return facts(lines)


def estimate_table(found: Estimate) -> RenderableType:
    """What an audit will take."""
    lines = [
        ("pairs", f"{found.pairs:,}"),
        ("tokens", f"{found.tokens:,} to compute (each prompt once a pair); longest sequence {found.longest:,}"),
        ("FLOPs", f"{found.flops:.3g} in the linear layers"),
        ("disk", decimal(found.disk_bytes)),
        ("memory", f"{decimal(found.memory_bytes)} (peak of the trial run, model included)"),
        ("time", f"{duration_text(found.seconds)} at {found.pairs_per_second:.1f} pairs/s, this machine"),
        ("path", f"{found.path} ({printable(found.path_reason)})"),
        ("trial run", counted(found.sample_pairs, "pair")),
    ]
    if found.skipped:
        lines.insert(1, ("left out", tally(found.skipped)))
    return facts(lines)


def probes_table(probes: Sequence[Probe]) -> Table:
    """One line a probe."""
    columns = ("name", "method", "layers", "layer", "AUC", "prompts", "calibrated", "M0", "fingerprint")
    return table("Probes", columns, map(_probe_row, probes))


def _probe_row(probe: Probe) -> tuple[str, ...]:
    auc = probe.separability.get(probe.layer)
    return (
        probe.name,
        printable(probe.built.get("method", "?"), 30),
        _span(probe.layers),
        str(probe.layer),
        "-" if auc is None else f"{auc:.3f}",
        "-" if probe.contexts is None else str(len(probe.contexts)),
        "-" if probe.reference_scores is None else counted(probe.reference_scores.shape[1], "pair"),
        probe.model.digest[:12],
        probe.fingerprint[:12],
    )


def probe_details(probe: Probe, others: Sequence[Probe]) -> RenderableType:
    """One probe: how it was built, its layers, the tokens it promotes, its cosine with the others."""
    built = {name: value for name, value in probe.built.items() if name != "controls"}
    lines = [
        ("name", probe.name),
        ("fingerprint", probe.fingerprint),
        ("M0", probe.model.digest),
        ("controls", controls_text(probe)),
        ("built", printable(", ".join(f"{key}={value}" for key, value in built.items()), 2000)),
        ("promotes", " ".join(repr(token) for token in probe.shown_tokens) or "unknown"),
        *([("described", described_text(probe))] if probe.description else []),
    ]
    rows = (
        (
            f"{layer} *" if layer == probe.layer else str(layer),
            f"{probe.norms[layer]:.3f}",
            f"{probe.separability[layer]:.3f}" if layer in probe.separability else "unknown",
        )
        for layer in probe.layers
    )
    layers = table("By layer", (">layer", ">norm", ">separability (cross-validated AUC)"), rows)
    parts: list[RenderableType] = [facts(lines), layers, Text("* the layer that flags are taken at", style="dim")]
    comparable = [other for other in others if probe.layer in other.layers and other.name != probe.name]
    if comparable:
        parts.append(_cosines(probe, comparable))
    return Group(*parts)


def described_text(probe: Probe) -> str:
    """The description, and whether M0 understands it."""
    from trl_attribution.scoring.witness import OwnPairs

    check = OwnPairs.of(probe)
    return f"{printable(probe.description or '', 200)!r}" + ("" if check is None else f"; it {check.sentence()}")


def truth_table(truth: Sequence[str], sets: Mapping[str, Sequence[int]], caption: str = "") -> Table:
    """For a model organism, whose rows have a known ``truth`` each: how many rows of each kind are in each set."""
    counts = {name: Counter(truth[row] for row in rows) for name, rows in sets.items()}
    lines = (
        [
            Text(cell, "bold" if kind == "contaminated" else "")
            for cell in (kind, f"{total:,}", *(f"{each[kind]:,}" for each in counts.values()))
        ]
        for kind, total in Counter(truth).most_common()
    )
    return table("What the pairs really are", ("truth", ">in all", *(f">{name}" for name in sets)), lines, caption)


def _last_message(content: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt or response as one string: of a conversation the last message, and how many came before."""
    if isinstance(content, str):
        return content
    last = content[-1] if content else {}
    earlier = f"[{len(content) - 1} earlier turns] " if len(content) > 1 else ""
    return f"{earlier}{last.get('content') or ''}"


def _snippet(text: str) -> str:
    return printable(text.strip(), _SNIPPET)


def _cosines(probe: Probe, others: Sequence[Probe]) -> Table:
    found = cosine_table([probe, *others], probe.layer)
    rows = ((other.name, f"{found.values[0][index]:+.3f}") for index, other in enumerate(others, start=1))
    return table(f"Cosine with other probes at layer {probe.layer}", ("probe", ">cosine"), rows)


def _pairs_line(dataset: DatasetInfo) -> str:
    parts = [f"{counted(dataset.pairs, f'different {dataset.kind.one}')} in {counted(dataset.rows, 'row')}"]
    if dataset.duplicate_rows:
        parts.append(f"{dataset.duplicate_rows:,} rows repeat a {dataset.kind.one}")
    if dataset.contradictions:
        parts.append(f"{dataset.kind.counted(dataset.contradictions)} also stand there the other way round")
    if dataset.truncated_pairs:
        parts.append(f"{dataset.truncated_pairs:,} reach max_length and may be cut")
    if dataset.alike:
        parts.append(alike_text(dataset.alike))
    return "; ".join(parts)


def _vectors_line(vectors: VectorsInfo, cost: CostInfo, kind: ExampleKind) -> str:
    if not vectors.computed:
        return f"all {vectors.reused:,} were stored already"
    line = f"{vectors.computed:,} computed in {duration_text(cost.seconds['vectors'])}"
    line += f" ({cost.pairs_per_second:.1f} {kind.several}/s, {vectors.path} path)"
    return line + (f", {vectors.reused:,} stored already" if vectors.reused else "")


def _read_line(vectors: VectorsInfo, training: TrainingInfo, kind: ExampleKind) -> str:
    line = f"{vectors.computed:,} read while training ({vectors.path})"
    if vectors.reused:
        line += f", {vectors.reused:,} stored already"
    return line + (f"; {kind.counted(training.never_seen)} were not trained on" if training.never_seen else "")


def _span(layers: Sequence[int]) -> str:
    consecutive = len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}..{layers[-1]}" if consecutive else ", ".join(str(layer) for layer in layers)
