"""Parts of one store, written by several ranks or jobs, and the one store that they come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trl_attribution.errors import StoreError, describe_difference
from trl_attribution.store.ids import PairIds, first_ids, parse_ids
from trl_attribution.store.settings import StoreSettings
from trl_attribution.store.vector_store import VectorStore


def part_folder(output_dir: Path, part: int) -> Path:
    """Where the rank or job number ``part`` (from 0) keeps a store of its own."""
    return output_dir / "parts" / f"{part:05d}"


def parts_of(output_dir: Path) -> list[VectorStore]:
    """Every part in ``output_dir``, in the order of their numbers; none where nothing was computed in parts.

    Raises:
        StoreError: a part is broken, or parts were made with different settings; the difference is printed.
    """
    folders = sorted(path for path in (output_dir / "parts").glob("*") if _is_begun(path))
    parts = [VectorStore.open(folder) for folder in folders]
    for part in parts[1:]:
        check_same(parts[0], part.settings, str(part.path))
    return parts


def check_same(part: VectorStore, settings: StoreSettings, where: str) -> None:
    """Refuse ``settings`` other than those of ``part``.

    Raises:
        StoreError: they differ; the message prints how.
    """
    if part.settings != settings:
        raise StoreError(
            f"{part.path} (stored) and {where} (asked for) were made with different settings:\n"
            f"{describe_difference(part.settings.as_dict(), settings.as_dict())}\n"
            "Parts of one audit need equal settings: run those that differ again, into an empty folder."
        )


def merge_parts(
    parts: Sequence[VectorStore], into: Path, settings: StoreSettings, pair_ids: Sequence[str], shard_size: int
) -> VectorStore:
    """Bring the vectors of ``pair_ids``, no one given twice, from ``parts`` into the store at ``into``.

    The store may hold some already. The shards are those that a single process, computing the same vectors, would have
    written: the pairs that ``into`` lacks, in the order given, ``shard_size`` at a time. So a killed merge goes
    on where it was. Memory holds one shard and 50 bytes a pair. The parts stay as they are.

    Raises:
        StoreError: pairs are missing from all parts (their number and first ids are named), a part is damaged or was
            made with other settings, or ``into`` cannot be written.
        SettingsError: the store at ``into`` was made with other settings.
    """
    for part in parts:
        check_same(part, settings, str(into))
    store = VectorStore.create(into, settings)
    lacking = PairIds(parse_ids(pair_ids)[~store.holds(pair_ids)])
    owners = _owners(parts, lacking)
    if (owners < 0).any():
        nowhere = lacking.array[owners < 0]
        raise StoreError(
            f"{len(nowhere)} of {len(pair_ids)} pairs are in none of {len(parts)} parts: {first_ids(nowhere)}. "
            "Run the jobs that have not finished again, then merge."
        )
    if not len(lacking):
        return store
    for part in parts:
        part.verify()
    with store.writer() as writer:
        for start in range(0, len(lacking), shard_size):
            chosen = lacking[start : start + shard_size]
            writer.add(chosen, *_collected(parts, owners[start : start + shard_size], chosen))
    return store


def _owners(parts: Sequence[VectorStore], pair_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """For each pair the first part that has it, -1 where none has."""
    owners = np.full(len(pair_ids), -1, dtype=np.int64)
    for number, part in enumerate(parts):
        owners[(owners < 0) & part.holds(pair_ids)] = number
    return owners


def _collected(
    parts: Sequence[VectorStore], owners: npt.NDArray[np.int64], pair_ids: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Pair and context vectors [n, L, D] of ``pair_ids`` in their order; float32 holds every stored dtype exactly."""
    settings = parts[0].settings
    pair = torch.empty(len(pair_ids), len(settings.layers), settings.hidden_size)
    context = torch.empty_like(pair)
    for number, rows in _by_owner(owners):
        view = parts[number].select([pair_ids[row] for row in rows.tolist()])
        (block,) = view.blocks(settings.layers, len(rows))
        pair[torch.from_numpy(rows)] = block.pair
        context[torch.from_numpy(rows)] = block.context
    return pair, context


def _by_owner(owners: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    for number in np.unique(owners).tolist():
        yield number, np.flatnonzero(owners == number)


def _is_begun(folder: Path) -> bool:
    """Whether there is a store in ``folder``; a job killed at its very start leaves an empty one."""
    return (folder / "store.json").exists() or any((folder / "shards").glob("*.safetensors"))
