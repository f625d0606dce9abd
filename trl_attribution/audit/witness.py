"""The second witness of an audit: M0 asked about pairs at and near the threshold, under a behavior's description."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.audit.config import WITNESS_FILE, WitnessConfig
from trl_attribution.audit.witness_table import Binding, ProbeHeader, Row, WitnessTable
from trl_attribution.behaviors.likelihood_score import Witness
from trl_attribution.pairs import Pair, PairReader
from trl_attribution.scoring.witness import Agreement, OwnPairs, agreement, places_near, threshold_of
from trl_attribution.utils.chunks import in_chunks
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.audit.folder import Audit, Flagged
    from trl_attribution.probes import Probe
    from trl_attribution.scoring import Flags
    from trl_attribution.utils.progress import OnProgress

_PARTIAL = "witness.partial.parquet"
_BATCH = 64
"""Pairs whose texts are in memory together."""
_KEPT_EVERY = 8
"""Batches after which answers are written down: what a killed audit loses at most."""


@dataclass(frozen=True)
class Witnessed:
    """What the second witness said, by probe."""

    agreements: tuple[Agreement, ...]
    silent: Mapping[str, str]
    """Probes with a description that was not used, and what of it forbids that."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {"probes": [one.as_json() for one in self.agreements], "silent": dict(self.silent)}


def hear(
    auditor: DataAuditor, flagged: Flagged, config: WitnessConfig, on_progress: OnProgress | None = None
) -> Witnessed:
    """Ask M0 about pairs of ``flagged``'s audit; answers that the folder holds already are taken over.

    Raises:
        ProbeError: a description holds a special token of the model.
        ModelError: the model cannot run.
        StoreError: what lies in the folder is broken.
    """
    audit = flagged.audit
    told = {probe.name: probe for probe in audit.probes if probe.description}
    silent = {name: why for name, probe in told.items() if (why := _unheard(audit, probe, config))}
    heard = {name: probe for name, probe in told.items() if name not in silent}
    if not heard or config.witness == "none":
        return Witnessed((), silent if config.witness != "none" else {})
    wanted = {name: _wanted(flagged.flags, audit, name, config) for name in heard}
    table = _Asking(auditor, audit, heard, wanted).run(on_progress)
    return Witnessed(tuple(_agreement(table, flagged, probe) for probe in heard.values()), silent)


def _unheard(audit: Audit, probe: Probe, config: WitnessConfig) -> str | None:
    if audit.store.settings.vision:
        return "is asked about text only, and the dataset holds images"
    check = OwnPairs.of(probe)
    return None if check is None or check.trusted or config.witness == "all" else check.sentence()


def _wanted(flags: Flags, audit: Audit, name: str, config: WitnessConfig) -> list[str]:
    """Ids of the pairs to ask about, in the dataset's order."""
    if config.witness == "all" or audit.scores is None:
        return list(audit.index.pair_ids)
    index = next((place for place, column in enumerate(flags.columns) if column.probe == name), None)
    if index is None:
        return []
    import numpy as np

    near: npt.NDArray[np.int64] = places_near(
        np.array(audit.scores.of(flags.columns[index])), threshold_of(flags, index)
    )
    mine = flags.positions[flags.column_index == index]
    return [audit.index.pair_ids[place] for place in np.union1d(near, mine)]


