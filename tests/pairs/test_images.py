"""Pairs with images: what they are known by, what is refused of them, and that manifests pass their bytes on."""

from __future__ import annotations

import datetime
import io
import json
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_from_disk
from datasets import Image as ImageColumn
from PIL import Image

from tests.manifest_cases import manifest_for
from tests.tiny import build_tiny_tokenizer
from tests.vision import image_rows, picture, png, processor
from trl_attribution import pair_id
from trl_attribution.errors import AttributionError, DataError, ModelError, SettingsError
from trl_attribution.gate.check import GateOptions, run_gate
from trl_attribution.gate.policy.file import load_policy
from trl_attribution.pairs import Encoding, PairReader, Reading, RowFault, encode_pairs
from trl_attribution.pairs.unsupported import require_pairs

Row = dict[str, Any]


def files(folder: Path, rows: list[Row]) -> Path:
    """The rows as JSON lines that name their images by paths from there."""
    (folder / "pics").mkdir(parents=True)
    path = folder / "data.jsonl"
    with path.open("w") as out:
        for number, row in enumerate(rows):
            names = [f"pics/{number}-{place}.png" for place in range(len(row["images"]))]
            for name, image in zip(names, row["images"], strict=True):
                image.save(folder / name)
            out.write(json.dumps({**row, "images": names}) + "\n")
    return path


def ids(dataset: Any) -> list[str]:
    return [pair.pair_id for pair in PairReader(dataset)]


def with_image(image: Any) -> Row:
    """A row that has ``image``, whatever that is."""
    return {**image_rows(1)[0], "images": [image]}


