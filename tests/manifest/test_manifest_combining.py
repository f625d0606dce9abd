"""Manifests are merged, subtracted and cut without a decision getting lost, and what people decided stands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import scoring_cases
from tests.manifest_cases import ids_of, manifest_for, simple_rows, swapped, write_jsonl
from trl_attribution.errors import ManifestError, SettingsError
from trl_attribution.manifest import (
    Decision,
    Manifest,
    MergeRules,
    ReviewDecision,
    ReviewDecisions,
    Sources,
    cap,
    diff,
    merge,
    restrict,
    subtract,
)
from trl_attribution.manifest.config import Precedence
from trl_attribution.pairs import Reading
from trl_attribution.scoring import write_scores

ROWS = simple_rows(8)
IDS = ids_of(ROWS)
SOURCES = Sources({pair_id: row["source"] for pair_id, row in zip(IDS, ROWS, strict=True)})
ANY_ORDER = ("strictest", "gentlest")
MANY = settings(max_examples=60, deadline=None)


def manifest(actions: dict[int, str], probe: str = "insults", score: float = 0.5) -> Manifest:
    """A manifest about ``ROWS`` that decides so about those rows."""
    base = manifest_for(ROWS, [], "filter")
    decisions = tuple(
        Decision(IDS[row], row, action, probe, score, place, 0.01)  # type: ignore[arg-type]
        for place, (row, action) in enumerate(actions.items(), start=1)
    )
    header = dataclasses.replace(base.header, action="mixed", probe_fingerprints={probe: "p0"}, counts={"pairs": 8})
    return Manifest(header, decisions)


def review(actions: dict[int, str], reviewer: str = "ann") -> ReviewDecisions:
    about = manifest({}).header.dataset_fingerprint
    return ReviewDecisions(about, tuple(ReviewDecision(IDS[row], act, "", reviewer) for row, act in actions.items()))  # type: ignore[arg-type]


def actions_of(made: Manifest) -> dict[int, str]:
    return {IDS.index(decision.pair_id): decision.action for decision in made.decisions}


def rules(precedence: Any, **others: bool) -> MergeRules:
    return MergeRules(precedence, **others)


ACTIONS = st.dictionaries(st.integers(0, 7), st.sampled_from(["keep", "filter", "flip"]))
MANIFESTS = st.builds(manifest, ACTIONS, st.sampled_from(["insults", "rude"]), st.sampled_from([0.25, 0.5]))


@MANY
@given(MANIFESTS, MANIFESTS, MANIFESTS, st.sampled_from([*get_args(Precedence)[1:]]))
def test_merging_can_be_grouped_in_any_way(one: Manifest, two: Manifest, three: Manifest, precedence: str) -> None:
    by = rules(precedence)
    left = merge([merge([one, two], by).manifest, three], by).manifest
    right = merge([one, merge([two, three], by).manifest], by).manifest
    whole = merge([one, two, three], by).manifest
    assert left.decisions == right.decisions == whole.decisions
    assert left.header.action == right.header.action == whole.header.action
    assert left.header.probe_fingerprints == whole.header.probe_fingerprints
    assert merge([one, one], by).manifest.decisions == merge([one, one, one], by).manifest.decisions


@MANY
@given(MANIFESTS, MANIFESTS, st.sampled_from(ANY_ORDER))
def test_the_order_of_the_manifests_matters_only_where_the_precedence_says_so(
    one: Manifest, two: Manifest, precedence: str
) -> None:
    assert (
        merge([one, two], rules(precedence)).manifest.decisions
        == merge([two, one], rules(precedence)).manifest.decisions
    )
    assert merge([one, two], rules("first")).manifest.decisions == merge([two, one], rules("last")).manifest.decisions


@MANY
@given(MANIFESTS, MANIFESTS, st.sampled_from([*get_args(Precedence)[1:]]))
def test_a_merge_lists_every_pair_once_and_names_every_conflict(one: Manifest, two: Manifest, precedence: str) -> None:
    merged = merge([one, two], rules(precedence))
    first, second = actions_of(one), actions_of(two)
    now = actions_of(merged.manifest)
    assert now.keys() == first.keys() | second.keys()
    differ = {row for row in first.keys() & second.keys() if first[row] != second[row]}
    assert {IDS.index(conflict.pair_id) for conflict in merged.conflicts} == differ
    order = {"keep": 0, "flip": 1, "filter": 2}
    pick = {
        "first": lambda row: first[row],
        "last": lambda row: second[row],
        "strictest": lambda row: max(first[row], second[row], key=order.__getitem__),
        "gentlest": lambda row: min(first[row], second[row], key=order.__getitem__),
    }[precedence]
    assert all(now[row] == (pick(row) if row in differ else {**first, **second}[row]) for row in now)
    assert [decision.row for decision in merged.manifest.decisions] == sorted(now)


@MANY
@given(MANIFESTS, MANIFESTS, ACTIONS)
def test_what_a_reviewer_decided_stands_whatever_is_merged_before_or_after(
    one: Manifest, two: Manifest, decided: dict[int, str]
) -> None:
    said = [review(decided)]
    for precedence in get_args(Precedence)[1:]:
        now = merge([one, two], rules(precedence), said).manifest
        again = merge([two, merge([one], rules(precedence), said).manifest], rules(precedence)).manifest
        for made in (now, again):
            assert {row: actions_of(made)[row] for row in decided} == decided
    assert now.header.reviews == (said[0].digest,)


@MANY
@given(MANIFESTS, MANIFESTS)
def test_a_subtraction_leaves_exactly_the_pairs_that_the_other_does_not_list(one: Manifest, two: Manifest) -> None:
    left = subtract(one, [two])
    assert left.decisions == tuple(d for d in one.decisions if d.pair_id not in {o.pair_id for o in two.decisions})
    assert subtract(one, [one]).decisions == ()
    assert left.header.parents == (one.digest, two.digest)
    found = diff(one, two)
    assert found.only_first == left.decisions
    assert found.only_second == subtract(two, [one]).decisions
    assert found.same + len(found.changed) == len(one.decisions) - len(left.decisions)


@MANY
@given(ACTIONS)
def test_a_merged_manifest_does_what_its_parents_do_one_after_the_other(actions: dict[int, str]) -> None:
    parts = {act: manifest({row: a for row, a in actions.items() if a == act}) for act in ("keep", "flip", "filter")}
    merged = merge(list(parts.values())).manifest
    assert merged.apply(ROWS) == parts["filter"].apply(parts["flip"].apply(ROWS))
    assert merged.header.action == (
        "mixed"
        if {"filter", "flip"} <= set(actions.values()) or not set(actions.values()) - {"keep"}
        else next(act for act in ("filter", "flip") if act in actions.values())
    )


@MANY
@given(MANIFESTS)
def test_a_digest_depends_on_what_is_said_and_on_nothing_else(made: Manifest) -> None:
    other_order = Manifest(made.header, made.decisions[::-1])
    older_tool = Manifest(dataclasses.replace(made.header, tool_version="0.0.1"), made.decisions)
    assert other_order.digest == older_tool.digest == made.digest
    for decision in made.decisions:
        changed = dataclasses.replace(decision, action="keep" if decision.action != "keep" else "filter")
        assert (
            Manifest(made.header, tuple(changed if d is decision else d for d in made.decisions)).digest != made.digest
        )
    assert Manifest(dataclasses.replace(made.header, rule={"top_k": 99}), made.decisions).digest != made.digest


def test_a_merged_manifest_loads_again_with_its_parents_and_reviewers(tmp_path: Path) -> None:
    one, two = manifest({0: "flip", 1: "flip"}), manifest({1: "filter", 2: "keep"})
    merged = merge([one, two], rules("strictest"), [review({0: "keep", 7: "filter"})]).manifest
    merged.save(tmp_path / "merged.jsonl")
    again = Manifest.load(tmp_path / "merged.jsonl")
    assert again == merged
    assert again.digest == merged.digest
    assert again.header.parents == (one.digest, two.digest)
    assert [(one.reviewer, one.row, one.score) for one in again.decisions] == [
        ("ann", 0, 0.5),
        (None, 1, 0.5),
        (None, 2, 0.5),
        ("ann", None, None),
    ]
    assert again.header.action == "filter"


def test_a_mixed_manifest_filters_some_rows_and_flips_others() -> None:
    made = manifest({0: "flip", 3: "filter", 5: "keep"})
    expected = [swapped(ROWS[0], Reading()), *ROWS[1:3], *ROWS[4:]]
    assert made.apply(ROWS) == expected
    with pytest.raises(ManifestError, match="a mixed manifest cannot be undone, its rows are gone"):
        made.apply(expected, undo=True)
    only_flips = manifest({0: "flip", 5: "keep"})
    assert only_flips.apply(only_flips.apply(ROWS), undo=True) == ROWS


def test_an_audits_manifest_is_written_as_older_readers_know_it(tmp_path: Path) -> None:
    manifest_for(ROWS, IDS[:1], "flip").save(tmp_path / "flip.jsonl")
    header, decision = map(json.loads, (tmp_path / "flip.jsonl").read_text().splitlines())
    assert not {"parents", "reviews"} & header.keys()
    assert list(decision) == ["pair_id", "row", "action", "probe", "score", "rank", "q_value"]
    assert header["version"] == 1


def test_what_differs_is_refused_unless_a_precedence_is_stated() -> None:
    with pytest.raises(
        ManifestError,
        match=rf"differ about 1 pair:\n  {IDS[1]}: manifest 1 says flip, manifest 2 says filter\nSay who",
    ):
        merge([manifest({1: "flip"}), manifest({1: "filter"})])
    with pytest.raises(ManifestError, match="ann says keep, bob says filter"):
        merge([manifest({})], reviews=[review({1: "keep"}), review({1: "filter"}, "bob")])
    settled = merge([manifest({})], rules("strictest"), [review({1: "keep"}), review({1: "filter"}, "bob")])
    assert actions_of(settled.manifest) == {1: "filter"}
    assert settled.manifest.decisions[0].reviewer == "bob"
    with pytest.raises(SettingsError, match="precedence 'loudest' is unknown: choose from refuse, first"):
        rules("loudest")


def test_what_scores_disagree_about_is_no_conflict_once_a_reviewer_has_decided() -> None:
    one, two = manifest({1: "flip", 2: "flip"}), manifest({1: "filter", 2: "flip"})
    settled = merge([one, two], reviews=[review({1: "keep"})])
    assert (actions_of(settled.manifest), settled.conflicts) == ({1: "keep", 2: "flip"}, ())
    with pytest.raises(ManifestError, match="differ about 1 pair"):
        merge([one, two], reviews=[review({2: "keep"})])


def test_a_reviewer_whom_the_manifest_names_is_not_overruled_in_silence() -> None:
    reviewed = merge([manifest({1: "flip"})], reviews=[review({1: "keep"}, "bob")]).manifest
    with pytest.raises(ManifestError, match="bob says keep, ann says filter"):
        merge([reviewed], reviews=[review({1: "filter"})])
    settled = merge([reviewed], rules("last"), [review({1: "filter"})])
    assert [(one.action, one.reviewer) for one in settled.manifest.decisions] == [("filter", "ann")]
    agreed = merge([reviewed], reviews=[review({1: "keep"})])
    assert [(one.action, one.reviewer) for one in agreed.manifest.decisions] == [("keep", "ann, bob")]
    again = merge([reviewed], reviews=[review({1: "filter"}, "bob")])
    assert (actions_of(again.manifest), again.conflicts) == ({1: "filter"}, ())


def test_a_reviewer_whose_name_holds_a_comma_is_one_person() -> None:
    said = [review({1: "keep"}, 'Doe, "J"'), review({1: "keep"}, "bob")]
    reviewed = merge([manifest({1: "flip"})], reviews=said).manifest
    assert reviewed.decisions[0].reviewer == '"Doe, ""J""", bob'
    changed = [review({1: "filter"}, 'Doe, "J"'), review({1: "filter"}, "bob")]
    again = merge([reviewed], reviews=changed)
    assert (actions_of(again.manifest), again.conflicts) == ({1: "filter"}, ())
    assert again.manifest.decisions[0].reviewer == reviewed.decisions[0].reviewer
    with pytest.raises(ManifestError, match="Doe, .* says keep, bob says filter"):
        merge([reviewed], reviews=changed[1:])


