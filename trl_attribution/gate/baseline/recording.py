"""Records a baseline: what a dataset that is trusted looks like to the policy's probes."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trl_attribution.errors import SettingsError
from trl_attribution.gate.baseline.baseline import GateBaseline, Origin, sorted_scores
from trl_attribution.gate.materials import Materials, load_materials
from trl_attribution.gate.policy.file import PolicyFile
from trl_attribution.gate.rows.inventory import Inventory, take_inventory
from trl_attribution.gate.rules.scored import baseline_column, column_of, score_pairs
from trl_attribution.gate.vectors.supply import Supplier, Supply
from trl_attribution.manifest import Manifest
from trl_attribution.manifest.manifest import MANIFEST_LINES
from trl_attribution.pairs import PairReader
from trl_attribution.scoring import context_means
from trl_attribution.scoring.asked import asked_of
from trl_attribution.utils.progress import OnProgress, silent
from trl_attribution.utils.text import printable, tally

log = logging.getLogger("trl_attribution")


def record_baseline(
    file: PolicyFile,
    dataset: str | Path,
    known_bad: str | Path | None = None,
    *,
    download: bool = False,
    trust_remote_code: bool = False,
    vectors: Path | None = None,
    on_progress: OnProgress | None = None,
) -> GateBaseline:
    """Score a whole dataset with the policy's probes and keep what new pairs are to be compared with.

    Args:
        file: the policy; the baseline that it names is neither needed nor read.
        dataset: the dataset that is trusted.
        known_bad: pairs known to be bad: a dataset of them, or a manifest whose pairs have stored vectors.
        download: fetch probes from a Hub repo.
        trust_remote_code: run Python code that comes with the model.
        vectors: an audit folder or vector store to take vectors from, in the place of the policy's.
        on_progress: see :data:`OnProgress`.

    Raises:
        SettingsError: the policy has no probes, so there is nothing to record.
        DataError, StoreError, ProbeError, ModelError: as :func:`run_gate` raises.
    """
    report = on_progress or silent
    materials = load_materials(file, download, with_baseline=False)
    ruled = materials.probes.ruled
    if not ruled:
        raise SettingsError("gate baseline: the policy has no rules for probes, so there is nothing to record")
    supplier = Supplier(materials, trust_remote_code, report, vectors)
    inventory, supply = _read(dataset, materials, supplier, report)
    view = supply.view(inventory.ids_at(supply.usable(np.arange(len(inventory)))))
    kind = asked_of(inventory.reader.kind, file.policy.score)
    scores = score_pairs(view, ruled, kind, None, report)
    means = context_means(view, materials.layers)
    encoding = file.policy.encoding
    baseline = GateBaseline(
        origin=Origin(
            model_fingerprint=materials.model_fingerprint,
            compute_dtype=supply.stores[0].settings.compute_dtype,
            max_length=encoding.max_length,
            truncation_mode=encoding.truncation_mode,
            dataset_fingerprint=inventory.fingerprint,
            pairs=len(view),
        ),
        layers=materials.layers,
        columns=tuple(baseline_column(each, kind) for each in ruled),
        means=torch.stack([means[layer] for layer in materials.layers]),
        scores=sorted_scores([scores.of(column_of(each, kind)) for each in ruled], len(view)),
    )
    if known_bad is None:
        return baseline
    ids, bad_vectors = _known_bad(known_bad, materials, supplier, report)
    return replace(baseline, known_bad_ids=ids, known_bad=bad_vectors)


def _read(
    dataset: str | Path, materials: Materials, supplier: Supplier, report: OnProgress
) -> tuple[Inventory, Supply]:
    policy = materials.file.policy
    reader = PairReader(dataset, policy.reading)
    inventory = take_inventory(reader, None, policy.rules.hygiene.tolerated, report)
    supply = supplier.supply(inventory, np.arange(len(inventory)))
    left_out = Counter(row.reason for row in [*inventory.bad_rows, *(row for _, row in supply.unusable)])
    if left_out:
        told = tally(dict(sorted(left_out.items())))
        log.warning("%s: rows left out of the baseline: %s", printable(reader.source.name), told)
    return inventory, supply


def _known_bad(
    given: str | Path, materials: Materials, supplier: Supplier, report: OnProgress
) -> tuple[tuple[str, ...], Tensor]:
    if Path(given).is_file() and MANIFEST_LINES.begins(Path(given)):
        listed = [decision.pair_id for decision in Manifest.load(given).decisions if decision.action != "keep"]
        if not listed:
            raise SettingsError(f"--known-bad {given}: the manifest lists no pair to filter or flip")
        supply = supplier.stored(listed)
    else:
        inventory, supply = _read(given, materials, supplier, report)
        listed = inventory.ids_at(supply.usable(np.arange(len(inventory))))
    none = torch.empty(0, len(materials.layers), materials.hidden_size)
    blocks = supply.view(listed).blocks(materials.layers, 1024)
    return tuple(listed), torch.cat([none, *(block.pair for block in blocks)])
