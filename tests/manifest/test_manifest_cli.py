"""The manifest and apply commands as a user meets them: tables, JSON, exit codes, one message for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.manifest_cases import ids_of, manifest_for, read_back, simple_rows, swapped, write_jsonl
from trl_attribution.manifest import Manifest, ReviewDecision, ReviewDecisions
from trl_attribution.pairs import Reading

# Many commands in one process: starting one takes longer than all that they do.
RUNNER = """
import json, sys
from typer.testing import CliRunner
from trl_attribution.cli import app
for line in json.load(sys.stdin):
    done = CliRunner().invoke(app, line, env={"COLUMNS": "200"})
    error = repr(done.exception) if done.exception and not isinstance(done.exception, SystemExit) else ""
    print(json.dumps([done.exit_code, done.stdout, done.stderr + error]))
"""
ROWS = [{**row, "quality_chosen": n, "quality_rejected": -n} for n, row in enumerate(simple_rows(8))]
IDS = ids_of(ROWS)


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def run(folder: Path, *commands: str) -> list[Done]:
    lines = json.dumps([command.split() for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], cwd=folder, input=lines, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return [Done(code, out, " ".join(err.split())) for code, out, err in map(json.loads, done.stdout.splitlines())]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """``data.jsonl``, ``flip.jsonl`` about rows 0 to 2, ``filter.jsonl`` about rows 2 to 4, and ``review.jsonl``."""
    write_jsonl(tmp_path / "data.jsonl", ROWS)
    flip = manifest_for(ROWS, IDS[:3], "flip")
    flip.save(tmp_path / "flip.jsonl")
    manifest_for(ROWS, IDS[2:5], "filter").save(tmp_path / "filter.jsonl")
    said = (ReviewDecision(IDS[0], "keep", "harmless", "ann"), ReviewDecision(IDS[7], "filter", "", "ann"))
    ReviewDecisions(flip.header.dataset_fingerprint, said).save(tmp_path / "review.jsonl")
    return tmp_path


def test_manifests_are_shown_compared_and_made_into_new_ones(place: Path) -> None:
    shown, table, differ, merged, subtracted, restricted, capped = run(
        place,
        "manifest show flip.jsonl --sources-from data.jsonl --json",
        "manifest show flip.jsonl --sources-from data.jsonl",
        "manifest diff flip.jsonl filter.jsonl --json",
        "manifest merge flip.jsonl filter.jsonl --precedence first --decisions review.jsonl -o merged.jsonl --json",
        "manifest subtract flip.jsonl filter.jsonl -o subtracted.jsonl",
        "manifest restrict flip.jsonl --sources-from data.jsonl --without=part --only x -o no.jsonl",
        "manifest cap flip.jsonl --sources-from data.jsonl --max-share 0.25 -o capped.jsonl --json",
    )
    flip = Manifest.load(place / "flip.jsonl")
    assert shown.document["digest"] == flip.digest
    assert shown.document["sources"] == {"part 0": {"flip": 2}, "part 1": {"flip": 1}}
    assert flip.digest in table.out and "By source" in table.out and IDS[0] in table.out
    found = differ.document
    assert (len(found["only_first"]), len(found["only_second"]), len(found["changed"]), found["same"]) == (2, 2, 1, 0)
    assert merged.document["overridden"] == 1 and merged.document["added"] == 1
    assert [one["pair_id"] for one in merged.document["conflicts"]] == [IDS[2]]
    actions = {IDS.index(one.pair_id): one.action for one in Manifest.load(place / "merged.jsonl").decisions}
    assert actions == {0: "keep", 1: "flip", 2: "flip", 3: "filter", 4: "filter", 7: "filter"}
    assert [one.pair_id for one in Manifest.load(place / "subtracted.jsonl").decisions] == IDS[:2]
    assert subtracted.code == 0 and "2 of 3 left" in subtracted.out
    assert restricted.code == 2 and "one of the two" in restricted.err
    assert capped.document["left_out"] == 1


def test_a_manifest_is_applied_checked_and_told_to_whom_it_belongs(place: Path) -> None:
    digest = Manifest.load(place / "flip.jsonl").digest
    options = "--swap-columns quality_chosen:quality_rejected"
    asked, applied, checked, other, reviewed, quiet = run(
        place,
        "apply flip.jsonl data.jsonl -o no.jsonl",
        f"apply flip.jsonl data.jsonl -o flipped.jsonl {options} --digest {digest[:16].upper()} --json",
        f"apply flip.jsonl data.jsonl --check flipped.jsonl {options}",
        f"apply flip.jsonl data.jsonl --check data.jsonl {options}",
        f"apply flip.jsonl data.jsonl -o reviewed.jsonl --decisions review.jsonl {options} --no-card",
        "apply filter.jsonl data.jsonl -o dir/filtered.csv --quiet",
    )
    assert asked.code == 2
    assert "'quality_chosen' and 'quality_rejected': --swap-columns quality_chosen:quality_rejected, or" in asked.err
    both = [
        {
            **swapped(row, Reading()),
            "quality_chosen": row["quality_rejected"],
            "quality_rejected": row["quality_chosen"],
        }
        for row in ROWS
    ]
    assert read_back(place / "flipped.jsonl") == [*both[:3], *ROWS[3:]]
    assert applied.document["manifest"] == digest
    assert applied.document["report"]["swapped_columns"] == [["quality_chosen", "quality_rejected"]]
    assert digest in (place / "flipped.jsonl.card.md").read_text()
    assert checked.code == 0 and "checked" in checked.out
    assert other.code == 2 and "row 0, column 'chosen' differs" in other.err
    assert read_back(place / "reviewed.jsonl") == [ROWS[0], *both[1:3], *ROWS[3:7]]
    assert "8 in, 7 out" in reviewed.out and not (place / "reviewed.jsonl.card.md").exists()
    assert quiet.code == 0 and (place / "dir" / "filtered.csv").is_file()
    assert not (place / "no.jsonl").exists()


MISTAKES = {
    "apply flip.jsonl data.jsonl": "--output: say where the cleaned dataset goes",
    "apply flip.jsonl data.jsonl -o a.jsonl --check data.jsonl": "--check: writes nothing, so leave out --output",
    "apply flip.jsonl data.jsonl -o a.jsonl --public": "--public: only says something about --push-to-hub",
    "apply flip.jsonl data.jsonl -o a.jsonl --digest 0123456789abcdef": "Get the manifest that was signed off",
    "apply flip.jsonl data.jsonl -o a.jsonl --digest a": "at least 12 digits",
    "apply flip.jsonl data.jsonl -o a.jsonl --decisions flip.jsonl": "flip.jsonl:1: this is no decisions file header",
    "apply flip.jsonl data.jsonl -o a.jsonl --precedence loudest": "precedence 'loudest' is unknown",
    "apply flip.jsonl data.jsonl -o a.jsonl --swap-columns x": "does not name two columns",
    "apply flip.jsonl data.jsonl --push-to-hub nowhere": "is no dataset id; write it as owner/name",
    "apply flip.jsonl data.jsonl --check missing.jsonl": "missing.jsonl: no such file or folder",
    "manifest show data.jsonl": "data.jsonl:1: this is no manifest header",
    "manifest merge flip.jsonl -o a.jsonl": "nothing to merge: give two manifests or more, or --decisions",
    "manifest merge flip.jsonl filter.jsonl -o a.jsonl": "decisions differ about 1 pair",
    "manifest merge flip.jsonl filter.jsonl -o flip.jsonl --precedence first": "flip.jsonl is one of the inputs",
    "manifest subtract flip.jsonl missing.jsonl -o a.jsonl": "cannot read the manifest missing.jsonl",
    "manifest cap flip.jsonl --sources-from data.jsonl --max-share 0 -o a.jsonl": "above 0 and at most 1",
    "manifest cap flip.jsonl --sources-from data.jsonl --max-share 1 --of x -o a.jsonl": "choose source or manifest",
}


def test_every_mistake_is_one_message_and_leaves_nothing_behind(place: Path) -> None:
    before = {path: path.read_bytes() for path in place.rglob("*")}
    for (command, message), done in zip(MISTAKES.items(), run(place, *MISTAKES), strict=True):
        assert done.code == 2, (command, done)
        assert message in done.err
        assert "Traceback" not in done.err
    assert {path: path.read_bytes() for path in place.rglob("*")} == before
