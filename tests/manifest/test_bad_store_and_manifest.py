"""Broken, foreign and newer stores and manifests are refused with a message that helps, and nothing is written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, Features, List, Value

from tests.manifest_cases import Row, ids_of, manifest_for, simple_rows, swapped, write_jsonl
from tests.store_cases import HIDDEN, contents, fill, filled, ids, settings, vectors
from trl_attribution.errors import AttributionError, DataError, ManifestError, SettingsError, StoreError
from trl_attribution.manifest import Manifest
from trl_attribution.pairs import Reading
from trl_attribution.store import VectorStore
from trl_attribution.utils import atomic

SHARD = "main-000002.safetensors"


def edit(path: Path, change: Callable[[bytearray], Any]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


# ---------------------------------------------------------------------------------------------------------- stores


def test_a_store_made_with_other_settings_is_refused_with_the_difference(tmp_path: Path) -> None:
    filled(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(SettingsError) as refused:
        VectorStore.create(tmp_path, settings(model_fingerprint="m1", layers=(5, 10), max_length=None))
    assert str(tmp_path) in str(refused.value)
    assert "layers: stored [5, 10, 20], asked for [5, 10]" in str(refused.value)
    assert "model_fingerprint: stored 'm0', asked for 'm1'" in str(refused.value)
    assert "max_length: stored 1024, asked for None" in str(refused.value)
    assert "pooling" not in str(refused.value)
    assert contents(tmp_path) == before


def test_a_folder_without_a_store_is_refused_and_stays_without(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no vector store at .*: it has no store\.json\. Run an audit first"):
        VectorStore.open(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "trl-attribution vectors", "format_version": 2}', "format version 2; .* reads up to 1"),
        ('{"format": "something else"}', r"store\.json holds no vectors"),
        ("[]", r"store\.json holds no vectors"),
        ('{"format": "trl-attr', r"cannot read .*store\.json: Unterminated string"),
        (
            '{"format": "trl-attribution vectors", "format_version": 1, "settings": {"layers": [1]}}',
            r"field 'settings\.model_fingerprint'",
        ),
        ('{"format": "trl-attribution vectors", "format_version": 1}', "field 'settings': Field required"),
    ],
)
def test_a_store_json_that_is_newer_foreign_or_broken_is_refused(tmp_path: Path, text: str, message: str) -> None:
    filled(tmp_path)
    (tmp_path / "store.json").write_text(text)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=message):
        VectorStore.open(tmp_path)
    with pytest.raises(StoreError, match=message):
        VectorStore.create(tmp_path, settings())
    assert contents(tmp_path) == before


def test_shards_without_their_store_json_are_not_given_a_new_one(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "store.json").unlink()
    with pytest.raises(StoreError, match=r"holds shards but no store\.json"):
        VectorStore.create(tmp_path, settings())
    assert not (tmp_path / "store.json").exists()


@pytest.mark.parametrize("length", [0, 5, 8, 100, 700, 1000, -1])
def test_a_truncated_shard_is_refused_by_name(tmp_path: Path, length: int) -> None:
    filled(tmp_path)
    shard = tmp_path / "shards" / SHARD
    shard.write_bytes(shard.read_bytes()[:length])
    with pytest.raises(StoreError, match=rf"{SHARD} is truncated or damaged.*Delete that shard and run the audit"):
        VectorStore.open(tmp_path)


def test_a_flipped_bit_in_the_vectors_is_found_by_verify(tmp_path: Path) -> None:
    filled(tmp_path)
    edit(tmp_path / "shards" / SHARD, lambda data: data.__setitem__(-7, data[-7] ^ 4))
    store = VectorStore.open(tmp_path)
    with pytest.raises(StoreError, match=rf"1 of 10 shards do not match their checksum: \S*{SHARD}\. Delete them"):
        store.verify()


def test_a_shard_that_is_gone_is_one_message_of_verify(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (tmp_path / "shards" / SHARD).unlink()
    with pytest.raises(StoreError, match=rf"{SHARD} changed while it was in use.*run the audit again"):
        store.verify()


def test_a_flipped_bit_in_the_ids_is_found_on_opening(tmp_path: Path) -> None:
    filled(tmp_path)
    edit(tmp_path / "shards" / SHARD, lambda data: data.__setitem__(_payload(data) + 3, data[_payload(data) + 3] ^ 1))
    with pytest.raises(StoreError, match=f"{SHARD} is damaged: its pair ids do not match their checksum"):
        VectorStore.open(tmp_path)


def test_any_single_flipped_bit_of_a_header_is_refused_or_found_by_verify(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    shard = tmp_path / "shards" / "main-000000.safetensors"
    whole = shard.read_bytes()
    loose = set()
    for place in range(_payload(whole)):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            VectorStore.open(tmp_path).verify()
        except StoreError:
            continue
        loose.add(place)
    # What may change unseen is what nothing reads: the axis names, written for people.
    axes = whole.index(b'"axes"')
    assert loose <= set(range(axes, whole.index(b'"settings"'))), sorted(loose)


def _payload(data: bytes | bytearray) -> int:
    return 8 + int.from_bytes(data[:8], "little")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"format_version":"1"', b'"format_version":"9"', "format version 9; .* reads up to 1"),
        (b'"trl-attribution shard"', b'"trl-attribution vapor"', "is not a shard of pair vectors"),
        (b'"dtype":"F16"', b'"dtype":"F32"', "does not fit the settings"),
        (b'"__metadata__":{', b'"__metadata__":[', "header is not JSON"),
    ],
)
def test_a_shard_with_another_header_is_refused(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    filled(tmp_path)
    shard = tmp_path / "shards" / SHARD
    assert old in shard.read_bytes()
    shard.write_bytes(shard.read_bytes().replace(old, new, 1))
    with pytest.raises(StoreError, match=message) as refused:
        VectorStore.open(tmp_path)
    assert SHARD in str(refused.value)


def test_a_shard_of_another_run_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "ours", 10)
    filled(tmp_path / "theirs", 20, model_fingerprint="m1")
    copied = tmp_path / "ours" / "shards" / "main-000001.safetensors"
    shutil.copy(tmp_path / "theirs" / "shards" / copied.name, copied)
    with pytest.raises(StoreError, match=r"main-000001\.safetensors was made under other settings"):
        VectorStore.open(tmp_path / "ours")


def test_a_shard_that_was_copied_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 10)
    shards = tmp_path / "shards"
    shutil.copy(shards / "main-000000.safetensors", shards / "main-000001.safetensors")
    with pytest.raises(StoreError, match="holds 10 pairs twice"):
        VectorStore.open(tmp_path)


def test_a_shard_that_vanishes_or_shrinks_while_in_use_is_named(tmp_path: Path) -> None:
    store = filled(tmp_path)
    shard = tmp_path / "shards" / SHARD
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(StoreError, match=f"{SHARD} changed while it was in use"):
        store.layer(5)
    shard.unlink()
    with pytest.raises(StoreError, match=f"{SHARD} changed while it was in use"):
        [block.pair for block in store.view().blocks([5], 10)]


Change = Callable[[torch.Tensor], None]


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (0, lambda v: v[3, 1].fill_(float("nan")), "pair vectors of 1 pair are not finite: {id}. Compute with dtype"),
        (1, lambda v: v[3, 2, :1].fill_(float("-inf")), "context vectors of 1 pair are not finite: {id}"),
        (
            0,
            lambda v: v[3].fill_(7e4),
            "pair vectors of 1 pair are too large for float16: {id}. Store them with vector_",
        ),
        (1, lambda v: v[3].fill_(-7e4), "context vectors of 1 pair are too large for float16: {id}"),
    ],
)
def test_vectors_that_cannot_be_stored_are_refused_by_pair(
    tmp_path: Path, which: int, change: Change, message: str
) -> None:
    store = filled(tmp_path, 10)
    before = contents(tmp_path)
    values = vectors(ids(10, start=10))
    change(values[which])
    with store.writer() as writer, pytest.raises(StoreError, match=re.escape(message.format(id=ids(1, start=13)[0]))):
        writer.add(ids(10, start=10), *values)
    assert contents(tmp_path) == before
    assert len(store) == 10


def test_what_overflows_float16_fits_bfloat16(tmp_path: Path) -> None:
    store = VectorStore.create(tmp_path, settings(vector_dtype="bfloat16"))
    large = torch.full((1, 3, HIDDEN), 7e4)
    with store.writer() as writer:
        writer.add(ids(1), large, large)
    assert torch.equal(store.layer(5), large[:, 0].bfloat16())


@pytest.mark.parametrize(
    ("pair_ids", "shape", "message"),
    [
        (
            ids(2, 200),
            (3, 3, HIDDEN),
            r"pair vectors have shape \(3, 3, 8\), the store takes \[n, L, D\] = \(2, 3, 8\)",
        ),
        (ids(2, 200), (2, 1, HIDDEN), "pair vectors have shape"),
        (ids(2, 200), (2, 3, 9), "pair vectors have shape"),
        ([], (0, 3, HIDDEN), "at least one pair"),
        (ids(1) * 2, (2, 3, HIDDEN), "1 pairs come twice in one shard"),
        (ids(2, start=99), (2, 3, HIDDEN), "1 pairs are in .* already"),
        (["ab" * 15], (1, 3, HIDDEN), "is not a pair id: one has 32 hex digits"),
        (["g" * 32], (1, 3, HIDDEN), "is not a pair id"),
        ([" " + "ab" * 15 + " "], (1, 3, HIDDEN), "is not a pair id"),
        (["AB" * 16], (1, 3, HIDDEN), "is not a pair id"),
    ],
)
def test_a_shard_that_does_not_fit_the_store_is_refused(
    tmp_path: Path, pair_ids: list[str], shape: tuple[int, int, int], message: str
) -> None:
    store = filled(tmp_path)
    before = contents(tmp_path)
    with store.writer() as writer, pytest.raises(StoreError, match=message):
        writer.add(pair_ids, torch.zeros(shape), torch.zeros(shape))
    assert contents(tmp_path) == before


def test_pairs_and_layers_that_are_not_stored_are_named(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(
        StoreError, match=f"lacks 20 of the pairs asked for: {', '.join(ids(10, start=100))} and 10 more"
    ):
        store.select(ids(120))
    with pytest.raises(StoreError, match="holds layers 5, 10, 20, not 7, 8"):
        list(store.view().blocks([5, 7, 8], 10))
    with pytest.raises(StoreError, match="not an empty choice"):
        list(store.view().blocks([], 10))
    with pytest.raises(StoreError, match="holds layers 5, 10, 20, not 0"):
        store.layer(0)
    with pytest.raises(StoreError, match="a writer's name is letters, digits and underscores"):
        store.writer("../evil")


def test_a_path_that_cannot_hold_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"cannot write to .*file/vectors: Not a directory\. Choose another folder"):
        VectorStore.create(tmp_path / "file" / "vectors", settings())
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full, Linux only")
def test_a_full_disk_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "part_of", lambda target: target.with_name(f"{target.name}.part"))
    store = filled(tmp_path, 10)
    before = contents(tmp_path)
    with store.writer() as writer:
        part = tmp_path / "shards" / "main-000001.safetensors.part"
        part.symlink_to("/dev/full")
        with pytest.raises(AttributionError, match=r"cannot write .*main-000001.*: No space left on device"):
            writer.add(ids(10, start=10), *vectors(ids(10, start=10)))
        assert not part.is_symlink()
        assert contents(tmp_path) == before
        assert len(store) == 10
        writer.add(ids(10, start=10), *vectors(ids(10, start=10)))
    fill(VectorStore.open(tmp_path), ids(30))
    assert VectorStore.open(tmp_path).pair_ids == ids(30)


# ------------------------------------------------------------------------------------------------------- manifests


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    rows = simple_rows()
    manifest_for(rows, ids_of(rows)[:3], "flip").save(tmp_path / "flip.jsonl")
    return tmp_path / "flip.jsonl"


def with_line(path: Path, number: int, **changes: Any) -> Path:
    """Change fields of one line; a field set to ``...`` is taken out."""
    lines = path.read_text().splitlines()
    values = {**json.loads(lines[number - 1]), **changes}
    lines[number - 1] = json.dumps({key: value for key, value in values.items() if value is not ...})
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_manifest_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"cannot read the manifest .*nothing\.jsonl: No such file"):
        Manifest.load(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ManifestError, match=r"empty\.jsonl:1: this is no manifest header"):
        Manifest.load(tmp_path / "empty.jsonl")


def test_a_dataset_given_as_a_manifest_is_refused(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", simple_rows())
    with pytest.raises(ManifestError, match=r"data\.jsonl:1: this is no manifest header.*manifest\.flip\.jsonl"):
        Manifest.load(data)


def test_a_manifest_of_a_newer_version_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(ManifestError, match=r"flip\.jsonl:1: the manifest has format version 2; .* to 1\. Install"):
        Manifest.load(with_line(saved, 1, version=2, something_new=True))


@pytest.mark.parametrize(
    ("line", "changes", "message"),
    [
        (1, {"action": "burn"}, r"field 'action': Input should be 'filter', 'flip' or 'mixed' \(it is burn\)"),
        (1, {"dataset_fingerprint": "abc"}, "field 'dataset_fingerprint': String should match"),
        (1, {"rule": ...}, "field 'rule': Field required"),
        (1, {"surprise": 1}, "field 'surprise': Unexpected keyword argument"),
        (1, {"reading": {"chosen": "better"}}, "reading cannot be used: .*'chosen'"),
        (1, {"reading": {"\ue000\x1b[31mchosen": "better"}}, "reading cannot be used: .*chosen"),
        (1, {"reading": {"format": "xml"}}, "reading cannot be used: unknown format 'xml'"),
        (3, {"action": "explode"}, r"field 'action': Input should be 'keep', 'filter' or 'flip' \(it is explode\)"),
        (3, {"action": "filter"}, "action 'filter' in a flip manifest: write one manifest for each action"),
        (3, {"pair_id": "xyz"}, "field 'pair_id': String should match pattern"),
        (3, {"row": -1}, "field 'row': Input should be greater than or equal to 0"),
        (3, {"row": "7"}, "field 'row': Input should be a valid integer"),
        (3, {"score": float("nan")}, "field 'score': Input should be a finite number"),
        (3, {"q_value": 1.5}, "field 'q_value': Input should be less than or equal to 1"),
        (3, {"probe": ...}, "field 'probe': Field required"),
        (3, {"note": "\x1b[31mred"}, "field 'note': Unexpected keyword argument"),
    ],
)
def test_a_faulty_line_of_a_manifest_is_named(saved: Path, line: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message) as refused:
        Manifest.load(with_line(saved, line, **changes))
    assert str(refused.value).startswith(f"{saved}:{line}: ")
    assert str(refused.value).isprintable()


def test_a_line_that_is_no_json_is_named(saved: Path) -> None:
    lines = saved.read_bytes().splitlines(keepends=True)
    for broken in (b'{"pair_id": "0', b"nonsense", b"\xff\xfe", b"[1]"):
        saved.write_bytes(b"".join([*lines[:2], broken + b"\n", *lines[3:]]))
        with pytest.raises(ManifestError, match=r"flip\.jsonl:3: "):
            Manifest.load(saved)


def test_a_second_decision_for_one_pair_is_refused(saved: Path) -> None:
    lines = saved.read_text().splitlines(keepends=True)
    saved.write_text("".join([*lines, "\n", lines[1]]))
    with pytest.raises(ManifestError, match=r"flip\.jsonl:6: a second decision for pair [0-9a-f]{32}"):
        Manifest.load(saved)
    manifest = manifest_for(simple_rows(), [], "flip")
    twice = manifest_for(simple_rows(), ids_of(simple_rows())[:1], "flip").decisions * 2
    with pytest.raises(ManifestError, match="decision 1: a second decision"):
        Manifest(manifest.header, twice)


def test_a_manifest_that_was_cut_at_a_line_is_refused(saved: Path) -> None:
    saved.write_text("".join(saved.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ManifestError, match="has 2 decisions where its header counts 3: lines were lost or added"):
        Manifest.load(saved)


@pytest.mark.parametrize(
    ("change", "undo", "message"),
    [
        (lambda rows: rows[2:], False, "lacks 2 of the 3 pairs that the manifest lists: {ids}. Is it the dataset that"),
        (
            lambda rows: [swapped(rows[0], Reading()), *rows[1:]],
            False,
            "lacks 1 of the 3 pairs .* 1 rows hold listed pairs the other way round: was this manifest applied already",
        ),
        (lambda rows: rows, True, "lacks 3 of the 3 pairs .* 3 rows hold listed pairs that are not flipped"),
        (
            lambda rows: [*(swapped(r, Reading()) for r in rows[:3]), *rows[4:]],
            True,
            "undoing the flips does not give back the dataset that was audited",
        ),
    ],
)
def test_a_manifest_for_another_dataset_is_refused_before_anything_is_written(
    tmp_path: Path, change: Callable[[list[Row]], list[Row]], undo: bool, message: str
) -> None:
    rows = simple_rows()
    manifest = manifest_for(rows, ids_of(rows)[:3], "flip")
    source = write_jsonl(tmp_path / "data.jsonl", change(rows))
    expected = message.format(ids=", ".join(ids_of(rows)[:2]))
    for output in ("out.jsonl", "out.parquet", "out"):
        with pytest.raises(ManifestError, match=expected):
            manifest.apply_file(source, tmp_path / output, undo=undo)
    with pytest.raises(ManifestError, match=expected):
        manifest.apply(change(rows), undo=undo)
    assert [file.name for file in tmp_path.iterdir()] == ["data.jsonl"]


def test_only_the_first_ten_missing_pairs_are_named() -> None:
    rows = simple_rows(30)
    manifest = manifest_for(rows, ids_of(rows)[:25], "filter")
    with pytest.raises(
        ManifestError, match=r"lacks 25 of the 25 .*: ([0-9a-f]{32}, ){9}[0-9a-f]{32} and 15 more\. Is it"
    ):
        manifest.apply(rows[25:])


def test_a_filter_cannot_be_undone() -> None:
    rows = simple_rows()
    with pytest.raises(ManifestError, match="a filter manifest cannot be undone, its rows are gone"):
        manifest_for(rows, ids_of(rows)[:1], "filter").apply(rows, undo=True)


def test_the_output_may_not_overwrite_the_input(tmp_path: Path) -> None:
    rows = simple_rows()
    manifest = manifest_for(rows, ids_of(rows)[:1], "flip")
    folder = tmp_path / "data"
    folder.mkdir()
    source = write_jsonl(folder / "rows.jsonl", rows)
    before = source.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(source)
    for given, output in (
        (source, source),
        (source, folder / ".." / "data" / "rows.jsonl"),
        (source, tmp_path / "link.jsonl"),
        (tmp_path / "link.jsonl", source),
        (folder, folder / "cleaned.jsonl"),
        (source, folder),
    ):
        with pytest.raises(ManifestError, match="would overwrite the input .*: choose another output path"):
            manifest.apply_file(given, output)
    assert source.read_bytes() == before
    assert [file.name for file in folder.iterdir()] == ["rows.jsonl"]


def test_an_output_of_unknown_kind_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    rows = simple_rows()
    source = write_jsonl(tmp_path / "data.jsonl", rows)
    with pytest.raises(DataError, match="unknown output type"):
        manifest_for(rows, [], "flip").apply_file(source, tmp_path / "out.xlsx")
    assert not (tmp_path / "out.xlsx").exists()


@pytest.mark.parametrize("output", ["out.jsonl", "out.jsonl.gz", "out.csv", "out.parquet", "folder"])
def test_an_output_path_under_a_file_is_refused(tmp_path: Path, output: str) -> None:
    rows = simple_rows()
    source = write_jsonl(tmp_path / "data.jsonl", rows)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(AttributionError, match="cannot write .*file"):
        manifest_for(rows, [], "flip").apply_file(source, tmp_path / "file" / output)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.jsonl", "file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full, Linux only")
def test_a_full_disk_leaves_neither_manifest_nor_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "part_of", lambda target: target.with_name(f"{target.name}.part"))
    rows = simple_rows(2000)
    manifest = manifest_for(rows, ids_of(rows)[:1000], "flip")
    source = write_jsonl(tmp_path / "data.jsonl", rows)
    for name, write in (
        ("flip.jsonl", manifest.save),
        ("out.jsonl", lambda path: manifest.apply_file(source, path)),
        ("out.csv.gz", lambda path: manifest.apply_file(source, path)),
    ):
        (tmp_path / f"{name}.part").symlink_to("/dev/full")
        with pytest.raises(AttributionError, match=f"cannot write .*{name}: No space left on device"):
            write(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["data.jsonl"]


def test_columns_of_different_types_cannot_be_exchanged_but_json_lines_can_take_them(tmp_path: Path) -> None:
    message = Features({"role": Value("string"), "content": Value("string")})
    named = Features({**message, "name": Value("string")})
    rows = [
        {
            "prompt": [{"role": "user", "content": "Hi?"}],
            "chosen": [{"role": "assistant", "content": f"Yes {n}.", "name": "a"}],
            "rejected": [{"role": "assistant", "content": f"No {n}."}],
        }
        for n in range(3)
    ]
    features = Features({"prompt": List(message), "chosen": List(named), "rejected": List(message)})
    dataset = Dataset.from_list(rows, features=features)
    dataset.to_parquet(str(tmp_path / "in.parquet"))
    manifest = manifest_for(dataset, ids_of(rows)[:1], "flip")
    with pytest.raises(ManifestError, match="columns 'chosen' and 'rejected' have different types"):
        manifest.apply(dataset)
    with pytest.raises(ManifestError, match=r"in\.parquet: columns .* or convert the dataset to JSONL"):
        manifest.apply_file(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    manifest.apply_file(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [swapped(rows[0], Reading()), *rows[1:]]


def test_several_splits_in_memory_are_refused() -> None:
    rows = simple_rows()
    splits: Any = DatasetDict({"train": Dataset.from_list(rows)})
    with pytest.raises(ManifestError, match="cannot apply a manifest to a DatasetDict in memory. Give one split"):
        manifest_for(rows, [], "flip").apply(splits)


def test_a_dataset_that_changes_between_the_two_readings_is_refused(tmp_path: Path) -> None:
    from trl_attribution.manifest.applying import make_plan, planned_rows

    rows = simple_rows()
    for after in (rows[:-1], [*rows, *rows]):
        source = write_jsonl(tmp_path / "data.jsonl", rows)
        plan = make_plan(manifest_for(rows, [], "flip"), source, Reading())
        write_jsonl(source, after)
        with pytest.raises(ManifestError, match="changed while it was being read"):
            list(planned_rows(plan))