def test_one_reviewer_who_decided_twice_has_decided_what_came_last() -> None:
    settled = merge([manifest({1: "flip"})], reviews=[review({1: "filter"}), review({1: "keep"})])
    assert actions_of(settled.manifest) == {1: "keep"}
    assert (settled.overridden, settled.added, settled.conflicts) == (1, 0, ())


@pytest.mark.parametrize(
    ("change", "allowed", "message"),
    [
        (
            {"dataset_fingerprint": "f" * 64},
            "allow_other_datasets",
            "about different datasets .*--allow-other-datasets",
        ),
        ({"reading": {"format": "trl"}}, "allow_other_datasets", "read their datasets differently"),
        ({"model_fingerprint": "m1"}, "allow_other_models", "made with different models .fingerprints m0, m1"),
        ({"probe_fingerprints": {"insults": "p1"}}, "allow_other_models", "different probes of the name 'insults'"),
    ],
)
def test_manifests_that_do_not_belong_together_are_merged_only_when_asked(
    change: dict[str, Any], allowed: str, message: str
) -> None:
    one = manifest({0: "flip"})
    two = Manifest(dataclasses.replace(manifest({1: "flip"}).header, **change), manifest({1: "flip"}).decisions)
    with pytest.raises(ManifestError, match=message):
        merge([one, two])
    assert actions_of(merge([one, two], rules("refuse", **{allowed: True})).manifest) == {0: "flip", 1: "flip"}


