"""Reading and writing rows: every format gives the same rows, with their place, and takes them back unchanged."""

from __future__ import annotations

import datetime
import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trl_attribution.errors import AttributionError, DataError
from trl_attribution.pairs.rows import Row, open_rows, write_rows

ROWS: list[dict[str, Any]] = [
    {"prompt": "Hi\r\n", "chosen": 'a, "quoted"', "rejected": "line\nbreak", "n": "1"},
    {"prompt": "", "chosen": "naïve 🙂", "rejected": "\r", "n": "2"},
    {"prompt": "2020-01-01", "chosen": "2020-01-01T00:00:00Z", "rejected": "null", "n": "003"},
]
NAMES = ["data.jsonl", "data.jsonl.gz", "data.csv", "data.csv.gz", "data.parquet", "saved"]


def values(dataset: Any, split: str | None = None) -> list[dict[str, Any]]:
    return [row.values for row in open_rows(dataset, split)]


def stored(path: Path) -> list[dict[str, Any]]:
    return [row.stored for row in open_rows(path)]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    assert write_rows(ROWS, tmp_path / name) == len(ROWS)
    assert stored(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_the_output_is_left_behind(name: str, tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_a_source_can_be_iterated_again_from_the_start(name: str, tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path / name)
    source = open_rows(tmp_path / name)
    next(iter(source))
    assert list(source) == list(source)
    assert [row.index for row in source] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "kind", "location", "count"),
    [
        ("data.jsonl", "jsonl", "{}:3", None),
        ("data.jsonl.gz", "jsonl", "{}:3", None),
        ("data.parquet", "parquet", "{} row 2", 3),
        ("saved", "save_to_disk", "{} row 2", 3),
    ],
)
def test_every_row_knows_where_it_stands(
    name: str, kind: str, location: str, count: int | None, tmp_path: Path
) -> None:
    path = tmp_path / name
    write_rows(ROWS, path)
    source = open_rows(path)
    assert (source.kind, source.num_rows) == (kind, count)
    assert [row.location for row in source][2] == location.format(path)


def test_a_csv_row_with_line_breaks_stands_where_it_starts(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b'\xef\xbb\xbfchosen,rejected\n"one\ntwo\nthree",x\na,b\n')
    assert [row.location for row in open_rows(path)] == [f"{path}:2", f"{path}:5"]
    assert values(path)[0] == {"chosen": "one\ntwo\nthree", "rejected": "x"}


def test_blank_lines_and_a_byte_order_mark_are_passed_over_but_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": 2}')
    assert [(row.index, row.location, row.values) for row in open_rows(path)] == [
        (0, f"{path}:1", {"a": 1}),
        (1, f"{path}:4", {"a": 2}),
    ]


def test_untouched_json_lines_are_written_back_byte_for_byte(tmp_path: Path) -> None:
    path, output = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    lines = [b'{"b":1,   "a": "\\u00e9"}\n', b'{"a": 1.0e3}\r\n', b'  {"a": "last, no newline"}']
    path.write_bytes(b"".join(lines))
    write_rows(open_rows(path), output)
    assert output.read_bytes() == path.read_bytes()
    write_rows((row for row in reversed(list(open_rows(path)))), output)
    assert output.read_bytes() == lines[2] + b"\n" + lines[1] + lines[0]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_untouched_csv_lines_are_written_back_byte_for_byte(tmp_path: Path, ending: bytes) -> None:
    path, output = tmp_path / "data.csv", tmp_path / "out.csv"
    header, *lines = [b'\xef\xbb\xbf"a",b', b'"x",1', b'"line\nbreak","2"', b"y, 3"]
    path.write_bytes(ending.join([header, *lines]))
    source = open_rows(path)
    write_rows(source, output, like=source)
    assert output.read_bytes() == path.read_bytes()
    changed = ({"a": "n\rew", "b": "2"} if row.index == 1 else row for row in reversed(list(source)))
    write_rows(changed, output, like=source)
    assert output.read_bytes() == ending.join([header, lines[2], b'"n\rew",2', lines[0]]) + ending
    write_rows(source, tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()] == stored(path)
    write_rows([], output, like=source)
    assert output.read_bytes() == header + ending


