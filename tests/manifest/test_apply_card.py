"""A cleaned dataset says where it came from, once for each manifest, and no name in it can become markup."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.manifest_cases import ids_of, manifest_for, simple_rows, write_jsonl
from trl_attribution.errors import DataError
from trl_attribution.manifest import Manifest, MergeRules, ReviewDecision, ReviewDecisions, merge
from trl_attribution.manifest.applying import make_plan
from trl_attribution.manifest.card import Provenance, section
from trl_attribution.pairs import Reading
from trl_attribution.utils.markdown import inline

ROWS = simple_rows(6)
HOSTILE = [
    "</details><script>alert(1)</script>",
    "| a | b |\n| --- | --- |",
    "[click](https://evil.example) ![x](http://evil.example/p.png)",
    "::error file=a,line=1::boo",
    "`code` *bold* _it_ ~~gone~~ $x^2$",
    "@everyone #12 www.evil.example http://evil.example",
    "\x1b[31mred\x1b[0m \u202egnp.exe \r\n# Title",
    "<!-- trl-attribution provenance",
    "-->",
]


def card_of(rows: list[dict[str, object]], manifest: Manifest, dataset: str = "data.jsonl") -> str:
    report = make_plan(manifest, rows, manifest.reading).report
    return section(Provenance(manifest, dataset), report).text


def test_the_section_says_what_was_done_by_which_probe_model_and_manifest(tmp_path: Path) -> None:
    one, two = manifest_for(ROWS, ids_of(ROWS)[:2], "flip"), manifest_for(ROWS, ids_of(ROWS)[2:3], "filter")
    said = ReviewDecisions(one.header.dataset_fingerprint, (ReviewDecision(ids_of(ROWS)[0], "keep", "", "ann"),))
    merged = merge([one, two], MergeRules(), [said]).manifest
    text = card_of(ROWS, merged, str(tmp_path / "data.jsonl"))
    for fact in (
        "| made from | data.jsonl |",
        "| rows | 6 before, 5 after |",
        "| left out | 1 row |",
        "| flipped | 1 row: chosen and rejected change places |",
        f"| manifest | sha256 {merged.digest} |",
        f"| made of manifest | sha256 {one.digest} |",
        f"| reviewed in | decisions, sha256 {said.digest} |",
        f"| audited dataset | fingerprint {one.header.dataset_fingerprint} |",
        "| M0 | fingerprint m0 |",
        "| probe | insults: 2 pairs, fingerprint p0 |",
        "| reviewers | ann: decided about 1 pair |",
        "| part 0 | 3 | 1 | 0 |",
        "| part 1 | 3 | 0 | 1 |",
    ):
        assert fact in text
    assert str(tmp_path) not in text
    assert card_of(ROWS, merged) == card_of(ROWS, merged)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(text: str) -> None:
    rows = [{**row, "source": text} for row in ROWS]
    manifest = manifest_for(rows, ids_of(rows)[:2], "filter")
    header = dataclasses.replace(
        manifest.header,
        model_fingerprint=text,
        probe_fingerprints={text: text},
        rule={text: text},
    )
    decisions = tuple(dataclasses.replace(one, probe=text, reviewer=text) for one in manifest.decisions)
    card = card_of(rows, Manifest(header, decisions), text)
    plain = card_of(ROWS, manifest)
    assert len(card.splitlines()) <= len(plain.splitlines()) + 2
    body = card.split("-->", 1)[1].rsplit("<!--", 1)[0]
    assert not re.search(r"[<>\[\]`*@\x1b\r\u202e~$]|www\.|://|::|!\(|#(?!\d+;)", body.replace("## Provenance", ""))
    assert all(line.count("|") in (3, 5) for line in body.splitlines() if line.startswith("|"))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30))
@example("0.0")
@example("1. point")
def test_no_text_at_all_keeps_a_sign_that_begins_markup(text: str) -> None:
    escaped = inline(text)
    bare = re.sub(r"&#\d+;", "", escaped)
    assert not re.search(r"[<>\[\]`*|\\@#!$~^&{}\n\r\x00-\x1f]", bare)
    assert not re.search(r":(?=\S)|%(?=\w)|^\s*([-+:]|\d+[.)](?=\s|$))", escaped)
    assert "www." not in bare.lower()


def test_a_section_is_put_once_and_replaced_in_its_place() -> None:
    manifest, other = (manifest_for(ROWS, ids_of(ROWS)[:n], "filter") for n in (1, 2))
    report = make_plan(manifest, ROWS, Reading()).report
    first, second = Provenance(manifest, "a"), Provenance(other, "a")
    card = "---\nlicense: mit\n---\n\n# Mine\n"
    once = section(first, report).within(card)
    assert once.startswith(card) and once.count("## Provenance") == 1
    assert section(first, report).within(once) == once
    both = section(second, report).within(once + "\nMore of mine.\n")
    assert both.count("## Provenance") == 2
    changed = section(first, dataclasses.replace(report, rows_in=77)).within(both)
    assert changed == both.replace("| rows | 6 before", "| rows | 77 before", 1)
    undone = section(Provenance(manifest, "a", undo=True), report).within(both)
    assert manifest.digest not in undone and other.digest in undone and "More of mine." in undone


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["begin", "end", "text\n", "\n\n", "# A\n"]), max_size=8))
def test_a_card_with_broken_marks_loses_no_text_and_settles(pieces: list[str]) -> None:
    manifest = manifest_for(ROWS, ids_of(ROWS)[:1], "filter")
    report = make_plan(manifest, ROWS, Reading()).report
    marks = {which: f"<!-- trl-attribution provenance {manifest.digest} {which} -->" for which in ("begin", "end")}
    card = "".join(marks.get(piece, piece) for piece in pieces)
    once = section(Provenance(manifest, "a"), report).within(card)
    assert once.count("## Provenance") == 1
    assert section(Provenance(manifest, "a"), report).within(once) == once
    outside = re.sub(f"{marks['begin']}(?:(?!{marks['begin']}).)*?{marks['end']}", "", card, count=1, flags=re.DOTALL)
    assert once.count("# A") >= outside.count("# A")


def test_a_file_has_its_card_beside_it_and_goes_on_with_the_inputs(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "data.jsonl", ROWS)
    first = manifest_for(ROWS, ids_of(ROWS)[:1], "filter")
    first.apply_file(source, tmp_path / "once.jsonl", card=True)
    second = manifest_for(ROWS[1:], ids_of(ROWS)[3:4], "flip")
    second.apply_file(tmp_path / "once.jsonl", tmp_path / "twice.jsonl", card=True)
    once, twice = ((tmp_path / f"{name}.jsonl.card.md").read_text() for name in ("once", "twice"))
    assert once.startswith("# once.jsonl\n")
    assert twice.startswith(once.rstrip("\n"))
    assert [one.digest in twice for one in (first, second)] == [True, True]
    second.apply_file(tmp_path / "twice.jsonl", tmp_path / "back.jsonl", undo=True, card=True)
    assert (tmp_path / "back.jsonl.card.md").read_text() == once
    second.apply_file(tmp_path / "once.jsonl", tmp_path / "without.jsonl")
    assert not (tmp_path / "without.jsonl.card.md").exists()


def test_a_card_that_is_no_text_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "a.jsonl", ROWS)
    (tmp_path / "data" / "README.md").write_bytes(b"\xff\xfe")
    manifest = manifest_for(ROWS, ids_of(ROWS)[:1], "filter")
    with pytest.raises(DataError, match=r"data: datasets cannot load this folder \('utf-8' codec can't decode"):
        manifest.apply_file(tmp_path / "data", tmp_path / "out", card=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("name", ["data.jsonl.card.md", "out.jsonl.card.md"])
def test_a_card_beside_a_file_that_is_no_file_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "data.jsonl", ROWS)
    (tmp_path / name).mkdir()
    manifest = manifest_for(ROWS, ids_of(ROWS)[:1], "filter")
    with pytest.raises(DataError, match=r"cannot add to the card .*\.card\.md.*--no-card"):
        manifest.apply_file(source, tmp_path / "out.jsonl", card=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", name]


def test_a_dataset_whose_every_row_has_a_source_of_its_own_makes_a_short_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl_attribution.manifest.tally.MOST_SOURCES", 60)
    rows = [{**row, "source": f"source {n}"} for n, row in enumerate(simple_rows(100))]
    text = card_of(rows, manifest_for(rows, ids_of(rows), "filter"))
    assert "| (other sources) | 40 | 40 | 0 |" in text
    assert "and 11 more sources" in text