def test_reviews_of_another_dataset_are_refused_unless_asked_for() -> None:
    foreign = ReviewDecisions("e" * 64, review({0: "keep"}).decisions)
    with pytest.raises(ManifestError, match="decisions are about another dataset than the manifest"):
        merge([manifest({0: "flip"})], reviews=[foreign])
    made = merge([manifest({0: "flip"})], rules("refuse", allow_other_datasets=True), [foreign]).manifest
    assert actions_of(made) == {0: "keep"}
    with pytest.raises(ManifestError, match="nothing to merge"):
        merge([])


def test_only_some_sources_stay(tmp_path: Path) -> None:
    made = manifest(dict.fromkeys(range(8), "filter"))
    assert sorted(actions_of(restrict(made, SOURCES, only=["part 0"]))) == [0, 2, 4, 6]
    assert sorted(actions_of(restrict(made, SOURCES, without=["part 0"]))) == [1, 3, 5, 7]
    with pytest.raises(SettingsError, match=r"no pair comes from source 'part 9'\. Sources there: part 0, part 1"):
        restrict(made, SOURCES, only=["part 9"])
    for none_or_both in ({}, {"only": ["part 0"], "without": ["part 1"]}):
        with pytest.raises(SettingsError, match="one of the two"):
            restrict(made, SOURCES, **none_or_both)


