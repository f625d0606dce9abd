"""An audit as it lies on disk, and what can be asked of it: flags, source tables, manifests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from trl_attribution.audit.info import AuditInfo
from trl_attribution.errors import DataError, SettingsError
from trl_attribution.manifest import Decision, Manifest, ManifestHeader
from trl_attribution.pairs import PairReader, Reading, SkippedRow
from trl_attribution.pairs.dataset_pass import PairIndex
from trl_attribution.pairs.own_responses import OwnFile
from trl_attribution.pairs.rows import RowSource
from trl_attribution.probes import Probe
from trl_attribution.scoring import DEFAULT_RULE, Flags, Rule, Scores, SourceRow, flag, rule_words, source_table
from trl_attribution.scoring.kinds import Action, actions_by, why_no_flip
from trl_attribution.store import VectorStore
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]  # no stubs of its own
    from datasets import Dataset

    from trl_attribution.audit.notebook import FlaggedRow


@dataclass(frozen=True)
class Flagged:
    """The flagged pairs of one audit."""

    audit: Audit
    flags: Flags

    def __len__(self) -> int:
        return len(self.flags)

    def __iter__(self) -> Iterator[FlaggedRow]:
        """The flagged pairs, best rank first, with their texts."""
        from trl_attribution.audit.notebook import flagged_rows

        return flagged_rows(self)

    def __repr__(self) -> str:
        flags = self.flags
        rules = {rule_words(flags.rule, by_recall=one.decision is not None) for one in flags.outcomes.values()}
        return f"Flagged({len(self):,} of {len(self.audit.index):,} by {'; '.join(sorted(rules))})"

    def _repr_html_(self) -> str:
        """The answer and the first pairs, for a notebook."""
        from trl_attribution.audit.notebook import flagged_html

        return flagged_html(self)

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with a row a flagged pair, best rank first: the fields of :class:`FlaggedRow`."""
        from trl_attribution.audit.notebook import FlaggedRow

        rows = list(self)
        return pa.table({one.name: [getattr(row, one.name) for row in rows] for one in fields(FlaggedRow)}).to_pandas()

    def select(self, dataset: Dataset) -> Dataset:
        """The flagged rows of ``dataset``, best rank first; of rows that repeat or make up an example, the first.

        That they are the audited ones is checked for preference pairs, for other kinds only their number.

        Raises:
            DataError: it is not the dataset that was audited.
        """
        chosen = [int(self.audit.index.rows[found.position]) for found in self.flags]
        if len(dataset) != self.audit.info.dataset.rows or not self._stand_in(found := dataset.select(chosen)):
            raise DataError("this is not the dataset that was audited, row for row. Give that one: its file, loaded.")
        return found

    def _stand_in(self, rows: Dataset) -> bool:
        """Whether these are the flagged rows; of examples that may be several rows it cannot be told."""
        reading = self.audit.reading
        is_known = not len(rows) or reading.kind != "pair"
        return is_known or tuple(pair.pair_id for pair in PairReader(rows, reading)) == self.flags.pair_ids

    @property
    def pair_ids(self) -> pa.Array:
        """The ids of all N scored pairs."""
        assert self.audit.scores is not None  # else nothing could be flagged
        return self.audit.scores.pair_ids

    def top(self, count: int) -> Flagged:
        """The ``count`` pairs that rank highest, whether they are flagged or not, or all if there are fewer."""
        flags = self.flags
        probe = flags.columns[0].probe if len(flags.columns) == 1 else None
        layers = {column.layer for column in flags.columns}
        rule = Rule(top_k=min(count, len(self.audit.index)))
        return self.audit.flag_by(rule, probe, layers.pop() if len(layers) == 1 else None)

    def sources(self) -> list[SourceRow]:
        """How much of each source is flagged, strongest evidence first."""
        return source_table(self.flags, self.audit.index.sources)

    @property
    def actions(self) -> tuple[Action, ...]:
        """What can be done to such examples."""
        return actions_by((column.kind for column in self.flags.columns), self.audit.info.dataset.kind)

    def to_manifest(self, action: Action) -> Manifest:
        """A manifest that filters or flips the flagged pairs.

        Pairs that score 0 or less are left out and counted as ``left_out_not_towards``: removing them does nothing
        against the behavior, and flipping them would teach it.

        Raises:
            SettingsError: ``action`` is neither ``filter`` nor ``flip``, or not one of :attr:`actions`.
        """
        if action not in ("filter", "flip"):
            raise SettingsError(f"action: {action!r} is unknown; choose filter or flip")
        if action not in self.actions:
            raise SettingsError(f"action: {why_no_flip(self.audit.info.dataset.kind)}; choose filter")
        decisions = tuple(
            Decision(
                pair_id=found.pair_id,
                row=int(self.audit.index.rows[found.position]),
                action=action,
                probe=found.probe,
                score=round(found.score, 7),
                rank=found.rank,
                q_value=found.q_value,
            )
            for found in self.flags
            if found.score > 0
        )
        info = self.audit.info
        header = ManifestHeader(
            action=action,
            dataset_fingerprint=info.dataset.fingerprint,
            model_fingerprint=info.model.digest,
            probe_fingerprints=dict(info.probes),
            rule={**self.flags.rule.as_dict(), "columns": self._columns()},
            counts={"pairs": len(self.audit.index), "left_out_not_towards": len(self.flags) - len(decisions)},
            kind=self.audit.reading.kind,
            reading=asdict(self.audit.reading),
        )
        return Manifest(header, decisions)

    def save_manifests(self) -> dict[str, str]:
        """Write ``manifest.filter.jsonl`` and, where it fits, ``manifest.flip.jsonl``: their paths by action."""
        paths = {action: self.audit.folder / f"manifest.{action}.jsonl" for action in self.actions}
        for action, path in paths.items():
            self.to_manifest(action).save(path)
        return {action: str(path) for action, path in paths.items()}

    def _columns(self) -> list[dict[str, Any]]:
        """The score columns that the rule looked at, with the null behind each one's q-values."""
        return [{**asdict(column), "null": self.flags.nulls[column.probe]} for column in self.flags.columns]


