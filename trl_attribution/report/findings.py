"""What an audit folder has to say, read back from its files: what the page and the terminal tell.

Axis letters: N scored pairs, F listed pairs, P probes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trl_attribution.audit.info import AuditInfo
from trl_attribution.audit.saved import SavedAudit
from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.manifest import Manifest
from trl_attribution.manifest.decisions import ReviewDecision
from trl_attribution.pairs import Reading
from trl_attribution.probes import Probe
from trl_attribution.report.agreement import verdicts
from trl_attribution.report.distributions import Histogram, LayerScores, column_scores, histogram, layer_scores
from trl_attribution.report.extras import Extras, read_extras
from trl_attribution.report.listed import Listed, Scored, nothing
from trl_attribution.report.reviewed import Reviewable, Reviewed, read_reviews
from trl_attribution.report.witness import agreements
from trl_attribution.scoring import (
    DEFAULT_RULE,
    Column,
    Outcome,
    Rule,
    ScoreTable,
    SourceRow,
    reference_for,
    source_table,
)
from trl_attribution.scoring.calibration import Null
from trl_attribution.scoring.witness import Agreement
from trl_attribution.utils.arrays import Doubles
from trl_attribution.utils.kinds import ExampleKind
from trl_attribution.utils.text import printable


@dataclass(frozen=True)
class ProbeFindings:
    """What one probe found, at the layer that flags were taken at."""

    column: Column
    null: Null
    histogram: Histogram
    layers: tuple[LayerScores, ...]
    """Every layer that was scored, ascending."""
    outcome: Outcome
    """What the rule made of its scores, and the sentence about it."""
    reviewable: Reviewable | None
    """What reviews are counted by; None where nothing is flagged, or nothing is known to reckon with."""
    reviewed: Reviewed | None
    """What reviewers' decisions in the folder say of it; None without any about pairs that count."""
    flagged: int
    """Flagged pairs that this probe ranks best."""
    threshold: float | None
    """The lowest score among them; None where there are none."""
    worst_q: float | None
    """The highest q-value among them."""

    @property
    def at_flag_layer(self) -> LayerScores:
        """The summary of the layer that flags were taken at."""
        return next(one for one in self.layers if one.layer == self.column.layer)


@dataclass(frozen=True)
class Findings:
    """One audit, for people."""

    folder: Path
    info: AuditInfo
    rule: Rule | None
    """None for an audit without probes."""
    rule_is_default: bool
    """No manifest is there: the pairs were flagged here."""
    left_out: int
    """Pairs that the rule flags but that score 0 or less: no manifest lists them."""
    probes: tuple[ProbeFindings, ...]
    sources: tuple[SourceRow, ...]
    listed: Listed
    extras: Extras
    witness: tuple[Agreement, ...]
    """What the second witness says of each probe that it was asked about."""
    known_probes: tuple[Probe, ...]
    """Those of the audit's probes that were given or lie in its folder, in its order."""
    reading: Reading

    @property
    def pairs(self) -> int:
        """N."""
        return self.info.dataset.pairs

    @property
    def audited_file(self) -> Path | None:
        """The file or folder that was audited, if it is still where it was."""
        path = Path(self.info.dataset.found_at)
        return path if path.exists() else None

    @property
    def kind(self) -> ExampleKind:
        """What its examples are, and what they are called."""
        return self.info.dataset.kind

    def reviewed_by(self, decisions: Iterable[ReviewDecision]) -> list[Reviewed]:
        """What ``decisions`` say of the estimates of the probes that they count for."""
        reviews = verdicts(decisions)
        found = (one.reviewable.reviewed(reviews) for one in self.probes if one.reviewable is not None)
        return [one for one in found if one is not None]