def test_a_pair_has_one_id_in_memory_in_columns_of_images_and_beside_its_files(tmp_path: Path) -> None:
    rows = image_rows()
    Dataset.from_list(rows).to_parquet(tmp_path / "data.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    found = [pair_id(row) for row in rows]
    for dataset in (
        rows,
        Dataset.from_list(rows),
        tmp_path / "data.parquet",
        tmp_path / "saved",
        files(tmp_path / "lines", rows),
    ):
        assert ids(dataset) == found


def test_pairs_that_differ_in_the_image_alone_have_different_ids_and_without_one_the_id_of_the_text() -> None:
    rows = image_rows()
    assert len(set(ids(rows))) == len(rows)
    for row in rows:
        bare = {name: value for name, value in row.items() if name != "images"}
        assert (pair_id(row) == pair_id(bare)) is (row["images"] == [])
        assert pair_id({**bare, "images": []}) == pair_id(bare)
    assert pair_id({**rows[1], "images": rows[1]["images"][::-1]}) != pair_id(rows[1])


def test_a_lossless_copy_and_another_mode_are_the_same_image_and_one_pixel_makes_another() -> None:
    gray = picture(1).convert("L")
    written = io.BytesIO()
    gray.save(written, "BMP")
    first = pair_id(with_image(gray))
    assert first == pair_id(with_image({"bytes": written.getvalue(), "path": None}))
    assert first == pair_id(with_image(gray.convert("RGB")))
    gray.putpixel((0, 0), (gray.getpixel((0, 0)) + 1) % 256)
    assert first != pair_id(with_image(gray))


def test_one_image_in_its_own_column_is_a_list_of_one() -> None:
    row = with_image(picture(3))
    assert pair_id({**{name: row[name] for name in row if name != "images"}, "image": picture(3)}) == pair_id(row)


def bomb() -> bytes:
    """A PNG of a few bytes that would be 3.6 billion pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def broken_png() -> bytes:
    return png(1)[:200]


HOSTILE: dict[str, tuple[Any, str]] = {
    "a path out of the folder": ("../secret.png", "lies outside of the dataset's folder"),
    "an absolute path": ("/etc/passwd", "lies outside of the dataset's folder"),
    "a path that is no file": ("pics/none.png", "there is no such file"),
    "a folder": ("pics", "there is no such file"),
    "a URL": ("https://example.invalid/x.png", "nothing is downloaded"),
    "a chained URL": ("zip://x.png::https://example.invalid/x.zip", "nothing is downloaded"),
    "an image within the text": ("data:image/png;base64,AAAA", "nothing is downloaded"),
    "no image": (None, "an image that is missing"),
    "a number": (7, "an image that is a int"),
    "a control sequence": ("pics/\x1b[2J.png", "\\x1b[2J.png"),
    "bytes of something else": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot be read"),
    "bytes that are cut short": (broken_png, "cannot be read"),
    "a decompression bomb": (bomb, "too large to decode"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_ends_in_an_error_that_names_the_row(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_args: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    (tmp_path / "secret.png").write_bytes(png(1))
    image, message = HOSTILE[name]
    image = image() if callable(image) else image
    path = files(tmp_path / "data", image_rows(2))
    if isinstance(image, bytes):
        (path.parent / "pics" / "hostile").write_bytes(image)
        image = "pics/hostile"
    with path.open("a") as out:
        out.write(json.dumps({**image_rows(1)[0], "images": [image if isinstance(image, str | None) else "x"]}) + "\n")
    dataset: Any = path if isinstance(image, str | None) else [*image_rows(1), with_image(image)]
    where = f"{path}:3" if dataset == path else "row 1"
    with pytest.raises(DataError) as error:
        ids(dataset)
    assert f"{where}: column 'images'" in str(error.value)
    assert message in str(error.value)
    reader = PairReader(dataset, Reading(on_bad_row="skip"))
    assert len(list(reader)) == (2 if dataset == path else 1)
    assert [row.reason for row in reader.skipped] == ["bad_image"]


def test_bytes_of_a_hostile_column_are_refused_as_files_are(tmp_path: Path) -> None:
    rows = [with_image({"bytes": bomb(), "path": None}), with_image({"bytes": None, "path": "https://x.invalid/a.png"})]
    features = Dataset.from_list([with_image(picture(1))]).features
    pq.write_table(Dataset.from_list(rows, features=features).data.table, tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"(?s)row 0: column 'images'.*too large.*row 1: column.*nothing is downloaded"):
        ids(tmp_path / "data.parquet")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "both columns": (lambda: [{**with_image(picture(1)), "image": picture(1)}], "in two columns, image and images"),
    "KTO rows": (
        lambda: [{"prompt": "p", "completion": "c", "label": True, "image": picture(1)}],
        "read of preference pairs only, and these are KTO rows",
    ),
    "SFT rows": (
        lambda: [{"messages": image_rows(1)[0]["prompt"] + image_rows(1)[0]["chosen"], "images": [picture(1)]}],
        "read of preference pairs only, and these are SFT rows",
    ),
    "another framework's pairs": (
        lambda: [
            {"conversations": [{"from": "human", "value": "<image>?"}], "chosen": a, "rejected": b, "images": []}
            for a, b in [({"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"})]
        ],
        "this one is sharegpt",
    ),
    "no prompt": (lambda: [{"chosen": "P a", "rejected": "P b", "images": []}], "need a column 'prompt'"),
    "a stream": (lambda: Dataset.from_list(image_rows(2)).to_iterable_dataset(), "cannot be read of a stream"),
    "images that are converted": (
        lambda: Dataset.from_list([{"prompt": "p", "chosen": "a", "rejected": "b", "image": picture(1)}]).cast_column(
            "image", ImageColumn(mode="L")
        ),
        "datasets.Image(mode='L')",
    ),
    "images that a transform changes": (
        lambda: Dataset.from_list(image_rows(1)).with_transform(
            lambda batch: {**batch, "images": [[image.resize((9, 9)) for image in row] for row in batch["images"]]}
        ),
        "of a dataset with a transform",
    ),
    "sounds": (lambda: [{"prompt": "p", "chosen": "a", "rejected": "b", "audio": b""}], "only text and images"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_images_that_trl_or_the_audit_cannot_take_are_refused_by_name(name: str) -> None:
    dataset, message = REFUSED[name]
    with pytest.raises(DataError, match=r"Drop the column") as error:
        PairReader(dataset())
    assert message in str(error.value)


def test_an_image_inside_a_message_or_a_response_is_refused_with_the_place_where_it_belongs() -> None:
    row = image_rows(1, blocks=True)[0]
    row["prompt"][0]["content"][1] = {"type": "image", "image": "x.png"}
    with pytest.raises(RowFault, match="images belong into the column images"):
        pair_id(row)
    answer = {**image_rows(1, blocks=True)[0]}
    answer["chosen"] = [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "This."}]}]
    with pytest.raises(RowFault, match="chosen: message 0: a content block of type 'image'"):
        pair_id(answer)


def test_pairs_are_shown_with_a_word_for_each_image() -> None:
    first, second = next(iter(PairReader(image_rows(2)))), list(PairReader(image_rows(2, blocks=True)))[1]
    assert first.shown[0] == [{"role": "user", "content": "[image] What is in number 0?"}]
    assert second.shown[0] == [{"role": "user", "content": "Look: [image][image]What is in number 1?"}]


def encoded(row: Row, architecture: str = "llava", **encoding: Any) -> Any:
    (found,) = encode_pairs(list(PairReader([row])), processor(architecture), Encoding(**encoding))
    return found


def test_a_row_that_its_processor_cannot_take_is_a_fault_of_that_row() -> None:
    lacking = image_rows(1, blocks=True)[0]
    lacking["prompt"][0]["content"] = [one for one in lacking["prompt"][0]["content"] if one["type"] == "text"]
    assert "does not match number of image placeholders" in encoded(lacking).detail
    plain = {"prompt": "What is it?", "chosen": " A cat.", "rejected": " No.", "images": [picture(1)]}
    assert encoded(plain).reason == "processor_error"
    assert encoded({**plain, "prompt": "<image>What is it?"}).chosen.response_ids
    twice = {**image_rows(1)[0], "prompt": [{"role": "user", "content": "<image>What is it?"}]}
    assert "write no image token of the model there" in encoded(twice).detail
    assert encoded(image_rows(1)[0], max_length=20).reason == "prompt_too_long"


def test_truncation_is_that_of_the_collator() -> None:
    whole, cut = encoded(image_rows(1)[0]), encoded(image_rows(1)[0], max_length=36)
    length = len(whole.chosen.prompt_ids)
    assert length < 36 < length + len(whole.chosen.response_ids)
    assert cut.chosen.prompt_ids == whole.chosen.prompt_ids
    assert cut.chosen.response_ids == whole.chosen.response_ids[: 36 - length]


def test_a_model_of_text_and_a_cut_that_takes_images_off_are_refused() -> None:
    pairs = list(PairReader(image_rows(1)))
    with pytest.raises(ModelError, match="no processor that takes any: it is a model of text"):
        encode_pairs(pairs, build_tiny_tokenizer(), Encoding())
    with pytest.raises(SettingsError, match="keep_start alone"):
        encode_pairs(pairs, processor("llava"), Encoding(truncation_mode="keep_end"))


def test_a_line_that_lacks_what_others_have_is_a_bad_row(tmp_path: Path) -> None:
    path = files(tmp_path / "data", image_rows(2))
    with path.open("a") as out:
        out.write(json.dumps({name: value for name, value in image_rows(1)[0].items() if name != "images"}) + "\n")
    with pytest.raises(DataError, match=r":3: column 'images' is a NoneType, not a list of images"):
        ids(path)


def test_a_place_of_an_image_may_say_more_than_that_it_is_one() -> None:
    row = image_rows(1, blocks=True)[0]
    row["prompt"][0]["content"][1] = {"type": "image", "index": 0, "text": None}
    assert encoded(row).chosen == encoded(image_rows(1, blocks=True)[0]).chosen


def test_a_manifest_passes_the_bytes_of_images_on(tmp_path: Path) -> None:
    rows = image_rows()
    rows[0]["images"] = [{"bytes": png(0) + b"trailing", "path": "of-old.png"}]  # which no decoder would keep
    dataset = Dataset.from_list(rows, features=Dataset.from_list(image_rows()).features)
    dataset.to_parquet(tmp_path / "data.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    listed = [pair_id(rows[place]) for place in (0, 3)]
    flip = manifest_for(tmp_path / "data.parquet", listed, "flip")
    flip.apply_file(tmp_path / "data.parquet", tmp_path / "flipped.parquet")
    before, after = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("data", "flipped"))
    assert [row["images"] for row in before] == [row["images"] for row in after]
    assert [one["chosen"] != other["chosen"] for one, other in zip(before, after, strict=True)] == [
        place in (0, 3) for place in range(6)
    ]
    assert ids(tmp_path / "flipped.parquet")[1] == ids(tmp_path / "data.parquet")[1]
    drop = manifest_for(tmp_path / "saved", listed, "filter")
    drop.apply_file(tmp_path / "saved", tmp_path / "kept")
    kept = load_from_disk(tmp_path / "kept")
    assert kept.features == dataset.features
    assert ids(tmp_path / "kept") == [one for one in ids(rows) if one not in listed]
    assert ids(flip.apply(dataset)) == ids(tmp_path / "flipped.parquet")


def test_lines_with_paths_of_images_are_written_beside_them_only(tmp_path: Path) -> None:
    path = files(tmp_path / "data", image_rows())
    manifest = manifest_for(path, ids(path)[:2], "filter")
    manifest.apply_file(path, path.parent / "kept.jsonl")
    assert (path.parent / "kept.jsonl").read_text().splitlines() == path.read_text().splitlines()[2:]
    named = Dataset.from_list([{**row, "images": []} for row in image_rows(2)]).remove_columns("images")
    named.add_column("images", [["0.png"], []]).save_to_disk(tmp_path / "saved")
    picture(0).save(tmp_path / "saved" / "0.png")
    saved = manifest_for(tmp_path / "saved", ids(tmp_path / "saved")[1:], "filter")
    for one, source, target in (
        (manifest, path, tmp_path / "kept.jsonl"),
        (manifest, path, path.parent / "kept"),  # a folder, which paths go out from
        (saved, tmp_path / "saved", tmp_path / "other"),
    ):
        with pytest.raises(DataError, match="Write a file into "):
            one.apply_file(source, target)
        assert not target.exists()


def test_an_image_known_by_its_path_alone_is_not_copied_into_a_typed_file(tmp_path: Path) -> None:
    dataset = Dataset.from_list(image_rows(3))
    picture(9).save(tmp_path / "own.png")
    rows = [*image_rows(3), with_image({"bytes": None, "path": "own.png"})]
    pq.write_table(Dataset.from_list(rows, features=dataset.features).data.table, tmp_path / "data.parquet")
    manifest = manifest_for(tmp_path / "data.parquet", [pair_id(rows[0])], "filter")
    with pytest.raises(AttributionError, match="stored by its path alone, 'own.png'"):
        manifest.apply_file(tmp_path / "data.parquet", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_the_gate_judges_rows_with_images_and_refuses_to_judge_what_it_cannot(tmp_path: Path) -> None:
    path = files(tmp_path / "data", [*image_rows(2), image_rows(1)[0]])
    policy = tmp_path / "gate.yaml"
    policy.write_text("version: 1\nrules: {hygiene: {duplicates: {limit: 1}}}\n")
    today = datetime.date(2026, 1, 1)
    assert run_gate(load_policy(policy), path, GateOptions(today)).verdict.passed
    with pytest.raises(SettingsError, match="holds images, and the gate judges .* without --base-ref"):
        run_gate(load_policy(policy), path, GateOptions(today, base_ref="main"))
    with pytest.raises(DataError, match="holds images, and compare works on text only"):
        require_pairs(PairReader(path), "compare")


def test_without_pillow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    row = with_image({"bytes": png(1), "path": None})
    for name in [name for name in sys.modules if name == "PIL" or name.startswith("PIL.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match="pip install pillow"):
        pair_id(row)


def test_turned_by_its_exif_data_an_image_is_what_a_trainer_sees(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    written = io.BytesIO()
    picture(5).save(written, "PNG", exif=exif)
    stored = with_image({"bytes": written.getvalue(), "path": None})
    Dataset.from_list([stored], features=Dataset.from_list([with_image(picture(1))]).features).to_parquet(
        tmp_path / "data.parquet"
    )
    (seen,) = Dataset.from_parquet(str(tmp_path / "data.parquet"), cache_dir=str(tmp_path / "cache"))["images"][0]
    assert seen.size == picture(5).size[::-1]
    assert pair_id(with_image(seen)) == pair_id(stored)