class _Asking:
    """One round of questions under way."""

    def __init__(
        self, auditor: DataAuditor, audit: Audit, probes: Mapping[str, Probe], wanted: Mapping[str, list[str]]
    ) -> None:
        self._auditor, self._audit = auditor, audit
        self._probes = probes
        self._wanted = wanted
        self._binding = Binding(
            dataset_fingerprint=audit.info.dataset.fingerprint,
            model_digest=audit.info.model.digest,
            dtype=audit.info.model.dtype,
            max_length=auditor.config.encoding.max_length,
        )

    def run(self, on_progress: OnProgress | None) -> WitnessTable:
        """The answers about all wanted pairs, written beside the audit."""
        known = self._known()
        missing = {
            name: {pair_id for pair_id in ids if pair_id not in known.rows.get(name, {})}
            for name, ids in self._wanted.items()
        }
        asked = set().union(*missing.values())
        if asked:
            self._ask(known, missing, asked, on_progress)
        table = WitnessTable(self._binding, {name: known.probes[name] for name in self._probes if name in known.probes})
        for name, ids in self._wanted.items():
            rows = known.rows.get(name, {})
            table.rows[name] = {pair_id: rows[pair_id] for pair_id in ids if pair_id in rows}
        table.write(self._audit.folder / WITNESS_FILE)
        (self._audit.folder / _PARTIAL).unlink(missing_ok=True)
        return table

    def _known(self) -> WitnessTable:
        """Answers that the folder holds already, to the same questions."""
        known = WitnessTable(self._binding)
        for path in (self._audit.folder / WITNESS_FILE, self._audit.folder / _PARTIAL):
            if not path.exists():
                continue
            stored = WitnessTable.read(path)
            if stored.binding != self._binding:
                continue
            for name, header in stored.probes.items():
                if name in self._probes and header.description == self._probes[name].description:
                    known.probes[name] = header
                    known.rows.setdefault(name, {}).update(stored.rows.get(name, {}))
        return known

    def _ask(
        self, known: WitnessTable, missing: Mapping[str, set[str]], asked: set[str], on_progress: OnProgress | None
    ) -> None:
        config = self._auditor.config
        witness = Witness(self._auditor.model, config.encoding, config.token_budget, config.path)
        descriptions = {name: str(probe.description) for name, probe in self._probes.items()}
        for name, text in descriptions.items():
            witness.check(name, text)
        ways: dict[str, None] = dict.fromkeys(
            way for header in known.probes.values() for way in header.way.split("; ") if way
        )
        done = 0
        for number, batch in enumerate(in_chunks(self._texts(asked), _BATCH), start=1):
            ways.update(dict.fromkeys(str(way) for pair in batch if (way := witness.way(pair)) is not None))
            for name, text in descriptions.items():
                known.probes[name] = ProbeHeader(description=text, way="; ".join(ways))
            self._answer(known, witness, batch, missing, descriptions)
            done += len(batch)
            if number % _KEPT_EVERY == 0:
                known.write(self._audit.folder / _PARTIAL)
            if on_progress is not None:
                on_progress("witness", done, len(asked))

    def _answer(
        self,
        known: WitnessTable,
        witness: Witness,
        batch: list[Pair],
        missing: Mapping[str, set[str]],
        descriptions: Mapping[str, str],
    ) -> None:
        """Ask about the pairs of ``batch``, each under the descriptions that lack it, plain ones once."""
        wanted = [frozenset(name for name in descriptions if pair.pair_id in missing[name]) for pair in batch]
        for names in dict.fromkeys(wanted):
            part = [pair for pair, own in zip(batch, wanted, strict=True) if own == names]
            found = witness.ask(part, {name: text for name, text in descriptions.items() if name in names})
            for name, answers in found.items():
                rows = known.rows.setdefault(name, {})
                rows.update({pair.pair_id: Row(pair.row, one) for pair, one in zip(part, answers, strict=True)})

    def _texts(self, asked: set[str]) -> Iterator[Pair]:
        """The pairs asked about, each once, in the dataset's order: an audit stores no texts."""
        audit, left = self._audit, set(asked)
        source = audit.source if audit.source is not None else audit.info.dataset.found_at
        for pair in PairReader(source, replace(audit.reading, on_bad_row="skip")):
            if pair.pair_id in left:
                left.discard(pair.pair_id)
                yield pair
            if not left:
                return


def _agreement(table: WitnessTable, flagged: Flagged, probe: Probe) -> Agreement:
    flags = flagged.flags
    mine = {found.pair_id: found.score for found in flags if found.probe == probe.name}
    return agreement_of(table, probe.name, mine, len(flagged.audit.index), OwnPairs.of(probe))


def agreement_of(
    table: WitnessTable, probe: str, flagged: Mapping[str, float], pairs: int, own: OwnPairs | None
) -> Agreement:
    """What the answers of ``table`` come to beside the pairs that ``probe`` flags, by id with their scores."""
    header = table.probes.get(probe)
    return agreement(
        table.heard(probe),
        flagged,
        probe=probe,
        description=printable(header.description if header else "", 300),
        way=header.way if header else "",
        pairs=pairs,
        asked=len(table.rows.get(probe, {})),
        left_out=table.left_out(probe),
        own=own,
    )


def read_witness(folder: Path) -> WitnessTable | None:
    """The answers beside the audit in ``folder``; None where there are none.

    Raises:
        StoreError: they are broken or of a newer version.
    """
    path = folder / WITNESS_FILE
    return WitnessTable.read(path) if path.exists() else None
