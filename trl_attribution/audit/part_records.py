"""What a rank or job notes beside its part of the vectors."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from trl_attribution.audit.info import ComputeCost, ModelInfo
from trl_attribution.store import VectorStore
from trl_attribution.utils.json_file import JsonFile


class PartRecord(JsonFile):
    """The content of ``part.json``: whose part it is, and what it cost so far."""

    FORMAT = "trl-attribution audit part"
    ADVICE = "Run that shard again."

    share: str
    """``3/8``: the third of eight."""
    began: float
    """Seconds since the epoch."""
    model: ModelInfo
    cost: ComputeCost | None
    """What the last run took; None until one has ended."""


def record_path(part: Path) -> Path:
    """Where the record of the part in the folder ``part`` lies."""
    return part / "part.json"


def records_of(parts: Sequence[VectorStore]) -> list[PartRecord]:
    """The records of ``parts``, as far as there are any.

    Raises:
        StoreError: one is broken or of a newer version.
    """
    return [record for part in parts if (record := PartRecord.read(record_path(part.path))) is not None]


def remove_parts(folder: Path) -> None:
    """Remove all parts of an audit folder, once they are merged."""
    shutil.rmtree(folder / "parts", ignore_errors=True)


def total_cost(records: Sequence[PartRecord]) -> ComputeCost:
    """What computing the vectors took, on all ranks and jobs together.

    Seconds, memory and what describes a machine are those of the slowest or largest; tokens and FLOPs are summed.
    """
    costs = [record.cost for record in records if record.cost is not None]
    if not costs:
        return ComputeCost(path=None, path_reason=None, seconds=0.0, tokens_computed=0, tokens_in_sequences=0, flops=0)
    return max(costs, key=lambda cost: cost.seconds).model_copy(
        update={
            "tokens_computed": sum(cost.tokens_computed for cost in costs),
            "tokens_in_sequences": sum(cost.tokens_in_sequences for cost in costs),
            "flops": sum(cost.flops for cost in costs),
            "peak_memory_bytes": max(cost.peak_memory_bytes or 0 for cost in costs),
            "peak_device_memory_bytes": max(cost.peak_device_memory_bytes or 0 for cost in costs) or None,
            "parts": len(costs),
            "device_seconds": round(sum(cost.seconds for cost in costs), 3),
        }
    )
