"""An audit as rich tells it on a terminal: the answer, then the evidence, then the pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trl_attribution.pairs import Pair
from trl_attribution.report import facts
from trl_attribution.report.agreement import ACTIONS, PrecisionAtK, ReviewerAgreement
from trl_attribution.report.answer import answer_of
from trl_attribution.report.change import drift_table, rates_table
from trl_attribution.report.discovery import discovery_view
from trl_attribution.report.distributions import Histogram
from trl_attribution.report.findings import Findings, ProbeFindings
from trl_attribution.report.latents import latents_view
from trl_attribution.report.prediction import prediction_view
from trl_attribution.report.scan import closing_lines, findings_table
from trl_attribution.report.terminal import sources_table
from trl_attribution.report.texts import readable
from trl_attribution.utils.kinds import ExampleKind
from trl_attribution.utils.tables import facts as facts_table
from trl_attribution.utils.tables import table
from trl_attribution.utils.text import printable

_FINDINGS = 12
_BARS = " ▁▂▃▄▅▆▇█"


def story(found: Findings) -> Group:
    """Everything but the pairs."""
    answer = answer_of(found)
    parts: list[RenderableType] = [Text(answer.headline, style="bold")]
    parts += [Padding(Text(sentence), (0, 0, 0, 2)) for sentence in answer.sentences]
    parts += [Text(f"During training: {note}", style="yellow") for note in found.extras.notes]
    if found.probes:
        parts += ["", probes_table(found.probes), *(distribution(one) for one in found.probes)]
        parts += ["", sources_table(found.sources, found.kind)]
    layered = [one for one in found.probes if len(one.layers) > 1]
    for one in layered:
        parts += ["", layers_table(one)]
    if found.extras.behaviors:
        parts += ["", rates_table(found.extras.behaviors)]
    if found.extras.drift:
        parts += ["", drift_table(found.extras.drift)]
    if (scan := found.extras.scan) is not None:
        parts += ["", findings_table(scan.findings[:_FINDINGS], len(scan.findings), found.kind)]
        parts += [Text(line, "dim") for line in closing_lines(scan)]
        if scan.prediction is not None and scan.prediction.prompts:
            parts.append(prediction_view(scan.prediction, _FINDINGS))
        if scan.latents is not None:
            parts.append(latents_view(scan.latents, _FINDINGS, found.kind))
    for stored in found.extras.discoveries:
        parts += ["", discovery_view(stored.discovery, shown=0)]
    if (validation := found.extras.validation) is not None:
        head = Text("Validation: ", style="bold").append(printable(validation.answer, 40), style="bold")
        parts += ["", head, Padding(Text(printable(validation.sentence, 1000)), (0, 0, 0, 2))]
    cost = next(lines for title, lines in facts.about(found) if title == "Cost")
    parts += ["", Text("Cost", style="italic"), facts_table(cost)]
    return Group(*parts)


def probes_table(probes: Sequence[ProbeFindings]) -> Table:
    """What each probe flags, and from which score on."""
    rows = (
        (
            one.column.probe,
            str(one.column.layer),
            f"{one.flagged:,}",
            "-" if one.threshold is None else f"{one.threshold:.3f}",
            "not known" if one.outcome.decision is None else str(one.outcome.decision.prevalence.count),
            "not known" if one.outcome.wrong is None else f"{one.outcome.wrong:.0f}",
        )
        for one in probes
    )
    return table(
        "Scores by probe", ("probe", ">layer", ">flagged", ">from", ">push towards it", ">expected wrong"), rows
    )


def distribution(one: ProbeFindings) -> Group:
    """The scores of all pairs as a line of bars, the flagged part colored."""
    low, high = (f"{float(edge):+.2f}" for edge in (one.histogram.edges[0], one.histogram.edges[-1]))
    line = Text.assemble(f"  {low} ", bars(one.histogram, one.threshold), f" {high}")
    return Group(Text(f"  All scores for {one.column.probe}", style="dim"), line)


def bars(histogram: Histogram, threshold: float | None) -> Text:
    """A histogram on one line, heights on a square-root scale; red from the threshold on."""
    highest = max(1, int(histogram.counts.max()))
    text = Text()
    for count, right in zip(histogram.counts.tolist(), histogram.edges[1:].tolist(), strict=True):
        height = 0 if count == 0 else max(1, round((count / highest) ** 0.5 * (len(_BARS) - 1)))
        text.append(_BARS[height], "red" if threshold is not None and right > threshold else "cyan")
    return text


def layers_table(one: ProbeFindings) -> Table:
    """The scores of one probe by layer."""
    rows = (
        (
            f"{layer.layer} *" if layer.layer == one.column.layer else str(layer.layer),
            *(f"{value:+.3f}" for value in (layer.median, layer.p90, layer.p99, layer.highest)),
        )
        for layer in one.layers
    )
    columns = (">layer", ">median", ">90%", ">99%", ">highest")
    return table(f"{one.column.probe} by layer", columns, rows)


def pairs_story(
    found: Findings, pairs: Mapping[str, Pair], start: int, count: int, characters: int
) -> Iterator[RenderableType]:
    """``count`` listed pairs from place ``start`` (0 is the first), each with its whole text up to ``characters``."""
    listed = found.listed
    first = set(listed.read_first.tolist())
    for place in range(start, min(start + count, len(listed))):
        scored = found.probes[int(listed.probe[place])]
        probe, decided = scored.column, scored.outcome.decision is not None
        marks = [*(["not flagged"] if place >= listed.flagged else []), *(["read first"] if place in first else [])]
        flagged = f" ({', '.join(marks)})" if marks else ""
        source = printable(listed.source_names[int(listed.source[place])], 60)
        head = Text(f"#{place + 1}{flagged}", style="bold")
        by_rate = "" if decided else f"  q {listed.q_value[place]:.2g}"
        head.append(f"  score {listed.score[place]:.4f}{by_rate}  {probe.probe}, layer {probe.layer}")
        yield head
        yield Text(f"{source}, row {int(listed.rows[place]):,}, {listed.pair_ids[place]}", style="dim")
        pair = pairs.get(listed.pair_ids[place])
        if pair is None:
            yield Text("  its text is not at hand", style="dim")
        else:
            yield from _texts(pair, characters, found.kind)
        yield Text("")


def agreement_table(found: ReviewerAgreement) -> RenderableType:
    """Two reviewers' actions against each other, and what follows."""
    rows = ((one, *(f"{found.table.get((one, other), 0):,}" for other in ACTIONS)) for one in ACTIONS)
    counts = table("First reviewer by row, second by column", ("", *(f">{action}" for action in ACTIONS)), rows)
    lines = [
        (
            "both reviewed",
            f"{found.both:,}; only the first {found.only_first:,}, only the second {found.only_second:,}",
        ),
        ("same decision", f"{found.same:,}"),
        ("kappa", _kappa_text(found)),
        ("harmful or not", "undefined" if found.kappa_changed is None else f"kappa {found.kappa_changed:.2f}"),
    ]
    return Group(counts, facts_table(lines))


