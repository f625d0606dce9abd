"""What an audit found, as a section of a Hugging Face dataset or model card; every name in it is hostile."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from trl_attribution.errors import SettingsError
from trl_attribution.evidence.readouts.behavior_change import Rate
from trl_attribution.pairs.dataset_pass import alike_text
from trl_attribution.report.answer import answer_of, rule_text
from trl_attribution.report.discovery import NO_WORDS, cluster_title
from trl_attribution.report.findings import Findings, ProbeFindings
from trl_attribution.utils.card import Section, hub_name, read_card, shown_name
from trl_attribution.utils.markdown import inline, table
from trl_attribution.utils.text import counted, printable, tally
from trl_attribution.utils.version import __version__

CardKind = Literal["dataset", "model"]
_TITLES: dict[CardKind, str] = {
    "dataset": "What this preference data pushes towards",
    "model": "What the preference data of this model pushes towards",
}
_SOURCES, _CLUSTERS, _SENTENCE = 20, 10, 2000


def card(found: Findings, kind: CardKind, path: Path | None = None) -> str:
    """The card at ``path`` with this audit's section; by itself the section with front matter, to begin a card with.

    The same audit gives the same text, and the front matter of a card that is there is not ours to change.

    Raises:
        SettingsError: ``kind`` is unknown.
        DataError: what is there cannot be read as text.
    """
    if kind not in get_args(CardKind):
        raise SettingsError(f"card: {printable(kind, 40)!r} is unknown; choose {' or '.join(get_args(CardKind))}")
    new = _front_matter(found, kind)
    return section(found, kind).within(new if path is None else read_card(path, new))


def section(found: Findings, kind: CardKind) -> Section:
    """The section of a card of this kind."""
    answer = answer_of(found)
    told = (answer.headline, *answer.towards, answer.origins, answer.unasked)
    text = inline(" ".join(one if one.endswith(".") else f"{one}." for one in told if one), _SENTENCE)
    lines = [f"## {_TITLES[kind]}", "", text, "", *table(("", ""), _facts(found))]
    for title, rows in _tables(found, kind):
        lines += ["", f"### {title}", "", *rows]
    lines += ["", "### Limits", "", *(f"- {inline(one, _SENTENCE)}" for one in _limits(found, kind))]
    about = f"{found.info.dataset.fingerprint} {found.info.model.digest}"
    return Section(f"audit {hashlib.sha256(about.encode()).hexdigest()[:32]}", lines)


def _facts(found: Findings) -> Iterator[tuple[str, str]]:
    info = found.info
    dataset, model = info.dataset, info.model
    pairs = f"{counted(found.pairs, f'different {found.kind.one}')} in {counted(dataset.rows, 'row')}"
    yield "dataset", f"{inline(shown_name(dataset.name))}: {pairs}"
    yield "its fingerprint", inline(dataset.fingerprint)
    yield "M0, which read it", f"{inline(shown_name(model.name))}, fingerprint {inline(model.digest)}"
    yield "layers", ", ".join(str(layer) for layer in info.vectors.settings.layers)
    if found.rule is not None:
        share = f" ({found.listed.flagged / found.pairs:.1%})" if found.pairs else ""
        yield "flagged", f"{found.kind.counted(found.listed.flagged)}{share}, by the rule: {inline(rule_text(found))}"
    validation = found.extras.validation
    if validation is not None:
        yield "validation by retraining", inline(f"{validation.answer}: {validation.sentence}", _SENTENCE)
    yield "tool", f"trl-attribution {inline(__version__)}"


def _tables(found: Findings, kind: CardKind) -> Iterator[tuple[str, list[str]]]:
    """Title and lines of each table that there is something for."""
    if found.probes:
        yield "By probe", _by_probe(found)
        yield "By source", _by_source(found)
    if kind == "model" and found.extras.behaviors:
        yield "Behaviors before and after training", _behaviors(found)
    clusters = [(one.discovery.mode, cluster) for one in found.extras.discoveries for cluster in one.discovery.clusters]
    if clusters:
        head = ("found without being asked", "over", "effect", "p", found.kind.several)
        rows = [
            (
                inline(f"{one.cluster}: {cluster_title(one) or NO_WORDS}"),
                mode,
                f"{one.effect:.3f}",
                f"{one.adjusted_p:.2g}",
                f"{one.pairs_towards:,}",
            )
            for mode, one in clusters[:_CLUSTERS]
        ]
        yield "Discovery", [*table(head, rows), *_more(len(clusters) - _CLUSTERS, "clusters")]


def _by_probe(found: Findings) -> list[str]:
    head = ("probe", "layer", "score", "flagged", "down to", "push towards it", "expected wrong", "fingerprint")
    return table(head, (_probe_row(found, one) for one in found.probes))


def _probe_row(found: Findings, one: ProbeFindings) -> tuple[str, ...]:
    column, outcome = one.column, one.outcome
    return (
        inline(column.probe),
        str(column.layer),
        column.kind,
        f"{one.flagged:,}",
        "–" if one.threshold is None else f"{one.threshold:.3f}",
        "not known" if outcome.decision is None else str(outcome.decision.prevalence.count),
        "not known" if outcome.wrong is None else f"{outcome.wrong:.0f}",
        inline(found.info.probes[column.probe][:16]),
    )


def _by_source(found: Findings) -> list[str]:
    listed, names = found.listed, [one.column.probe for one in found.probes]
    flagged = slice(listed.flagged)
    counts = Counter(zip(listed.source[flagged].tolist(), listed.probe[flagged].tolist(), strict=True))
    place = {name: index for index, name in enumerate(listed.source_names)}
    by_probe = names if len(names) > 1 else []
    head = ("source", found.kind.several, "flagged", "share", "enrichment", "q", *(inline(name) for name in by_probe))
    rows = [
        (
            inline(row.source, 100),
            f"{row.pairs:,}",
            f"{row.flagged:,}",
            f"{row.share:.1%}",
            row.enrichment_text(),
            f"{row.q_value:.2g}",
            *(f"{counts[place[row.source], probe]:,}" for probe in range(len(by_probe))),
        )
        for row in found.sources[:_SOURCES]
    ]
    return [*table(head, rows), *_more(len(found.sources) - _SOURCES, "sources")]


def _behaviors(found: Findings) -> list[str]:
    head = ("behavior", "judge", "prompts", "M0", "after training", "difference")
    rows = [
        (
            inline(one.name),
            inline(one.judge),
            f"{one.prompts:,}",
            _rate(one.before),
            _rate(one.after),
            f"{100 * one.difference.share:+.1f} points",
        )
        for one in found.extras.behaviors
    ]
    return table(head, rows)


def _limits(found: Findings, kind: CardKind) -> Iterator[str]:
    yield from answer_of(found).certainty
    if found.probes:
        yield "A probe finds what it was built for; a behavior that nobody built a probe for is not looked for."
    dataset = found.info.dataset
    if dataset.skipped:
        reasons = tally(dataset.skipped)
        yield f"Rows left out of the audit: {reasons}."
    if dataset.truncated_pairs:
        yield f"{found.kind.counted(dataset.truncated_pairs)} reach the longest sequence that was read, and may be cut."
    if dataset.alike:
        yield f"{found.kind.several.capitalize()} without a direction: {alike_text(dataset.alike)}."
    if found.extras.validation is None:
        yield f"No model was retrained without the flagged {found.kind.several} to see what they cause."
    if kind == "model" and found.info.training is None:
        yield "M0 read the data by itself: this says what the data pushes towards, not what this model does."


def _rate(rate: Rate) -> str:
    return f"{rate.share:.1%} ({rate.low:.1%} to {rate.high:.1%})"


def _more(count: int, what: str) -> list[str]:
    return ["", f"and {count:,} more {what}"] if count > 0 else []


def _front_matter(found: Findings, kind: CardKind) -> str:
    """YAML that the Hub reads, with what is known for sure: nothing that is only a path here becomes an id there."""
    from huggingface_hub import DatasetCardData, ModelCardData

    tags = ["trl-attribution", "preference"]
    if kind == "dataset":
        return f"---\n{DatasetCardData(tags=tags).to_yaml()}\n---\n"
    base, data = (hub_name(about.name) for about in (found.info.model, found.info.dataset))
    values = ModelCardData(base_model=base, datasets=None if data is None else [data], tags=tags)
    return f"---\n{values.to_yaml()}\n---\n"