def test_rows_of_several_csv_files_are_brought_under_one_header(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.csv").write_bytes(b"a,b\n1,2\n")
    (tmp_path / "in" / "2.csv").write_bytes(b"b,a\n3,4\n")
    source = open_rows(tmp_path / "in")
    write_rows(source, tmp_path / "out.csv", like=source)
    assert stored(tmp_path / "out.csv") == [{"a": "1", "b": "2"}, {"a": "4", "b": "3"}]


def test_a_file_can_be_replaced_by_rows_read_from_it(tmp_path: Path) -> None:
    for name in ("data.jsonl", "data.csv", "data.parquet"):
        write_rows(ROWS, tmp_path / name)
        source = open_rows(tmp_path / name)
        write_rows((row for row in source if row.index != 1), tmp_path / name, like=source)
        assert stored(tmp_path / name) == [ROWS[0], ROWS[2]]


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.parquet", "data.csv.gz"])
def test_the_same_rows_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_rows(ROWS, tmp_path / folder / name)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_failure_half_way_leaves_the_old_file_alone(name: str, tmp_path: Path) -> None:
    def failing() -> Iterator[dict[str, Any]]:
        yield ROWS[0]
        raise RuntimeError("the source broke")

    target = tmp_path / name
    if target.suffix:
        write_rows(ROWS[:1], target)
    with pytest.raises(RuntimeError, match="the source broke"):
        write_rows(failing(), target)
    assert [path.name for path in tmp_path.iterdir()] == ([name] if target.suffix else [])
    assert not target.suffix or stored(target) == ROWS[:1]


def test_messages_with_different_keys_are_not_filled_up_with_none(tmp_path: Path) -> None:
    rows = [
        {"chosen": [{"role": "assistant", "tool_calls": [{"arguments": {"x": 1}}]}], "tools": [{"p": {"x": {}}}]},
        {"chosen": [{"role": "assistant", "content": "no"}], "tools": [{"p": {"y": {"type": "int"}}}]},
    ]
    for name in ("data.jsonl", "data.parquet", "saved"):
        write_rows(rows, tmp_path / name)
        assert values(tmp_path / name) == rows


def test_column_types_are_kept_from_input_to_output(tmp_path: Path) -> None:
    features = Features({"chosen": Value("large_string"), "when": Value("date32"), "n": Value("int8")})
    rows = {"chosen": ["a", "b"], "when": [datetime.date(2020, 1, 2), None], "n": [1, 2]}
    source = open_rows(Dataset.from_dict(rows, features=features))
    for name in ("data.parquet", "saved"):
        write_rows(source, tmp_path / name, like=source)
        again = open_rows(tmp_path / name)
        assert again.features == features
        assert [row.values for row in again] == [row.values for row in source]


def test_what_the_column_types_of_the_input_have_no_place_for_is_refused_not_dropped(tmp_path: Path) -> None:
    call, plain = {"role": "assistant", "tool_calls": [{"name": "f"}]}, {"role": "assistant", "content": "no"}
    source = open_rows(Dataset.from_list([{"chosen": [call], "rejected": [plain]}]))
    with pytest.raises(DataError, match="no place for content"):
        write_rows([{"chosen": [plain], "rejected": [call]}], tmp_path / "data.parquet", like=source)


def test_a_folder_is_its_files_in_sorted_order(tmp_path: Path) -> None:
    for number, name in enumerate(["b.jsonl", "a.jsonl.gz", "sub/c.jsonl"]):
        write_rows([{"n": number}], tmp_path / name)
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("broken")
    source = open_rows(tmp_path)
    assert source.kind == "folder"
    assert [(row.index, row.values["n"]) for row in source] == [(0, 1), (1, 0), (2, 2)]
    assert next(iter(source)).location == f"{tmp_path}/a.jsonl.gz:1"


def test_a_folder_with_splits_in_its_file_names_is_read_by_split(tmp_path: Path) -> None:
    for number, name in enumerate(
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"]
    ):
        write_rows([{"n": number}], tmp_path / name)
    assert values(tmp_path, "train") == [{"n": 0}, {"n": 1}]
    assert values(tmp_path, "test") == [{"n": 2}]
    assert open_rows(tmp_path, "train").num_rows == 2
    with pytest.raises(DataError, match=r"several splits \(train, test\)"):
        open_rows(tmp_path)


def test_dataset_dicts_are_read_by_split_on_disk_and_in_memory(tmp_path: Path) -> None:
    splits = DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])})
    splits.save_to_disk(str(tmp_path / "saved"))
    for dataset in (splits, tmp_path / "saved"):
        assert values(dataset, "train") == ROWS
        assert values(dataset, "test") == ROWS[:1]
    assert values(DatasetDict({"only": Dataset.from_list(ROWS)})) == ROWS


def test_rows_in_memory_come_as_they_are_whatever_the_dataset_format() -> None:
    dataset = Dataset.from_list([{"a": [1, 2], "b": "x"}] * 1500).with_format("torch")
    rows = list(open_rows(dataset))
    assert len(rows) == 1500
    assert rows[1200] == Row(1200, "row 1200", {"a": [1, 2], "b": "x"})
    assert values([{"a": 1}]) == [{"a": 1}]