def precision_table(rows: Sequence[PrecisionAtK]) -> Table:
    """Precision among the first k with its interval."""
    return table(
        "Precision at k",
        (">first k", ">reviewed", ">confirmed", ">precision", ">95% interval"),
        map(_precision_row, rows),
        "95% Wilson intervals; they take what was reviewed for a random sample of the first k, and there is none where "
        "nothing of the second half was reviewed",
    )


def _precision_row(row: PrecisionAtK) -> tuple[str, ...]:
    shown = ("-", "-") if row.precision is None else (f"{row.precision:.1%}", f"{row.low:.1%} .. {row.high:.1%}")
    return (f"{row.k:,}", f"{row.reviewed:,}", f"{row.confirmed:,}", *shown)


def _kappa_text(found: ReviewerAgreement) -> str:
    if found.kappa is None or found.interval is None:
        return "undefined: no pair was reviewed by both, or only one decision occurs"
    low, high = found.interval
    return f"{found.kappa:.2f} (95% interval {low:.2f} .. {high:.2f})"


def _texts(pair: Pair, characters: int, kind: ExampleKind) -> Iterator[RenderableType]:
    shown = readable(pair, characters)
    for name, style, parts in (
        ("prompt", "", shown.prompt),
        (kind.raised, "green", shown.chosen),
        (kind.lowered, "red", shown.rejected),
    ):
        for part in parts:
            # Tabs would be expanded by the terminal, beyond the column.
            text = Text(f"{part.role or name}: " if name == "prompt" else f"{name}: ", style="bold")
            text.append(part.text.replace("\t", "    "), style=f"not bold {style}".strip())
            if part.dropped:
                text.append(f" … {part.dropped:,} more characters", style="dim")
            yield Padding(text, (0, 0, 0, 2))
