"""The prepared check of a device runs whole at toy size, and every field of its report is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.device.fields import Field, NotHereError, report
from tests.benchmarks.device.paper import Card, Paper
from tests.benchmarks.device.shapes import Shelf, Sizes
from tests.benchmarks.device.training import Training
from tests.benchmarks.device.vectors import Vectors
from tests.commands import Commands

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "device_check.py"
SIZES = Sizes(tiny=True, device="cpu")
COSINES = ("pair vectors, least cosine", "contexts, least cosine")


def checked(programs: Commands, folder: Path, *parts: str) -> dict[str, Any]:
    done = programs.run(folder, "python", SCRIPT, "--shapes", "tiny", "--output", "check.json", "--parts", *parts)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads((folder / "check.json").read_text(encoding="utf-8"))
    assert json.loads(done.stdout) == found
    return found


def names(part: str) -> set[str]:
    fields = [*Vectors(SIZES, Shelf(SIZES), {}).fields(), *Training(SIZES).fields()]
    return {field.name for field in fields if field.part == part}


@pytest.mark.slow
def test_every_part_runs_at_toy_size_and_every_path_agrees(tmp_path: Path, commands: Commands) -> None:
    parts = ("peak", "parity", "speed", "memory", "out of memory", "training")
    found = checked(commands, tmp_path, *parts)
    assert {part: set(found[part]) for part in parts} == {part: names(part) for part in parts}
    for architecture in found["parity"].values():
        for path in ("naive", "auto", "fused", "packed", "plain"):
            assert all(architecture["float32"][path][name] > 0.99999 for name in COSINES), architecture
            assert all(architecture["bfloat16"][path][name] > 0.9 for name in COSINES), architecture
    for lengths in found["speed"].values():
        assert lengths["padded, FlashAttention"].keys() == {"skipped"}
        assert all(lengths[way]["pairs/s"] > 0 for way in ("one by one", "padded", "packed", "fused"))
    (little,) = found["out of memory"].values()
    assert little["halvings"] >= 1 and all(little[name] > 0.9999 for name in COSINES)
    (callback,) = found["training"].values()
    assert callback["steps"] > 0 and callback["with / without, median over steps"] > 0


def test_a_field_without_a_value_says_why() -> None:
    def broken() -> None:
        raise ValueError("no such kernel")

    def not_here() -> None:
        raise NotHereError("no such package")

    fields = [
        Field("a", "fine", lambda: 7),
        Field("a", "broken", broken),
        Field("b", "not here", not_here),
        Field("b", "late", lambda: 8, needs=1000),
    ]
    found = report(fields, budget=100, say=lambda _line: None)
    assert found["a"]["fine"] == 7
    assert "ValueError: no such kernel" in found["a"]["broken"]["failed"]
    assert found["b"]["not here"] == {"skipped": "no such package"}
    assert found["b"]["late"]["skipped"].startswith("1000 s needed")


def test_on_paper_less_traffic_and_more_of_both_make_more_pairs() -> None:
    def estimate(card: Card) -> tuple[dict[str, float], dict[str, float]]:
        found = Paper(card, "olmo2-1b", 60).estimate()
        return found["one operation at a time"], found["norms and MLPs compiled"]

    (single, fused), (quick, _) = estimate(Card(1e12, 1e11)), estimate(Card(2e12, 2e11))
    assert fused["bytes a pair"] < single["bytes a pair"] / 2
    assert fused["pairs/s"] > single["pairs/s"] and quick["pairs/s"] > 1.5 * single["pairs/s"]
    assert 0 < single["share of peak"] < fused["share of peak"] < 1
