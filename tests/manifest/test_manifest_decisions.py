"""Reviewers' decisions are kept as they were made; a broken file of them, or of a manifest, is refused by line."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.manifest_cases import ids_of, manifest_for, simple_rows
from trl_attribution.errors import AttributionError, ManifestError
from trl_attribution.manifest import Manifest, ReviewDecision, ReviewDecisions

IDS = ids_of(simple_rows())
ABOUT = "ab" * 32
HEADER = {"format": "trl-attribution decisions", "version": 1, "dataset_fingerprint": ABOUT}
LINE = {"pair_id": IDS[0], "action": "keep", "note": "a joke", "reviewer": "ann", "decided_at": "2026-01-31T12:00:00Z"}
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "decisions.jsonl"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.builds(
            ReviewDecision,
            st.sampled_from(IDS),
            st.sampled_from(["keep", "filter", "flip"]),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
            st.sampled_from(["", "ann", "bob \u202e", "<b>"]),
            st.sampled_from(["", "2026-01-31T12:00:00Z", "2026-01-31T12:00:00.5+00:00"]),
        )
    )
)
def test_saved_decisions_load_to_the_same(tmp_path_factory: pytest.TempPathFactory, made: list[ReviewDecision]) -> None:
    path = tmp_path_factory.mktemp("reviews") / "deep" / "decisions.jsonl"
    reviews = ReviewDecisions(ABOUT, tuple(made))
    reviews.save(path)
    again = ReviewDecisions.load(path)
    assert again == reviews
    assert again.digest == reviews.digest == ReviewDecisions(ABOUT, reviews.decisions[::-1]).digest
    last = {(one.pair_id, one.reviewer): one for one in made}
    assert set(again.decisions) == set(last.values())
    assert sum(len(said) for said in again.by_pair().values()) == len(last)


def test_the_file_is_what_the_contract_says(path: Path) -> None:
    ReviewDecisions(ABOUT, (ReviewDecision(**LINE),)).save(path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [HEADER, LINE]
    assert list(json.loads(path.read_text().splitlines()[1])) == list(LINE)


def test_a_later_line_of_the_same_reviewer_replaces_the_earlier_one(path: Path) -> None:
    other, later = {**LINE, "reviewer": "bob"}, {**LINE, "action": "flip", "note": ""}
    reviews = ReviewDecisions.load(write(path, HEADER, LINE, other, later))
    assert [(one.reviewer, one.action) for one in reviews.decisions] == [("bob", "keep"), ("ann", "flip")]
    assert [one.reviewer for one in reviews.by_pair()[IDS[0]]] == ["bob", "ann"]


@pytest.mark.parametrize(
    ("number", "changes", "message"),
    [
        (1, {"format": "trl-attribution manifest"}, "this is no decisions file header"),
        (1, {"version": 2}, "decisions file has format version 2; .* reads up to 1. Install a newer"),
        (1, {"version": 0}, "field 'version': Input should be greater than or equal to 1"),
        (1, {"version": True}, "field 'version': Input should be a valid integer"),
        (1, {"dataset_fingerprint": "short"}, "field 'dataset_fingerprint': String should match"),
        (1, {"extra": 1}, "field 'extra'"),
        (2, {"pair_id": IDS[0] + "\n"}, "field 'pair_id': String should match"),
        (2, {"action": "delete"}, r"field 'action': Input should be 'keep', 'filter' or 'flip' \(it is delete\)"),
        (2, {"note": 3}, "field 'note': Input should be a valid string"),
        (2, {"decided_at": "yesterday"}, "field 'decided_at': .*give a time in UTC"),
        (2, {"decided_at": "2026-01-31T12:00:00+02:00"}, "field 'decided_at': .*give a time in UTC"),
        (2, {"decided_at": "2026-01-31"}, "field 'decided_at': .*give a time in UTC"),
        (2, {"reviewer": None}, "field 'reviewer': Input should be a valid string"),
        (2, {"surprise": "\x1b[31m"}, "field 'surprise'"),
    ],
)
def test_a_faulty_line_of_decisions_is_named(path: Path, number: int, changes: dict[str, Any], message: str) -> None:
    lines = [HEADER, LINE]
    lines[number - 1] = {**lines[number - 1], **changes}
    with pytest.raises(ManifestError, match=message) as refused:
        ReviewDecisions.load(write(path, *lines))
    assert str(refused.value).startswith(f"{path}:{number}: ")
    assert "\x1b" not in str(refused.value)


def test_decisions_without_a_proper_fingerprint_cannot_be_made() -> None:
    with pytest.raises(ManifestError, match="needs the fingerprint of its dataset"):
        ReviewDecisions("", ())


def test_a_note_or_a_reading_that_holds_no_text_is_refused(tmp_path: Path) -> None:
    manifest_for(simple_rows(), IDS[:2], "flip").save(tmp_path / "flip.jsonl")
    header, *lines = (tmp_path / "flip.jsonl").read_text().splitlines()
    for changes, message in (
        ({"reading": {"chosen_column": ["chosen"]}}, "reading cannot be used: chosen_column is a list, not text"),
        ({"version": 0}, "field 'version'"),
        ({"counts": {"decisions": 2, "flip": 1, "keep": 1}}, "has 2 decisions to flip where its header counts 1"),
        ({"parents": ["abc"]}, "field 'parents.0'"),
    ):
        changed = json.dumps({**json.loads(header), **changes})
        (tmp_path / "flip.jsonl").write_text("\n".join([changed, *lines]))
        with pytest.raises(ManifestError, match=message):
            Manifest.load(tmp_path / "flip.jsonl")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999"])
def test_a_header_with_a_number_that_is_none_is_refused(tmp_path: Path, number: str) -> None:
    manifest_for(simple_rows(), IDS[:2], "flip").save(tmp_path / "flip.jsonl")
    text = (tmp_path / "flip.jsonl").read_text().replace('"top_k": 2', f'"top_k": {number}')
    (tmp_path / "flip.jsonl").write_text(text)
    with pytest.raises(ManifestError, match=r"flip\.jsonl:1: "):
        Manifest.load(tmp_path / "flip.jsonl")


def _manifest_bytes(folder: Path) -> bytes:
    manifest_for(simple_rows(), IDS[:3], "flip", keep=IDS[3:4]).save(folder / "whole.jsonl")
    return (folder / "whole.jsonl").read_bytes()


def _decisions_bytes(folder: Path) -> bytes:
    ReviewDecisions(ABOUT, (ReviewDecision(**LINE), ReviewDecision(IDS[1], "flip"))).save(folder / "whole.jsonl")
    return (folder / "whole.jsonl").read_bytes()


_PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"[" * 5000, b'{"a":' * 3000, b"9" * 5000, b"\\ud800", b"null", b"NaN", b"\r", b"\n", b'"', b"1e999"]
    ),
)


def outcome(load: Callable[[Path], Any], path: Path) -> tuple[Any, str]:
    """What was read, or why it was refused."""
    try:
        return load(path), ""
    except ManifestError as error:
        return None, str(error)


Parser = tuple[Callable[[Path], Any], Callable[[Path], bytes]]


@pytest.mark.parametrize("parser", [(Manifest.load, _manifest_bytes), (ReviewDecisions.load, _decisions_bytes)])
@FUZZ
@given(st.data())
def test_no_byte_of_a_broken_file_makes_more_than_a_clear_refusal(
    parser: Parser, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    load, whole_of = parser
    folder = tmp_path_factory.mktemp("fuzz")
    whole = whole_of(folder)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.one_of(st.just(start), st.integers(start, min(len(whole), start + 40)), st.just(len(whole))))
    broken = whole[:start] + data.draw(_PIECES) + whole[end:]
    (folder / "broken.jsonl").write_bytes(broken)
    read, refusal = outcome(load, folder / "broken.jsonl")
    if read is None:
        assert "broken.jsonl" in refusal
        assert refusal.isprintable()
        return
    # What is let through says something whole: it can be written, read again and named by its digest.
    read.save(folder / "again.jsonl")
    assert load(folder / "again.jsonl") == read
    assert len(read.digest) == 64


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(
    field=st.sampled_from(["version", "action", "rule", "counts", "reading", "probe_fingerprints", "parents"]),
    value=_JSON,
)
@example("reading", {"split": 3})
@example("counts", {"decisions": -1})
@example("rule", {"\ud800": 1})
def test_any_value_in_any_field_of_a_header_is_checked_or_carried(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    folder = tmp_path_factory.mktemp("fields")
    header, *lines = _manifest_bytes(folder).decode().splitlines()
    changed = json.dumps({**json.loads(header), field: value})
    (folder / "changed.jsonl").write_text("\n".join([changed, *lines]))
    manifest, refusal = outcome(Manifest.load, folder / "changed.jsonl")
    if manifest is None:
        assert "changed.jsonl" in refusal
        return
    manifest.save(folder / "again.jsonl")
    assert Manifest.load(folder / "again.jsonl").digest == manifest.digest
    with suppress(AttributionError):  # a reading of other columns
        assert len(manifest.apply(simple_rows())) == len(simple_rows())
