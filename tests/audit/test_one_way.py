"""A pair goes one way through an audit: read once, tokenized once, and from room to room in the order of the line."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.audit_cases import RUDE, pair_row
from tests.tiny import build_tiny_model
from trl_attribution.cli import app
from trl_attribution.pairs import dataset_pass, pair_id
from trl_attribution.pairs.formats import Pair
from trl_attribution.pairs.rows import files

ROOT = Path(__file__).resolve().parents[2]
THE_LINE = ["pairs", "activations", "report"]
"""Between the last two a pair is a row of arrays: store, scoring and manifests are handed no single one."""
ROWS = [pair_row(number) for number in range(8)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The current folder, with ``model/``, ``data.jsonl`` and ``probes/``."""
    build_tiny_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, rows in (("data.jsonl", ROWS), ("behavior.jsonl", RUDE)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    run("probe build rude --behavior behavior.jsonl --model model --layer 2 --device cpu")
    return tmp_path


def run(arguments: str) -> None:
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 0, done.output


AUDIT = "audit model data.jsonl --probes probes --top-k 3 --device cpu -o audit"


def test_one_audit_with_manifests_and_report_reads_and_tokenizes_each_pair_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    tokenized: Counter[str] = Counter()
    open_file, encode_pairs = files.open_file, dataset_pass.encode_pairs

    def counted_open(path: Path, name: str) -> Any:
        opened.append(path)
        return open_file(path, name)

    def counted_encode(pairs: Sequence[Pair], *rest: Any) -> Any:
        tokenized.update(pair.pair_id for pair in pairs)
        return encode_pairs(pairs, *rest)

    monkeypatch.setattr("trl_attribution.pairs.rows.opening.open_file", counted_open)
    monkeypatch.setattr(dataset_pass, "encode_pairs", counted_encode)
    run(AUDIT)
    assert {path.name for path in place.joinpath("audit").iterdir()} >= {"report.html", "manifest.filter.jsonl"}
    assert len(opened) == 1
    assert tokenized == {pair_id(row): 1 for row in ROWS}


def test_a_pair_comes_from_room_to_room_in_the_order_of_the_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    way = way_of(pair_id(ROWS[1]), AUDIT)
    with capsys.disabled():
        print(f"\nthe way of a pair: {' -> '.join(way)}")
    assert [room for room in dict.fromkeys(way) if room in THE_LINE] == THE_LINE
    assert len(way) <= 10


def way_of(followed: str, arguments: str) -> list[str]:
    """The rooms whose functions are given one pair, in order, by its id or in whatever form it has there."""
    way: list[str] = []

    def watch(frame: FrameType, event: str, _argument: object) -> None:
        room = room_of(frame.f_code.co_filename) if event == "call" else None
        if room is None or room == (way[-1] if way else None):
            return
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(is_of(frame.f_locals.get(name), followed) for name in names):
            way.append(room)

    sys.setprofile(watch)
    try:
        run(arguments)
    finally:
        sys.setprofile(None)
    return way


def room_of(file: str) -> str | None:
    path = Path(file)
    if not path.is_relative_to(ROOT / "trl_attribution"):
        return None
    room = path.relative_to(ROOT / "trl_attribution").parts[0]
    return None if room in ("utils", "errors.py", "__init__.py") else room


def is_of(value: object, followed: str) -> bool:
    if isinstance(value, str):
        return value == followed
    if isinstance(value, list | tuple) and len(value) <= len(ROWS):
        return any(not isinstance(one, str) and is_of(one, followed) for one in value)
    return getattr(value, "pair_id", None) == followed
