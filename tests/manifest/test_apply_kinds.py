"""Decisions about KTO rows, SFT rows and rollout groups are applied to their rows, and checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from trl_attribution.errors import ManifestError
from trl_attribution.manifest import Decision, Manifest, ManifestHeader
from trl_attribution.manifest.decisions import Action
from trl_attribution.pairs import PairReader, dataset_fingerprint

Rows = list[dict[str, Any]]
KTO: Rows = [
    {"prompt": "a ", "completion": "1", "label": True, "id": 0},
    {"prompt": "b ", "completion": "2", "label": False, "id": 1},
    {"prompt": "a ", "completion": "3", "label": False, "id": 2},
    {"prompt": "c ", "completion": "4", "label": True, "id": 3},
]
ROLLOUTS: Rows = [
    {"step": 1, "prompt": prompt, "completion": text, "score": 1.0 * place, "advantage": place - 0.5, "id": place}
    for prompt in ("a ", "b ", "c ")
    for place, text in enumerate(("x", "y"))
]
SFT: Rows = [{"prompt": "a ", "completion": text, "id": place} for place, text in enumerate("xyz")]


def manifest_of(dataset: Any, listed: Sequence[int], action: Any) -> Manifest:
    """Acts on the examples with these places."""
    reader = PairReader(dataset)
    pairs = list(reader)
    header = ManifestHeader(
        action=action,
        dataset_fingerprint=dataset_fingerprint(pair.pair_id for pair in pairs),
        model_fingerprint="m",
        probe_fingerprints={},
        rule={},
        kind=reader.kind,
        reading=dataclasses.asdict(reader.resolved),
    )
    acting: Action = action
    return Manifest(header, tuple(Decision(pairs[n].pair_id, pairs[n].row, acting, "p", 0.5, 1) for n in listed))


def write(rows: Rows, path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_filtering_drops_all_rows_of_an_example() -> None:
    # Examples come where their last row stands: the row of b, the pair of a, the row of c.
    assert [row["id"] for row in manifest_of(KTO, [1], "filter").apply(KTO)] == [1, 3]
    groups = manifest_of(ROLLOUTS, [0, 2], "filter").apply(ROLLOUTS)
    assert [row["prompt"] for row in groups] == ["b ", "b "]
    assert [row["id"] for row in manifest_of(SFT, [1], "filter").apply(SFT)] == [0, 2]


@pytest.mark.parametrize("values", [(True, False), (1, 0), ("Desirable", "Undesirable")])
def test_flipping_kto_rows_turns_their_labels_and_back(values: tuple[Any, Any]) -> None:
    rows = [{**row, "label": values[0] if row["label"] else values[1]} for row in KTO]
    manifest = manifest_of(rows, [0, 1], "flip")
    turned, report = manifest.apply_with_report(rows)
    assert [row["label"] for row in turned] == [values[1], values[0], values[0], values[0]]
    assert (report.flipped, report.pairs, report.duplicates) == (3, 2, 0)
    assert all(type(one["label"]) is type(row["label"]) for one, row in zip(turned, rows, strict=True))
    assert manifest.apply(turned, undo=True) == rows
    again = Dataset.from_list(rows)
    assert manifest.apply(again).to_list() == turned


def test_flipped_lines_differ_in_the_label_alone(tmp_path: Path) -> None:
    source = tmp_path / "kto.jsonl"
    source.write_text(
        '{"label":true , "prompt": "a ", "completion": "\\u0031"}\n{"prompt": "b ", "completion": "2", "label": true}\n'
    )
    manifest = manifest_of(source, [0], "flip")
    report = manifest.apply_file(source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == source.read_text().replace("true ", "false ", 1)
    assert manifest.check_file(source, tmp_path / "out.jsonl") == report
    with pytest.raises(ManifestError, match=r"column 'label' differs"):
        manifest.check_file(source, source)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_the_advantages_of_filtered_groups_become_zero_where_asked(name: str, tmp_path: Path) -> None:
    source = tmp_path / "rollouts.parquet"
    Dataset.from_list(ROLLOUTS).to_parquet(str(source))
    manifest = manifest_of(source, [1], "filter")
    report = manifest.apply_file(source, tmp_path / name, zero_advantages=True)
    assert (report.rows_out, report.filtered, report.zeroed, report.pairs) == (6, 0, 2, 1)
    found = list(PairReader(tmp_path / name).source)
    assert [row.values["advantage"] for row in found] == [-0.5, 0.5, 0.0, 0.0, -0.5, 0.5]
    assert [row.values["score"] for row in found] == [row["score"] for row in ROLLOUTS]
    assert manifest.check_file(source, tmp_path / name, zero_advantages=True) == report
    # What is left of the group has no contrast, and is no example.
    assert [pair.prompt for pair in PairReader(tmp_path / name)] == ["a ", "c "]


def test_what_a_kind_has_no_place_for_is_refused() -> None:
    with pytest.raises(ManifestError, match="SFT rows cannot be flipped"):
        manifest_of(SFT, [0], "flip").apply(SFT)
    with pytest.raises(ManifestError, match="rollouts cannot be flipped, there is no other side: filter them, or set"):
        manifest_of(ROLLOUTS, [0], "flip").apply(ROLLOUTS)
    with pytest.raises(ManifestError, match="which have no advantages"):
        manifest_of(KTO, [0], "filter").apply(KTO, zero_advantages=True)
    rewards = [{name: value for name, value in row.items() if name != "advantage"} for row in ROLLOUTS]
    with pytest.raises(ManifestError, match="has no column 'advantage'"):
        manifest_of(rewards, [0], "filter").apply(rewards, zero_advantages=True)
    other = manifest_of(SFT, [0], "filter")
    about_rollouts = Manifest(dataclasses.replace(other.header, kind="rollouts"), other.decisions)
    with pytest.raises(ManifestError, match="is read as SFT rows, but the manifest is about rollouts"):
        about_rollouts.apply(SFT)


def test_a_manifest_says_its_kind_and_one_of_pairs_is_as_before(tmp_path: Path) -> None:
    manifest_of(KTO, [0], "filter").save(tmp_path / "kto.jsonl")
    assert Manifest.load(tmp_path / "kto.jsonl").header.kind == "kto"
    pairs = [{"prompt": "a ", "chosen": "1", "rejected": "2"}]
    manifest_of(pairs, [0], "filter").save(tmp_path / "pairs.jsonl")
    header = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])
    assert "kind" not in header
    assert Manifest.load(tmp_path / "pairs.jsonl").header.kind == "pair"
