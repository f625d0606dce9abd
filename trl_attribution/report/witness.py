"""What the second witness said beside the pairs that an audit flags, read back from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trl_attribution.audit.config import WITNESS_FILE
from trl_attribution.audit.info import AuditInfo
from trl_attribution.errors import StoreError
from trl_attribution.probes import Probe
from trl_attribution.scoring import Column
from trl_attribution.scoring.witness import Agreement, OwnPairs

if TYPE_CHECKING:
    from trl_attribution.report.listed import Listed


def agreements(
    folder: Path, info: AuditInfo, columns: Sequence[Column], listed: Listed, known: Sequence[Probe]
) -> tuple[Agreement, ...]:
    """What ``witness.parquet`` says beside the flagged pairs.

    Raises:
        StoreError: it is broken, or about another dataset or model than the audit.
    """
    if not (folder / WITNESS_FILE).exists():
        return ()
    from trl_attribution.audit.witness import agreement_of, read_witness

    table = read_witness(folder)
    if table is None:
        return ()
    about = (table.binding.dataset_fingerprint, table.binding.model_digest)
    if about != (info.dataset.fingerprint, info.model.digest):
        raise StoreError(f"{folder / WITNESS_FILE} is about another dataset or model than this audit. Remove it.")
    own = {probe.name: OwnPairs.of(probe) for probe in known}
    found = []
    for index, column in enumerate(columns):
        if column.probe in table.probes:
            mine = np.flatnonzero(listed.probe[: listed.flagged] == index)
            flagged = {listed.pair_ids[place]: float(listed.score[place]) for place in mine}
            found.append(agreement_of(table, column.probe, flagged, info.dataset.pairs, own.get(column.probe)))
    return tuple(found)
