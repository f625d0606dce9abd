"""Typed columns come out of ``apply`` with the very values that went in, or not at all, and a check says so."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from tests.manifest_cases import manifest_for, write_jsonl
from trl_attribution.errors import DataError, ManifestError
from trl_attribution.pairs import PairReader
from trl_attribution.pairs.rows import open_rows

PAIRS: list[dict[str, Any]] = [
    {"prompt": f"p{number}", "chosen": f"c{number}", "rejected": f"r{number}"} for number in range(2)
]

EXACT: dict[str, tuple[Any, pa.DataType]] = {
    "beyond int64": (2**63 + 5, pa.uint64()),
    "nanoseconds": (pd.Timestamp("2024-05-01 00:00:00.123456789", tz="UTC"), pa.timestamp("ns", tz="UTC")),
    "a short while": (pd.Timedelta(5), pa.duration("ns")),
    "a time of day": (datetime.time(1, 2, 3, 4), pa.time64("us")),
    "a decimal": (Decimal("1.50"), pa.decimal128(3, 2)),
    "a half": (0.0999755859375, pa.float16()),
    "bytes": (b"a\xff", pa.binary()),
    "more than a double": (2**53 + 1, pa.int64()),
}


def first_pair(source: Path) -> list[str]:
    return [pair.pair_id for pair in PairReader(source)][:1]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("output", ["out.parquet", "out"])
def test_a_typed_value_comes_out_exactly(name: str, output: str, tmp_path: Path) -> None:
    value, kind = EXACT[name]
    columns = {column: pa.array([row[column] for row in PAIRS]) for column in PAIRS[0]}
    pq.write_table(pa.table({**columns, "n": pa.array([value, None], kind)}), tmp_path / "in.parquet")
    manifest = manifest_for(tmp_path / "in.parquet", first_pair(tmp_path / "in.parquet"), "flip")
    manifest.apply_file(tmp_path / "in.parquet", tmp_path / output)
    assert [row.values["n"] for row in open_rows(tmp_path / output)] == [value, None]
    assert manifest.check_file(tmp_path / "in.parquet", tmp_path / output).flipped == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [2**53 + 1, 1.5],
            r"row 0, column 'n': 9007199254740993 would become 9007199254740992\.0 in a column of type V",
        ),
        ([2**63 + 5, 1], r"row 0, column 'n': 9223372036854775813 would become 9\.22"),
        (["1", [1.5]], r"row 0, column 'n': '1' would become 1 in a column of type Json"),
        ([{"a": 0.1234567890123}, {"b": 1}], r"row 0, column 'n': {'a': 0\.1234567890123} would become"),
    ],
)
def test_what_a_column_cannot_hold_exactly_is_not_rounded(values: list[Any], message: str, tmp_path: Path) -> None:
    rows = [{**row, "n": value} for row, value in zip(PAIRS, values, strict=True)]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    manifest = manifest_for(source, first_pair(source), "flip")
    with pytest.raises(DataError, match=message):
        manifest.apply_file(source, tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    manifest.apply_file(source, tmp_path / "out.jsonl")
    assert [json.loads(line)["n"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == values


def test_a_result_with_rounded_numbers_is_no_result(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{**PAIRS[0], "n": 2**53 + 1}, {**PAIRS[1], "n": 2.5}])
    manifest = manifest_for(source, first_pair(source), "flip")
    rounded = [{"prompt": "p0", "chosen": "r0", "rejected": "c0", "n": float(2**53)}, {**PAIRS[1], "n": 2.5}]
    pq.write_table(pa.Table.from_pylist(rounded), tmp_path / "out.parquet")
    with pytest.raises(ManifestError, match=r"column 'n' differs .* 9007199254740992\.0 instead of 9007199254740993"):
        manifest.check_file(source, tmp_path / "out.parquet")


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out.parquet"])
def test_dates_stay_the_text_they_were_in_text_files(output: str, tmp_path: Path) -> None:
    rows = [{**row, "when": f"2024-05-0{number + 1}"} for number, row in enumerate(PAIRS)]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    manifest = manifest_for(source, first_pair(source), "flip")
    manifest.apply_file(source, tmp_path / output)
    assert manifest.check_file(source, tmp_path / output).flipped == 1
    found = [row.stored["when"] for row in open_rows(tmp_path / output)]
    assert found == [pd.Timestamp(2024, 5, day) if output == "out.parquet" else f"2024-05-0{day}" for day in (1, 2)]


def test_sources_of_a_class_label_have_its_names_and_stay_its_numbers(tmp_path: Path) -> None:
    features = Features({**dict.fromkeys(PAIRS[0], Value("string")), "source": ClassLabel(names=["lab", "web"])})
    dataset = Dataset.from_list([{**PAIRS[0], "source": 1}, {**PAIRS[1], "source": -1}], features=features)
    assert [pair.source for pair in PairReader(dataset)] == ["web", "unknown"]
    dataset.to_parquet(str(tmp_path / "in.parquet"))
    report = manifest_for(tmp_path / "in.parquet", first_pair(tmp_path / "in.parquet"), "filter").apply_file(
        tmp_path / "in.parquet", tmp_path / "out.parquet"
    )
    assert [change.source for change in report.sources if change.filtered] == ["web"]
    again = open_rows(tmp_path / "out.parquet")
    assert ([row.values["source"] for row in again], again.features) == ([-1], features)
