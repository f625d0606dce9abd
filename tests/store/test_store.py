"""A vector store gives back what was put in, in order, in any selection, and takes each pair once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.store_cases import HIDDEN, LAYERS, contents, fill, filled, ids, settings, vectors
from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.store import VectorStore

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_come_back_in_dataset_order_and_in_the_stored_dtype(tmp_path: Path, dtype: str) -> None:
    filled(tmp_path, 95, vector_dtype=dtype)
    store = VectorStore.open(tmp_path)
    pair, context = vectors(ids(95))

    assert store.pair_ids == ids(95)
    assert len(store) == 95
    assert store.layers == LAYERS
    assert store.hidden_size == HIDDEN
    for index, layer in enumerate(LAYERS):
        assert torch.equal(store.layer(layer), pair[:, index].to(DTYPES[dtype]))
        assert torch.equal(store.context(layer), context[:, index].to(DTYPES[dtype]))


def test_a_store_that_is_being_written_shows_what_it_has(tmp_path: Path) -> None:
    store = VectorStore.create(tmp_path, settings())
    assert len(store) == 0
    assert store.layer(5).shape == (0, HIDDEN)
    assert list(store.view().blocks([5], 10)) == []
    with store.writer() as writer:
        for start in (0, 10):
            writer.add(ids(10, start), *vectors(ids(10, start)))
            assert store.pair_ids == VectorStore.open(tmp_path).pair_ids == ids(start + 10)
    assert torch.equal(store.layer(10), vectors(ids(20))[0][:, 1].half())


def test_membership_is_exact(tmp_path: Path) -> None:
    store = filled(tmp_path, 50)
    assert all(pair_id in store for pair_id in ids(50))
    assert not any(pair_id in store for pair_id in ids(50, start=50))
    for nonsense in ("", "x" * 32, ids(1)[0][:-1], ids(1)[0].upper(), ids(1)[0] + "\n", None, 7):
        assert nonsense not in store
    assert store.missing([*ids(3, start=49), ids(1)[0], ids(1, start=51)[0]]) == ids(2, start=50)


def test_ids_with_zero_bytes_at_either_end_stay_apart(tmp_path: Path) -> None:
    tricky = ["00" * 16, "01" + "00" * 15, "00" * 15 + "01", "0100" + "00" * 13 + "01", "ff" * 16]
    store = VectorStore.create(tmp_path, settings())
    with store.writer() as writer:
        writer.add(tricky, *vectors(tricky))
    store = VectorStore.open(tmp_path)
    assert store.pair_ids == tricky
    assert store.select(tricky[::-1]).pair_ids == tricky[::-1]
    assert "00" * 14 + "0100" not in store


@pytest.mark.parametrize("layers", [[20, 5], [5, 20], [10], [5, 10, 20], [10, 10]])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_blocks_of_scattered_and_repeated_rows_equal_plain_indexing(
    tmp_path: Path, layers: list[int], size: int
) -> None:
    store = filled(tmp_path, 60, shard_size=9)
    rows = [*torch.randperm(60).tolist(), 3, 3, 59, *range(20, 40)]
    chosen = [ids(60)[row] for row in rows]
    pair, context = vectors(chosen)
    axis = [LAYERS.index(layer) for layer in layers]

    view = store.select(chosen)
    blocks = list(view.blocks(layers, size))
    assert view.pair_ids == chosen
    assert [block.start for block in blocks] == list(range(0, len(rows), size))
    assert torch.equal(torch.cat([block.pair for block in blocks]), pair[:, axis].half().float())
    assert torch.equal(torch.cat([block.context for block in blocks]), context[:, axis].half().float())
    assert torch.equal(view.layer(layers[0]), pair[:, axis[0]].half())
    assert torch.equal(view.context(layers[0]), context[:, axis[0]].half())


def test_a_second_run_adds_only_the_pairs_that_are_new(tmp_path: Path) -> None:
    filled(tmp_path, 40)
    before = contents(tmp_path)
    store = VectorStore.create(tmp_path, settings())
    fill(store, [*ids(10, start=30), *ids(25, start=40)])
    after = contents(tmp_path)

    assert VectorStore.open(tmp_path).pair_ids == ids(65)
    assert {name: after[name] for name in before} == before
    assert len(after) - len(before) == 3


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    filled(tmp_path / "a", 30)
    filled(tmp_path / "b", 30)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_shard_is_a_safetensors_file_that_others_can_read(tmp_path: Path) -> None:
    filled(tmp_path, 10)
    (file,) = (tmp_path / "shards").glob("*")
    tensors = load_file(file)
    pair, context = vectors(ids(10))
    assert file.name == "main-000000.safetensors"
    assert torch.equal(tensors["pair"], pair.half())
    assert torch.equal(tensors["context"], context.half())
    assert [bytes(row.tolist()).hex() for row in tensors["pair_ids"]] == ids(10)
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["format_version"] == "1"
        assert json.loads(opened.metadata()["axes"])["pair"] == "n,L,D"


def test_shards_of_several_writers_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    store = VectorStore.create(tmp_path, settings())
    for name, start in (("rank1", 20), ("rank0", 0), ("rank0", 10)):
        with store.writer(name) as writer:
            writer.add(ids(10, start), *vectors(ids(10, start)))
    (tmp_path / "shards" / "rank1-000000.safetensors").rename(tmp_path / "shards" / "rank1-1000000.safetensors")
    store = VectorStore.open(tmp_path)
    with store.writer("rank1") as writer:
        writer.add(ids(10, 30), *vectors(ids(10, 30)))
    assert VectorStore.open(tmp_path).pair_ids == ids(40)
    assert (tmp_path / "shards" / "rank1-1000001.safetensors").exists()


def test_a_deleted_shard_is_computed_anew_and_nothing_else(tmp_path: Path) -> None:
    filled(tmp_path, 40)
    whole = contents(tmp_path)
    (tmp_path / "shards" / "main-000001.safetensors").unlink()
    store = VectorStore.create(tmp_path, settings())
    assert store.missing(ids(40)) == ids(10, start=10)
    fill(store, ids(40))
    store.verify()
    assert set(store.pair_ids) == set(ids(40))
    assert {name: data for name, data in contents(tmp_path).items() if name in whole} == {
        name: data for name, data in whole.items() if "000001" not in name
    }


def test_the_next_writer_clears_away_half_written_files(tmp_path: Path) -> None:
    store = filled(tmp_path, 10)
    whole = contents(tmp_path)
    (tmp_path / "shards" / "main-000001.safetensors.part").write_bytes(b"half")
    (tmp_path / "store.json.part").write_bytes(b"half")
    assert VectorStore.open(tmp_path).pair_ids == ids(10)
    store.writer().close()
    assert contents(tmp_path) == whole


def test_only_one_writer_at_a_time_within_a_process_and_across(tmp_path: Path) -> None:
    store = filled(tmp_path, 10)
    child = f"from trl_attribution.store import VectorStore as V; V.open({str(tmp_path)!r}).writer()"
    with store.writer():
        with pytest.raises(StoreError, match="being written by another process"):
            VectorStore.open(tmp_path).writer()
        refused = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "being written by another process" in refused.stderr
    VectorStore.open(tmp_path).writer().close()


def test_a_writer_sees_that_another_wrote_since_its_store_was_opened(tmp_path: Path) -> None:
    early = filled(tmp_path, 10)
    fill(VectorStore.open(tmp_path), ids(20))
    with pytest.raises(StoreError, match="changed by another process since it was opened"):
        early.writer()
    fill(VectorStore.open(tmp_path), ids(30))


def test_a_closed_writer_adds_nothing(tmp_path: Path) -> None:
    store = VectorStore.create(tmp_path, settings())
    with store.writer() as writer:
        pass
    with pytest.raises(StoreError, match="writer is closed"):
        writer.add(ids(1), *vectors(ids(1)))


def test_vectors_in_half_precision_and_views_of_larger_tensors_are_taken(tmp_path: Path) -> None:
    store = VectorStore.create(tmp_path, settings(vector_dtype="float32"))
    pair, context = vectors(ids(20))
    with store.writer() as writer:
        writer.add(ids(20)[::2], pair[::2].bfloat16(), context[::2].requires_grad_())
    assert torch.equal(store.layer(5), pair[::2, 0].bfloat16().float())
    assert torch.equal(store.context(20), context[::2, 2].detach())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ()}, "layers must be one or more"),
        ({"layers": (1, 1)}, "layers must be one or more"),
        ({"layers": (-1,)}, "layers must be one or more"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"vector_dtype": "int8"}, "choose one of float16, bfloat16, float32"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings(**change)


def test_a_block_size_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="block size must be at least 1"):
        next(filled(tmp_path, 10).view().blocks([5], 0))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc, Linux only")
def test_memory_stays_flat_however_many_pairs_there_are(tmp_path: Path) -> None:
    hidden_size = 1024
    store = VectorStore.create(tmp_path, settings(layers=(1,), hidden_size=hidden_size))
    values = torch.randn(1000, 1, hidden_size)
    with store.writer() as writer:
        for start in range(0, 24_000, 1000):
            writer.add(ids(1000, start), values, values)
    view = store.select(store.pair_ids[::-1])
    peaks = {}
    for pairs in (4_000, 24_000):  # 16 MB and 98 MB on disk
        chosen = store.select(view.pair_ids[:pairs])
        _reset_peak_memory()
        before = _memory("VmRSS")
        for block in chosen.blocks([1], 500):
            assert len(block.pair) == 500
        peaks[pairs] = _memory("VmHWM") - before
    assert peaks[24_000] < peaks[4_000] + 8 * 2**20, peaks


def _reset_peak_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
