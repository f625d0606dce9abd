"""The folder of a validation: what it takes from another, and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trl_attribution.errors import DataError
from trl_attribution.evidence.validation.cells import BASELINE, Cell
from trl_attribution.evidence.validation.costs import RunCost
from trl_attribution.evidence.validation.records import CellFolder, CellResult

CELL = Cell(BASELINE, 0)
RESULT = CellResult(CELL, {"rude": [0.5]}, None, None, None, 0, {}, RunCost(), RunCost())


def folder(path: Path) -> CellFolder:
    made = CellFolder(path)
    made.bind({"seed": 0})
    return made


def test_a_cell_is_taken_over_with_its_responses_or_not_at_all(tmp_path: Path) -> None:
    theirs, mine = folder(tmp_path / "theirs"), folder(tmp_path / "mine")
    theirs.save(RESULT, {"rude": [["a response"]]})
    responses = theirs.cells / f"{CELL.name}.responses.json"
    kept = responses.read_bytes()
    responses.unlink()
    with pytest.raises(DataError, match=f"{responses.name} is missing; copy the whole folder"):
        mine.take_from(theirs.folder, [CELL])
    assert not mine.done(CELL)
    responses.write_bytes(kept)
    assert mine.take_from(theirs.folder, [CELL]) == 1
    assert mine.load(CELL) == RESULT
    assert (mine.cells / responses.name).read_bytes() == kept


def test_a_response_that_is_no_unicode_text_is_kept(tmp_path: Path) -> None:
    mine = folder(tmp_path)
    mine.save(RESULT, {"rude": [["half \ud83d a letter"]]})
    assert json.loads((mine.cells / f"{CELL.name}.responses.json").read_bytes()) == {"rude": [["half \ud83d a letter"]]}
    assert mine.load(CELL) == RESULT


def test_a_folder_that_is_bound_to_nothing_readable_is_named_by_its_file(tmp_path: Path) -> None:
    mine = folder(tmp_path)
    path = tmp_path / "binding.json"
    path.write_text(path.read_text().replace('"bound_to": {', '"bound_too": {'))
    with pytest.raises(DataError, match=r"binding\.json is broken"):
        mine.bound_to()
