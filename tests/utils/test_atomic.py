"""Folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from trl_attribution.errors import AttributionError
from trl_attribution.utils.atomic import atomic_folder


def test_a_folder_appears_whole_without_what_a_killed_run_left(tmp_path: Path) -> None:
    target = tmp_path / "new" / "data"
    (tmp_path / "new" / "data.part").mkdir(parents=True)
    (tmp_path / "new" / "data.part" / "old").write_text("half")
    with atomic_folder(target) as part:
        (part / "sub").mkdir()
        (part / "sub" / "file").write_text("whole")
        assert not target.exists()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "new",
        "new/data",
        "new/data/sub",
        "new/data/sub/file",
    ]


def test_a_folder_whose_writing_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_folder(tmp_path / "data") as part:
            (part / "file").write_text("half")
            raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="broke"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("kept")
    with (
        pytest.raises(AttributionError, match=r"cannot write .*data: Directory not empty"),
        atomic_folder(tmp_path / "data") as part,
    ):
        (part / "file").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "mine"]
