"""A finished audit as discovery needs it: its pairs' vectors, where each pair stands, and which are flagged.

Axis letters: N audited pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trl_attribution.audit.folder import Audit
from trl_attribution.audit.info import AuditInfo
from trl_attribution.audit.saved import SavedAudit
from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.pairs import Encoding, Pair, PairReader, Reading
from trl_attribution.pairs.dataset_pass import PairIndex
from trl_attribution.scoring import ScoreTable
from trl_attribution.store import VectorStore, VectorView

if TYPE_CHECKING:
    from datasets import Dataset

_MOST_SOURCES = 20
_OTHER_SOURCES = "(other sources)"

ReadPairs = Callable[[Mapping[str, int]], Mapping[str, Pair]]
"""The pairs with the given ids, which stand at the given rows, as far as they are there."""


@dataclass(frozen=True)
class AuditedPairs:
    """The N different pairs of one audit, in dataset order."""

    folder: Path
    info: AuditInfo
    store: VectorStore
    view: VectorView
    pair_ids: Sequence[str]
    rows: npt.NDArray[np.int64]
    """``[N]``: each pair's first row in the dataset."""
    sources: pa.DictionaryArray
    """``[N]``."""
    flagged: frozenset[str]
    """Pairs that the audit's filter manifest lists; none where there is no manifest."""
    reading: Reading

    @classmethod
    def open(
        cls, folder: str | Path, dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | None = None
    ) -> Self:
        """Open the audit in ``folder``; its vectors stay on disk.

        An audit with probes says itself which pairs are its own. One without has to read its dataset again: the one
        given, else the one that it names.

        Raises:
            StoreError: there is no finished audit, or its store or scores are broken or lack pairs.
            DataError: the dataset of an audit without probes cannot be read.
            SettingsError: that dataset has none of the audit's pairs.
            ManifestError: the audit's manifest cannot be read.
        """
        saved = SavedAudit.open(folder)
        place, info, manifest = saved.folder, saved.info, saved.manifest
        store = saved.store()
        if saved.scores_path.exists():
            index = _scored(saved.table())
        else:
            index = _read_again(info.dataset.found_at if dataset is None else dataset, saved.reading, store)
        if len(index.pair_ids) != info.dataset.pairs:
            raise SettingsError(
                f"{place} audited {info.dataset.pairs:,} pairs, but {len(index.pair_ids):,} of them were found. "
                "Give the dataset that was audited (--dataset)."
            )
        return cls(
            folder=place,
            info=info,
            store=store,
            view=store.select(index.pair_ids),
            pair_ids=index.pair_ids,
            rows=index.rows,
            sources=index.sources,
            flagged=frozenset(decision.pair_id for decision in manifest.decisions) if manifest else frozenset(),
            reading=saved.reading,
        )

    @classmethod
    def of(cls, audit: Audit) -> Self:
        """The pairs of an audit that was just made."""
        index = audit.index
        return cls(
            folder=audit.folder,
            info=audit.info,
            store=audit.store,
            view=audit.store.select(index.pair_ids),
            pair_ids=index.pair_ids,
            rows=index.rows,
            sources=index.sources,
            flagged=frozenset(),
            reading=audit.reading,
        )

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def model(self) -> ModelFingerprint:
        """M0's fingerprint."""
        return self.info.model.fingerprint

    @property
    def encoding(self) -> Encoding:
        """How the pairs were truncated."""
        return self.info.encoding

    def largest_sources(self) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
        """The names of the 20 largest sources, all others as one, and each pair's place among them ``[N]``."""
        codes = np.asarray(self.sources.indices)
        names = [str(name) for name in self.sources.dictionary.to_pylist()]
        order = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
        kept = order[:_MOST_SOURCES]
        place = np.full(len(names), len(kept))
        place[kept] = np.arange(len(kept))
        shown = tuple(names[code] for code in kept) + ((_OTHER_SOURCES,) if len(kept) < len(names) else ())
        return shown, place[codes].astype(np.int64)

    def layers(self, asked: Sequence[int] | None) -> tuple[int, ...]:
        """The layers to compare at, ascending: those asked for, else the middle one stored (the lower of two).

        Raises:
            SettingsError: a layer is not stored, or comes twice.
        """
        stored = sorted(self.store.settings.layers)
        if not asked:
            return (stored[(len(stored) - 1) // 2],)
        if len(set(asked)) < len(asked) or not set(asked) <= set(stored):
            raise SettingsError(
                f"layers: {', '.join(map(str, asked))} must be different layers of those that the audit stored: "
                f"{', '.join(map(str, stored))}"
            )
        return tuple(sorted(asked))

    def rows_of(self, places: Sequence[int]) -> dict[str, int]:
        """Dataset row of the pairs at ``places``, by id."""
        return {self.pair_ids[place]: int(self.rows[place]) for place in places}


def _scored(table: ScoreTable) -> PairIndex:
    if not table.columns:
        raise StoreError(f"{table.path} holds no scores. Run the audit again.")
    found = table.read(table.columns[0], ["pair_id", "row", "source"])
    return PairIndex(
        tuple(found.column("pair_id").to_pylist()),
        np.array(found.column("row"), dtype=np.int64),
        found.column("source").combine_chunks(),
    )


def _read_again(
    dataset: str | Path | Dataset | Sequence[Mapping[str, Any]], reading: Reading, store: VectorStore
) -> PairIndex:
    rows: dict[str, int] = {}
    sources: list[str] = []
    for pair in PairReader(dataset, replace(reading, on_bad_row="skip")):
        if pair.pair_id not in rows:
            rows[pair.pair_id] = pair.row
            sources.append(pair.source)
    ids = list(rows)
    there = store.holds(ids)
    kept = [pair_id for pair_id, is_there in zip(ids, there, strict=True) if is_there]
    chosen = pa.array(sources, pa.string()).dictionary_encode().filter(pa.array(there))
    return PairIndex(tuple(kept), np.array([rows[pair_id] for pair_id in kept], dtype=np.int64), chosen)