def read_findings(folder: str | Path, probes: Sequence[Probe] = (), discovery: str | Path | None = None) -> Findings:
    """Read a finished audit.

    Args:
        folder: the audit folder.
        probes: the audit's probes, for how they were built and for the null of calibrated ones; those that the audit
            did not use are an error. Probes that lie in the audit folder are found without.
        discovery: where ``discover --output`` wrote to; by default ``discovery/`` in the folder, if it is there.

    Raises:
        StoreError: there is no finished audit, or a file of it is broken or of a newer version.
        ManifestError: its manifest cannot be read.
        SettingsError: a probe was given that the audit did not use.
    """
    saved = SavedAudit.open(folder)
    place, info, manifest = saved.folder, saved.info, saved.manifest
    extras = read_extras(place, info, None if discovery is None else Path(discovery))
    known = _known_probes(info, probes, extras.probes)
    if not info.probes:
        return Findings(place, info, None, False, 0, (), (), nothing(), extras, (), known, saved.reading)
    table = saved.table()
    columns = _flag_columns(table, manifest, known)
    scored = Scored.read(table, columns)
    rule = DEFAULT_RULE if manifest is None else _rule(manifest)
    chosen = None if manifest is None else scored.of_manifest(manifest)
    outcomes = scored.outcomes(rule, chosen, info.dataset.kind)
    listed = scored.listed(scored.passing(outcomes) if chosen is None else chosen, outcomes)
    reviews = read_reviews(place, info.dataset.fingerprint)
    return Findings(
        folder=place,
        info=info,
        rule=rule,
        rule_is_default=manifest is None,
        left_out=0 if manifest is None else manifest.header.counts.get("left_out_not_towards", 0),
        probes=tuple(
            _probe_findings(scored, listed, outcome, index, known, reviews) for index, outcome in enumerate(outcomes)
        ),
        sources=tuple(source_table(scored.flags(rule, listed), scored.sources)),
        listed=listed,
        extras=extras,
        witness=agreements(place, info, columns, listed, known),
        known_probes=known,
        reading=saved.reading,
    )


def _probe_findings(
    scored: Scored,
    listed: Listed,
    outcome: Outcome,
    index: int,
    known: Sequence[Probe],
    reviews: Mapping[str, bool],
) -> ProbeFindings:
    table, column, null = scored.table, scored.columns[index], scored.worth[index].null
    mine = listed.probe[: listed.flagged] == index
    scores = column_scores(table, column)
    # A table has no scores of flips, which are the negated ones but for one kind.
    mirrored = None if column.kind == "one-sided" else -scores
    expected = _reference(column, known) if null == "reference" else mirrored
    reviewable = Reviewable.of(outcome, scores, scored.pair_ids)
    return ProbeFindings(
        column=column,
        null=null,
        histogram=histogram(scores, expected, outcome.unlike(scores)),
        layers=tuple(
            layer_scores(table, each)
            for each in sorted(table.columns, key=lambda each: each.layer)
            if each.probe == column.probe
        ),
        outcome=outcome,
        reviewable=reviewable,
        reviewed=None if reviewable is None else reviewable.reviewed(reviews),
        flagged=int(mine.sum()),
        threshold=float(listed.score[: listed.flagged][mine].min()) if mine.any() else None,
        worst_q=float(listed.q_value[: listed.flagged][mine].max()) if mine.any() else None,
    )


def _reference(column: Column, known: Sequence[Probe]) -> Doubles | None:
    probe = next((each for each in known if each.name == column.probe), None)
    if probe is None or column.layer not in probe.layers:
        return None
    found = reference_for(probe, column)
    return None if found is None else found.scores


def _flag_columns(table: ScoreTable, manifest: Manifest | None, known: Sequence[Probe]) -> tuple[Column, ...]:
    """The score column that flags were taken at, of each probe."""
    if manifest is not None and "columns" in manifest.header.rule:
        try:
            stated = [Column(one["probe"], one["layer"], one["kind"]) for one in manifest.header.rule["columns"]]
        except (KeyError, TypeError) as error:
            raise StoreError(f"the manifest's rule has columns that cannot be read: {printable(error, 300)}") from error
        if stated and all(column in table.columns for column in stated):
            return tuple(stated)
        raise StoreError("the manifest names score columns that scores.parquet lacks. Run the audit again.")
    own = {probe.name: probe.layer for probe in known}
    names = dict.fromkeys(column.probe for column in table.columns)
    return tuple(_own_column([each for each in table.columns if each.probe == name], own.get(name)) for name in names)


def _own_column(choices: Sequence[Column], layer: int | None) -> Column:
    """The column at the probe's own ``layer``, else the middle one."""
    return next((each for each in choices if each.layer == layer), choices[(len(choices) - 1) // 2])


def _rule(manifest: Manifest) -> Rule:
    known = {name: value for name, value in manifest.header.rule.items() if name in Rule.__dataclass_fields__}
    return Rule(**known)


def _known_probes(info: AuditInfo, given: Sequence[Probe], found: Sequence[Probe]) -> tuple[Probe, ...]:
    for probe in given:
        if info.probes.get(probe.name) != probe.fingerprint:
            raise SettingsError(
                f"probe {probe.name!r} is not one of this audit's: it used {', '.join(info.probes) or 'none'}, and "
                "fingerprints have to agree. Give the registry that the audit was made with."
            )
    of_name = {probe.name: probe for probe in (*found, *given) if info.probes.get(probe.name) == probe.fingerprint}
    return tuple(of_name[name] for name in info.probes if name in of_name)