@dataclass(frozen=True)
class Audit:
    """The result of :meth:`DataAuditor.audit`."""

    folder: Path
    info: AuditInfo
    store: VectorStore
    index: PairIndex
    scores: Scores | None
    """None where no probes were given."""
    probes: tuple[Probe, ...]
    reading: Reading
    skipped: tuple[SkippedRow, ...] = ()
    """Rows left out, with the reason each; none unless ``on_bad_row="skip"``."""
    source: RowSource | None = None
    """The dataset that was audited, as it was opened; None for an audit that was opened again."""
    is_main: bool = True
    """False on the ranks that did not merge and score: they know neither the index nor the scores."""

    def __repr__(self) -> str:
        probes = ", ".join(probe.name for probe in self.probes) or "no probes"
        layers = ", ".join(map(str, self.store.layers))
        dataset = self.info.dataset
        about = f"{dataset.kind.counted(dataset.pairs)} of {printable(dataset.name, 80)}, layers {layers}"
        return f"Audit({str(self.folder)!r}: {about}, {probes})"

    @property
    def own_responses(self) -> OwnFile | None:
        """M0's own responses that its vectors were made with, if there are any and they are still there."""
        return self.info.own_responses(self.folder)

    def _repr_html_(self) -> str:
        """What the default rule flags, for a notebook."""
        from trl_attribution.audit.notebook import paragraphs

        html = str(paragraphs([repr(self)]))
        return html + self.flag()._repr_html_() if self.is_main and self.scores is not None else html

    def flag(
        self,
        *,
        top_k: int | None = None,
        threshold: float | None = None,
        fdr: float | None = None,
        recall: float | None = None,
        probe: str | None = None,
        layer: int | None = None,
    ) -> Flagged:
        """The pairs that push towards a behavior, by the rule that is given (:class:`Rule`), or by the default one.

        Raises:
            SettingsError: several rules, a value out of range, an unknown probe or layer, or an audit
                without probes.
        """
        given = (top_k, threshold, fdr, recall)
        return self.flag_by(DEFAULT_RULE if all(value is None for value in given) else Rule(*given), probe, layer)

    def flag_by(self, rule: Rule, probe: str | None = None, layer: int | None = None) -> Flagged:
        """As :meth:`flag`, for a rule at hand.

        Raises:
            SettingsError: as for :meth:`flag`.
        """
        if not self.is_main:
            raise SettingsError("flag: only the main process has the scores; ask it (Audit.is_main tells which it is)")
        if self.scores is None:
            raise SettingsError("flag: this audit has no scores; audit again with probes")
        return Flagged(self, flag(self.scores, rule, probe, layer).told_of(self.info.dataset.kind))
