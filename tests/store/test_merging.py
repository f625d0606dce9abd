"""Parts that several writers made come to the very store that one writer would have made."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.store_cases import contents, fill, filled, ids, settings
from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.store import VectorStore, merging
from trl_attribution.store.merging import merge_parts, part_folder, parts_of

SHARD = 10


def write_part(folder: Path, number: int, pair_ids: Sequence[str], **changes: Any) -> VectorStore:
    """A part with ``pair_ids`` in shards of ten."""
    store = VectorStore.create(part_folder(folder, number), settings(**changes))
    if pair_ids:
        fill(store, pair_ids, SHARD)
    return store


def write_blocks(folder: Path, pair_ids: Sequence[str], writers: int, **changes: Any) -> None:
    """What ``writers`` jobs do that take the blocks of ten pairs in turn."""
    blocks = [pair_ids[start : start + SHARD] for start in range(0, len(pair_ids), SHARD)]
    for number in range(writers):
        write_part(folder, number, [pair for block in blocks[number::writers] for pair in block], **changes)


def merged(folder: Path, pair_ids: Sequence[str], **changes: Any) -> VectorStore:
    return merge_parts(parts_of(folder), folder / "vectors", settings(**changes), pair_ids, SHARD)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("writers", [1, 2, 3, 40])
def test_the_merged_store_has_the_bytes_of_a_single_writers(tmp_path: Path, writers: int, dtype: str) -> None:
    filled(tmp_path / "alone", 95, SHARD, vector_dtype=dtype)
    write_blocks(tmp_path, ids(95), writers, vector_dtype=dtype)
    store = merged(tmp_path, ids(95), vector_dtype=dtype)
    store.verify()
    assert store.pair_ids == VectorStore.open(tmp_path / "vectors").pair_ids == ids(95)
    assert contents(tmp_path / "vectors") == contents(tmp_path / "alone")


def test_pairs_scattered_over_parts_come_out_in_the_order_given(tmp_path: Path) -> None:
    for number in range(3):
        write_part(tmp_path, number, ids(47)[::-1][number::3])
    filled(tmp_path / "alone", 47, SHARD)
    merged(tmp_path, ids(47))
    assert contents(tmp_path / "vectors") == contents(tmp_path / "alone")


def test_a_pair_in_two_parts_counts_once(tmp_path: Path) -> None:
    write_part(tmp_path, 0, ids(30))
    write_part(tmp_path, 4, ids(30, start=15))
    filled(tmp_path / "alone", 45, SHARD)
    merged(tmp_path, ids(45))
    assert contents(tmp_path / "vectors") == contents(tmp_path / "alone")


def test_what_the_store_has_already_stays_and_only_the_rest_is_added(tmp_path: Path) -> None:
    filled(tmp_path / "alone", 23, SHARD)
    fill(VectorStore.open(tmp_path / "alone"), ids(60), SHARD)
    filled(tmp_path / "vectors", 23, SHARD)
    write_blocks(tmp_path, ids(37, start=23), 2)
    merged(tmp_path, ids(60))
    assert contents(tmp_path / "vectors") == contents(tmp_path / "alone")


def test_pairs_of_parts_that_were_not_asked_for_are_left_out(tmp_path: Path) -> None:
    write_blocks(tmp_path, ids(50), 2)
    assert merged(tmp_path, ids(50)[5:25]).pair_ids == ids(50)[5:25]


def test_missing_pairs_are_counted_and_named_and_nothing_is_merged(tmp_path: Path) -> None:
    write_part(tmp_path, 0, ids(10))
    with pytest.raises(StoreError, match=f"15 of 25 pairs are in none of 1 parts: {ids(1, start=10)[0]}"):
        merged(tmp_path, ids(25))
    assert len(VectorStore.open(tmp_path / "vectors")) == 0


def test_parts_of_different_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    write_part(tmp_path, 0, ids(10))
    write_part(tmp_path, 1, ids(10, start=10), max_length=512)
    with pytest.raises(StoreError, match="max_length: stored 1024, asked for 512"):
        parts_of(tmp_path)


def test_parts_made_with_other_settings_than_the_store_are_refused(tmp_path: Path) -> None:
    write_part(tmp_path, 0, ids(10))
    with pytest.raises(StoreError, match="compute_dtype: stored 'bfloat16', asked for 'float32'"):
        merged(tmp_path, ids(10), compute_dtype="float32")
    filled(tmp_path / "vectors", 10, compute_dtype="float32")
    with pytest.raises(SettingsError, match="compute_dtype"):
        merged(tmp_path, ids(10))


def test_a_damaged_part_is_named_and_nothing_is_merged(tmp_path: Path) -> None:
    write_blocks(tmp_path, ids(40), 2)
    (broken, *_) = sorted((part_folder(tmp_path, 1) / "shards").glob("*"))
    broken.write_bytes(broken.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match=r"parts/00001/shards/main-000000\.safetensors"):
        merged(tmp_path, ids(40))
    assert len(VectorStore.open(tmp_path / "vectors")) == 0


def test_a_part_folder_that_a_killed_job_left_empty_is_no_part(tmp_path: Path) -> None:
    write_part(tmp_path, 0, ids(10))
    part_folder(tmp_path, 1).mkdir()
    assert [part.path for part in parts_of(tmp_path)] == [part_folder(tmp_path, 0)]
    assert parts_of(tmp_path / "nowhere") == []


def test_a_part_without_pairs_is_a_part(tmp_path: Path) -> None:
    write_part(tmp_path, 0, ids(10))
    write_part(tmp_path, 1, [])
    assert merged(tmp_path, ids(10)).pair_ids == ids(10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the merge to kill runs in a forked child")
def test_a_merge_killed_at_any_line_and_run_again_comes_to_the_same_store(tmp_path: Path) -> None:
    filled(tmp_path / "alone", 45, SHARD)
    write_blocks(tmp_path, ids(45), 3)
    expected, shards_at_kill, line = contents(tmp_path / "alone"), set(), 1
    while _killed(lambda: merged(tmp_path, ids(45)), line):
        shards_at_kill.add(len(list((tmp_path / "vectors" / "shards").glob("*.safetensors"))))
        line += 61  # further into the merge each time
    assert contents(tmp_path / "vectors") == expected
    assert len(shards_at_kill) >= 3


def _killed(work: Callable[[], object], line: int) -> bool:
    """Whether a forked child that does ``work`` was killed at the ``line``-th line of the merge or of writing."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = line
    package = str(Path(merging.__file__).parents[1])

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(package):
            return None
        left -= event == "line"
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def test_a_killed_and_rerun_job_gives_the_same_merged_store(tmp_path: Path) -> None:
    filled(tmp_path / "alone", 60, SHARD)
    write_blocks(tmp_path, ids(60), 2)
    # A kill leaves whole shards and a half-written file.
    second = part_folder(tmp_path, 1) / "shards"
    (second / "main-000002.safetensors").rename(second / "main-000002.safetensors.part")
    mine = [pair for start in (10, 30, 50) for pair in ids(10, start)]
    fill(VectorStore.open(part_folder(tmp_path, 1)), mine, SHARD)
    merged(tmp_path, ids(60))
    assert contents(tmp_path / "vectors") == contents(tmp_path / "alone")


def test_merging_again_changes_nothing(tmp_path: Path) -> None:
    write_blocks(tmp_path, ids(30), 2)
    merged(tmp_path, ids(30))
    before = contents(tmp_path)
    merged(tmp_path, ids(30))
    assert contents(tmp_path) == before


def test_holding_is_told_for_each_pair(tmp_path: Path) -> None:
    store = write_part(tmp_path, 0, ids(5))
    assert store.holds(ids(7)[::-1]).tolist() == [False, False, *[True] * 5]