@MANY
@given(MANIFESTS, st.sampled_from([0.25, 0.5, 0.6, 1.0]))
def test_no_source_keeps_more_than_its_share_and_the_best_ranked_pairs_stay(made: Manifest, share: float) -> None:
    capped = cap(made, SOURCES, share)
    acting = [one for one in capped.decisions if one.action != "keep"]
    for source in ("part 0", "part 1"):
        left = [one.rank for one in acting if SOURCES.of[one.pair_id] == source]
        all_of_it = sorted(
            one.rank or 0 for one in made.decisions if one.action != "keep" and SOURCES.of[one.pair_id] == source
        )
        assert sorted(rank or 0 for rank in left) == all_of_it[: int(share * 4)]
    assert [one for one in capped.decisions if one.action == "keep"] == [
        one for one in made.decisions if one.action == "keep"
    ]


def test_a_source_can_be_capped_by_its_share_of_the_manifest() -> None:
    made = manifest({0: "filter", 2: "filter", 4: "filter", 1: "filter"})
    assert sorted(actions_of(cap(made, SOURCES, 0.5, "manifest"))) == [0, 1]
    assert cap(made, SOURCES, 1, "manifest").decisions == made.decisions
    with pytest.raises(SettingsError, match="2 sources cannot each have at most 0.3 of the manifest"):
        cap(made, SOURCES, 0.3, "manifest")
    for share in (0, 1.5, float("nan")):
        with pytest.raises(SettingsError, match="give a number above 0 and at most 1"):
            cap(made, SOURCES, share)
    reviewed = merge([made], reviews=[review({0: "filter"})]).manifest
    assert 0 in actions_of(cap(reviewed, SOURCES, 0.01))


def test_sources_are_read_from_the_audited_dataset_and_from_no_other(tmp_path: Path) -> None:
    made = manifest({0: "flip"})
    found = Sources.read(write_jsonl(tmp_path / "data.jsonl", ROWS), made)
    assert found.of == SOURCES.of
    with pytest.raises(ManifestError, match=r"other\.jsonl: another dataset than the one the manifest is about"):
        Sources.read(write_jsonl(tmp_path / "other.jsonl", ROWS[:4]), made)


def test_sources_are_read_from_the_scores_of_an_audit(tmp_path: Path) -> None:
    audit, known = tmp_path / "audit", scoring_cases.ids(3)
    audit.mkdir()
    scores = scoring_cases.scores_of({"insults": [0.1, 0.7, 0.2]}, tmp_path)
    write_scores(audit / "scores.parquet", scores, ["web", "chat", "web"])
    made = manifest({})
    expected = dict(zip(known, ["web", "chat", "web"], strict=True))
    assert Sources.read(audit / "scores.parquet", made).of == expected
    with pytest.raises(ManifestError, match=r"its audit\.json cannot be read"):
        Sources.read(audit, made)
    (audit / "audit.json").write_text(json.dumps({"dataset": {"fingerprint": made.header.dataset_fingerprint}}))
    assert Sources.read(audit, made).of == expected
    with pytest.raises(ManifestError, match=f"lacks 1 of the 1 pairs that the manifest lists, such as {IDS[0]}"):
        Sources.read(audit, manifest({0: "flip"}))
    (audit / "audit.json").write_text(json.dumps({"dataset": {"fingerprint": "0" * 64}}))
    with pytest.raises(ManifestError, match="another dataset than the one the manifest is about"):
        Sources.read(audit, made)