def test_a_source_opened_before_is_taken_as_it_is() -> None:
    source = open_rows(ROWS)
    assert open_rows(source) is source


def test_a_plain_parquet_file_written_without_datasets_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"chosen": [{"role": "user", "content": "x"}], "n": number} for number in range(2500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    assert values(tmp_path / "data.parquet") == rows


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data.csv"])
def test_reading_takes_the_same_memory_for_many_rows_as_for_few(name: str, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        write_rows(
            ({"chosen": f"{number:05d}" + "x" * (200 if "csv" in name else 20_000)} for number in range(count)),
            tmp_path / name,
        )
        tracemalloc.start()
        try:
            assert sum(1 for _ in open_rows(tmp_path / name)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # the first call of a process also imports: up to 20 MB
    # datasets reads 10 MB, or 10,000 rows of CSV, at a time.
    size = 10_000 if "csv" in name else 1000
    assert peak(4 * size) < 1.2 * peak(2 * size)


def test_an_empty_output_is_an_empty_dataset_of_the_same_columns(tmp_path: Path) -> None:
    source = open_rows(Dataset.from_list(ROWS))
    for name in ("data.parquet", "saved", "data.csv"):
        assert write_rows([], tmp_path / name, like=source) == 0
        again = open_rows(tmp_path / name)
        assert (list(again), again.columns) == ([], list(ROWS[0]))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: write_rows(ROWS, path / "data.xlsx"),
            r"data.xlsx: unknown output type '.xlsx'. Supported: .jsonl",
        ),
        (lambda path: write_rows(ROWS, path), r"the folder exists already. Choose another output path"),
        (lambda path: write_rows([{"a": [1]}], path / "a.csv"), r"row 0, column 'a' holds a list.*choose .jsonl"),
        (
            lambda path: write_rows([{"a": "1"}, {"b": "2"}], path / "a.csv"),
            r"row 1 has columns that row 0 lacks: \['b'\]",
        ),
        (lambda path: write_rows([{"a": "\ud800"}], path / "a.csv"), r"row 0 holds the lone surrogate .ud800"),
        (lambda path: write_rows([{"a": {1, 2}}], path / "a.jsonl"), r"row 0 cannot be written as JSON"),
        (
            lambda path: write_rows([{"a": {1, 2}}], path / "a.parquet"),
            r"row 0 cannot be written as JSON .* Write it as text",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_nothing_written(
    write: Callable[[Path], int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["data.parquet", "saved"])
def test_an_output_below_a_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(AttributionError, match="cannot write"):
        write_rows(ROWS, tmp_path / "file" / name)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.text(max_size=8)
    | st.sampled_from(["2020-01-01", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({"x": JSON, "y": st.text()}), min_size=1, max_size=4))
def test_json_of_any_shape_is_read_as_load_dataset_reads_it_and_written_exactly_or_not_at_all(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    path = folder / "data.jsonl"
    write_rows(rows, path)
    assert stored(path) == rows
    try:
        loaded = load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "cache"))
    except DatasetGenerationError:
        with pytest.raises(DataError, match="datasets cannot load this file"):
            values(path)
        return
    assert values(path) == list(loaded)
    try:
        write_rows(open_rows(path), folder / "data.parquet", like=open_rows(path))
    except DataError as error:
        assert "would become" in str(error)  # noqa: PT017  # either is right
    else:
        assert values(folder / "data.parquet") == values(path)


def test_a_gzip_file_is_recognized_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    assert values(path) == ROWS[:1]


def test_a_stream_that_makes_its_objects_anew_gives_the_same_rows() -> None:
    shades: Iterator[int] = iter(())
    made: list[Any] = []  # alive, so that none is made where an earlier one was

    def with_objects(row: dict[str, Any]) -> dict[str, Any]:
        made.append(np.array([f"of {row['prompt']}", {"a": object()}], dtype=object))
        drawn = Image.new("L", (9, 9), next(shades))
        return {**row, "drawn": drawn, "kept": np.arange(2000), "other": object(), "words": made[-1]}

    stream = open_rows(Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}]).to_iterable_dataset().map(with_objects))
    for colors in ((1, 2), (1, 2)):
        shades = iter(colors)
        assert [row.values["prompt"] for row in stream] == ["a", "b"]
    shades = iter((1, 3))
    with pytest.raises(DataError, match="gave other rows when it was read again"):
        list(stream)
