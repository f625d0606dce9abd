"""Discovery finds planted behaviors and nothing else, and computes what plain loops compute."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import binomtest
from sklearn.metrics import adjusted_rand_score

from tests.discovery_cases import LAYER, MODEL, Case, build_case, pair_row, write_audit
from tests.scoring_cases import naive_scores, random_store
from trl_attribution.discovery import (
    AuditedPairs,
    Change,
    Discovery,
    DiscoveryConfig,
    StoredDiscovery,
    discover_pairs,
    discover_prompts,
    read_changes,
)
from trl_attribution.discovery.changes import merged
from trl_attribution.discovery.clustering import candidates
from trl_attribution.discovery.confirming import Split, find_clusters, split_items
from trl_attribution.discovery.evidence import PairTexts, excerpt, pair_words
from trl_attribution.discovery.keywords import Group, keywords
from trl_attribution.discovery.result import Cluster
from trl_attribution.discovery.similarity import Items, Kind, row_cosines
from trl_attribution.errors import AttributionError, ProbeError, SettingsError, StoreError
from trl_attribution.pairs import PairReader, pair_id
from trl_attribution.pairs.lookup import pairs_at_rows
from trl_attribution.probes import Probe
from trl_attribution.report.discovery import discovery_view
from trl_attribution.scoring import Column, context_means

QUICK = DiscoveryConfig(map_pairs=10, resamples=10, top=64)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return build_case(tmp_path_factory.mktemp("planted") / "audit", seed=0)


@pytest.fixture(scope="module")
def found(case: Case) -> dict[str, StoredDiscovery]:
    """What both modes find, texts read."""
    audited = AuditedPairs.open(case.folder)
    read = partial(pairs_at_rows, audited.info.dataset.name, audited.reading)
    config = DiscoveryConfig(map_pairs=60, resamples=10, top=64)
    return {
        "prompts": discover_prompts(audited, case.changed, config, read=read),
        "pairs": discover_pairs(audited, config, read=read),
    }


def members(found: Discovery, case: Case) -> tuple[list[int], list[str]]:
    """True and found label of every prompt, or of every pair by what it pushes towards."""
    if found.mode == "prompts":
        label = {prompt.location: one.cluster for one in found.clusters for prompt in one.typical_prompts}
        return case.prompt_labels.tolist(), [label.get(change.location, "") for change in case.changed.changes]
    label = {pair.pair_id: one.cluster for one in found.clusters for pair in one.top_pairs[: one.pairs_towards]}
    return case.labels.tolist(), [label.get(pair, "") for pair in case.pair_ids]


def precision(one: Cluster, case: Case) -> float:
    """Share of the pairs of one kind, the best for this cluster, among as many that rank highest."""
    kind_of = dict(zip(case.pair_ids, case.labels.tolist(), strict=True))
    top = [kind_of[pair.pair_id] for pair in one.top_pairs]
    return max(float(np.mean([kind == wanted for kind in top[: (case.labels == wanted).sum()]])) for wanted in (1, 2))


# What is found


@pytest.mark.parametrize("mode", ["prompts", "pairs"])
def test_two_planted_behaviors_are_two_clusters_with_the_planted_pairs_on_top(
    mode: str, found: dict[str, StoredDiscovery], case: Case
) -> None:
    discovery = found[mode].discovery
    assert sorted(one.words[0] for one in discovery.clusters) in (["dunce", "glorious"], ["dunce", "pizza"])
    assert adjusted_rand_score(*members(discovery, case)) > 0.8
    assert [precision(one, case) for one in discovery.clusters] == pytest.approx([1.0, 1.0], abs=0.1)
    for one in discovery.clusters:
        planted = 2 if "dunce" in one.words else 1
        assert one.sources[0].source == f"planted-{planted}"
        assert one.sources[0].q_value < 1e-6
        assert (one.towards, one.against) > (5, 0)
        assert one.effect == pytest.approx(one.share * one.consistency)


def test_both_are_found_whatever_the_seed(tmp_path: Path) -> None:
    for seed in range(1, 5):
        case = build_case(tmp_path / str(seed), seed)
        audited = AuditedPairs.open(case.folder)
        config = dataclasses.replace(QUICK, seed=seed)
        for discovery in (
            discover_prompts(audited, case.changed, config).discovery,
            discover_pairs(audited, config).discovery,
        ):
            assert len(discovery.clusters) == 2
            assert adjusted_rand_score(*members(discovery, case)) > 0.7
            assert min(precision(one, case) for one in discovery.clusters) > 0.9


def test_where_nothing_is_planted_at_most_one_seed_of_twenty_reports_anything(tmp_path: Path) -> None:
    reported = {"prompts": 0, "pairs": 0}
    tight = 0
    for seed in range(20):
        case = build_case(tmp_path / str(seed), seed, planted=False, pairs=300)
        audited = AuditedPairs.open(case.folder)
        config = dataclasses.replace(QUICK, seed=seed)
        for mode, one in (
            ("prompts", discover_prompts(audited, case.changed, config).discovery),
            ("pairs", discover_pairs(audited, config).discovery),
        ):
            reported[mode] += bool(one.clusters)
            tight += len(one.rejected)
    assert max(reported.values()) <= 1
    assert tight > 20  # tightness alone would have reported these


def test_prompts_that_changed_only_in_words_nobody_trains_on_are_counted_not_hidden(
    found: dict[str, StoredDiscovery],
) -> None:
    discovery = found["prompts"].discovery
    assert discovery.left_out == {"unchanged": 3}
    assert discovery.fit + discovery.held_out == discovery.items == 120


def test_the_same_seed_finds_the_same(case: Case, found: dict[str, StoredDiscovery]) -> None:
    audited = AuditedPairs.open(case.folder)
    again = discover_pairs(audited, dataclasses.replace(QUICK, map_pairs=60)).discovery
    assert [one.tightness for one in again.clusters] == [one.tightness for one in found["pairs"].discovery.clusters]
    assert again.map == found["pairs"].discovery.map


def test_texts_that_were_not_read_are_missing_and_said_to_be(case: Case) -> None:
    discovery = discover_pairs(AuditedPairs.open(case.folder), QUICK).discovery
    assert all(one.words == () and one.top_pairs[0].chosen == "" for one in discovery.clusters)
    assert "texts of pairs were not read" in discovery.notes[0]


def test_too_few_prompts_are_refused_with_what_is_needed(case: Case) -> None:
    few = dataclasses.replace(
        case.changed, changes=case.changed.changes[:9], items=case.changed.items.take(range(9)), left_out={}
    )
    with pytest.raises(SettingsError, match=r"9 prompts can be compared, but at least 20 are needed"):
        discover_prompts(AuditedPairs.open(case.folder), few, QUICK)


# The numbers


@pytest.mark.parametrize("kind", ["contextual", "response"])
@pytest.mark.parametrize("memory_budget", [2**28, 3000])
def test_row_cosines_are_those_of_the_whole_matrix(kind: Kind, memory_budget: int, tmp_path: Path) -> None:
    store = random_store(tmp_path / "store", pairs=30, layers=(5, 9))
    generator = torch.Generator().manual_seed(3)
    items = Items(*(torch.randn(6, 2, 16, generator=generator) for _ in range(2)))
    rows_of = [_whole_row(store, items, place, kind) for place in range(6)]
    matrix = torch.tensor(rows_of, dtype=torch.float64)
    expected = torch.nn.functional.cosine_similarity(matrix[:, None], matrix[None], dim=2)
    means = context_means(store.view(), (5, 9))
    rows = row_cosines(store.view(), items, (5, 9), kind, means, memory_budget)
    torch.testing.assert_close(rows.cosine.double(), expected, atol=1e-5, rtol=0)


def _whole_row(store: Any, items: Items, place: int, kind: Kind) -> list[float]:
    """The scores of all pairs at both layers, side by side, for one item as a probe of its own."""
    probe = Probe(
        "one", (5, 9), items.vectors[place], 9, MODEL, items.vectors[place : place + 1], items.contexts[place][None]
    )
    return [score for layer in (5, 9) for score in naive_scores(store, probe, Column("one", layer, kind))]


def test_turning_an_item_round_turns_its_cosines_round_and_no_others(case: Case) -> None:
    audited = AuditedPairs.open(case.folder)
    means = context_means(audited.view, [LAYER])
    items = case.changed.items.take(range(20))
    turned = Items(items.vectors.clone(), items.contexts)
    turned.vectors[7] *= -1
    before, after = (row_cosines(audited.view, one, [LAYER], "contextual", means).cosine for one in (items, turned))
    signs = torch.ones(20)
    signs[7] = -1
    assert torch.equal(after, before * signs[:, None] * signs[None])


def test_an_item_without_a_direction_or_context_is_left_out(case: Case) -> None:
    audited = AuditedPairs.open(case.folder)
    items = Items(case.changed.items.vectors.clone(), case.changed.items.contexts.clone())
    items.vectors[0] = 0
    items.contexts[1] = 0
    changed = dataclasses.replace(case.changed, items=items)
    discovery = discover_prompts(audited, changed, QUICK).discovery
    assert discovery.left_out == {"unchanged": 3, "alike to no pair": 2}


def test_the_tightness_of_a_cluster_is_the_mean_cosine_of_its_members() -> None:
    cosine = _grouped(np.random.default_rng(1), sizes=(9, 14, 6), loose=20)
    clusters = candidates(cosine, DiscoveryConfig())
    assert [len(one.members) for one in clusters] == [14, 9, 6]
    for one in clusters:
        inner = cosine[np.ix_(one.members, one.members)]
        assert one.tightness == pytest.approx(inner[np.triu_indices(len(inner), 1)].mean(), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 3), st.integers(3, 60), st.integers(2, 30))
def test_clusters_share_no_member_and_are_large_and_tight(seed: int, pull: float, items: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(items, size)) + pull * np.eye(size)[draw.integers(size, size=items)]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    clusters = candidates(rows @ rows.T, DiscoveryConfig(tightness=0.3, min_size=4))
    everyone = [int(member) for one in clusters for member in one.members]
    assert len(set(everyone)) == len(everyone) <= items
    for one in clusters:
        inner = (rows @ rows.T)[np.ix_(one.members, one.members)]
        assert len(inner) >= 4
        assert inner[np.triu_indices(len(inner), 1)].mean() == pytest.approx(one.tightness, abs=1e-6)
        assert one.tightness > 0.3


def test_two_unrelated_groups_are_two_clusters_though_tight_enough_together() -> None:
    cosine = _grouped(np.random.default_rng(2), sizes=(10, 10), loose=0)
    assert cosine[np.triu_indices(20, 1)].mean() > 0.4
    assert [one.members.tolist() for one in candidates(cosine, DiscoveryConfig())] == [[*range(10)], [*range(10, 20)]]


def _grouped(draw: np.random.Generator, sizes: tuple[int, ...], loose: int) -> Any:
    """Cosines between unit rows: groups around axes of their own, and loose ones."""
    centers = np.eye(40)[: len(sizes)]
    rows = [center + 0.03 * draw.normal(size=(size, 40)) for center, size in zip(centers, sizes, strict=True)]
    rows.append(draw.normal(size=(loose, 40)))
    everything = np.concatenate(rows)
    everything /= np.linalg.norm(everything, axis=1, keepdims=True)
    return everything @ everything.T


def test_a_cluster_is_confirmed_by_the_sign_test_on_held_out_items() -> None:
    cosine = _grouped(np.random.default_rng(3), sizes=(30,), loose=30)
    split = Split(np.arange(0, 60, 2), np.arange(1, 60, 2))
    (one,) = [each for each in find_clusters(cosine, split, DiscoveryConfig()) if each.fault is None]
    assert set(one.towards.tolist()) <= set(range(1, 30, 2))
    assert one.p_value == pytest.approx(
        binomtest(len(one.towards), len(one.towards) + one.against, 0.5, "greater").pvalue
    )


def test_what_half_of_the_held_out_items_contradict_is_not_reported() -> None:
    cosine = _grouped(np.random.default_rng(3), sizes=(40,), loose=30)
    signs = np.ones(70)
    signs[1:40:4] = -1  # every other one of the held-out members
    split = Split(np.arange(0, 70, 2), np.arange(1, 70, 2))
    (one,) = find_clusters(cosine * signs[:, None] * signs[None], split, DiscoveryConfig())
    assert one.fault == "not confirmed"
    assert len(one.towards) == pytest.approx(one.against, abs=2)


def test_halves_share_no_item_and_depend_on_the_seed() -> None:
    places = np.arange(3, 24)
    split, other = split_items(places, 1), split_items(places, 2)
    assert sorted([*split.fit, *split.held_out]) == places.tolist()
    assert len(split.fit) - len(split.held_out) == 1
    assert split.fit.tolist() != other.fit.tolist()


# Words and prompts


def test_keywords_tell_a_group_from_the_others() -> None:
    groups = [
        Group(["The pizza is great", "A great pizza pizza"], ["The soup is great", "Great soup"]),
        Group(["The cat sleeps"], ["The dog is great"]),
    ]
    assert keywords(groups) == [["pizza"], ["cat", "sleeps"]]
    assert keywords(groups, count=1) == [["pizza"], ["cat"]]
    assert keywords([Group(["...", "123"])]) == [[]]


def test_the_text_of_a_message_in_blocks_is_that_of_its_blocks() -> None:
    blocks = [{"type": "text", "text": "a great "}, {"type": "text", "text": "pizza"}]
    asked, said = [{"role": "user", "content": "Eat?"}], [{"role": "assistant", "content": blocks}]
    (pair,) = PairReader([{"prompt": asked, "chosen": said, "rejected": [{"role": "assistant", "content": "Soup"}]}])
    assert excerpt(pair.chosen) == "a great pizza"
    (words,) = pair_words(PairTexts({pair.pair_id: pair}), [[pair.pair_id]], [])
    assert (words.responses, words.lost, words.prompts) == (("great", "pizza"), ("soup",), ("eat",))


def test_equal_prompts_are_one_item_with_all_their_responses() -> None:
    changes = merged(
        [Change("p", ("a",), ("b",), "1"), Change("q", ("a",), ("b",), "2"), Change("p", ("c",), ("d",), "3")]
    )
    assert changes == (Change("p", ("a", "c"), ("b", "d"), "1"), Change("q", ("a",), ("b",), "2"))


def test_a_row_of_responses_may_hold_one_text_or_several(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text('{"prompt": "p", "before": "a", "after": ["b", "c"]}\n')
    (change,) = read_changes(path)
    assert (change.prompt, change.before, change.after) == ("p", ("a",), ("b", "c"))
    path.write_text('{"prompt": "p", "before": "a", "later": "b"}\n')
    with pytest.raises(ProbeError, match=r"responses\.jsonl.*field `after` must be a text or a list of texts"):
        read_changes(path)


# Files


def test_what_is_saved_is_what_is_loaded(found: dict[str, StoredDiscovery], tmp_path: Path) -> None:
    for mode, stored in found.items():
        stored.save(tmp_path / mode)
        loaded = StoredDiscovery.load(tmp_path / mode)
        assert dataclasses.replace(loaded.discovery, vectors_sha256="") == stored.discovery
        assert torch.equal(loaded.heatmap, stored.heatmap)
        for name, one in stored.vectors.items():
            assert torch.equal(loaded.vectors[name].prompt_vectors, one.prompt_vectors)
            assert torch.equal(loaded.vectors[name].vector, one.prompt_vectors.mean(dim=0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "discovery.json").unlink(), "there is no discovery in"),
        (lambda folder: (folder / "discovery.json").write_text("{"), "cannot read"),
        (lambda folder: _changed(folder, format="other"), "holds no discovery"),
        (lambda folder: _changed(folder, format_version=2), "format version 2; this trl-attribution reads up to 1"),
        (lambda folder: _changed(folder, clusters=[{}]), "is broken"),
        (lambda folder: (folder / "vectors.safetensors").write_bytes(b"x"), "is damaged or does not belong"),
    ],
)
def test_a_spoiled_discovery_is_refused(
    spoil: Callable[[Path], object], message: str, found: dict[str, StoredDiscovery], tmp_path: Path
) -> None:
    found["pairs"].save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(StoreError, match=message):
        StoredDiscovery.load(tmp_path)


def _changed(folder: Path, **values: object) -> None:
    path = folder / "discovery.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_hostile_text_reaches_no_terminal(tmp_path: Path) -> None:
    case = build_case(tmp_path / "clean", seed=0)
    hostile = "\x1b[31m$\\frac{$ [bold]\u202e<script>alert(1)</script> 你 \U0001f4a5 _"
    rows = [
        {**pair_row(number, int(kind)), "source": f"{hostile}{number % 2}", "prompt": f"{hostile} {number}"}
        for number, kind in enumerate(case.labels)
    ]
    clean = AuditedPairs.open(case.folder)
    write_audit(
        tmp_path / "audit",
        rows,
        [pair_id(row) for row in rows],
        clean.view.layer(LAYER)[:, None],
        clean.view.context(LAYER)[:, None],
    )
    audited = AuditedPairs.open(tmp_path / "audit")
    read = partial(pairs_at_rows, audited.info.dataset.name, audited.reading)
    stored = discover_pairs(audited, QUICK, read=read, namer=None)
    assert stored.discovery.clusters[0].top_pairs[0].prompt.startswith(hostile)
    console = Console(record=True, width=100, file=(tmp_path / "out.txt").open("w"))
    console.print(discovery_view(stored.discovery))
    text = console.export_text()
    assert "\\x1b[31m$\\frac{$ [bold]\\u202e<script>" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_text_that_is_no_unicode_can_be_saved(found: dict[str, StoredDiscovery], tmp_path: Path) -> None:
    stored = found["pairs"]
    one = dataclasses.replace(stored.discovery.clusters[0], words=("half \ud83d",))
    discovery = dataclasses.replace(stored.discovery, clusters=(one, *stored.discovery.clusters[1:]))
    dataclasses.replace(stored, discovery=discovery).save(tmp_path)
    assert StoredDiscovery.load(tmp_path).discovery.clusters[0].words == ("half \ud83d",)


# Settings


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"tightness": 1.5}, "tightness: 1.5 must lie between 0 and 1"),
        ({"score": "cosine"}, "score: 'cosine' is unknown"),
        ({"min_size": 1}, "min_size: 1 is too small"),
    ],
)
def test_settings_out_of_range_are_refused(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        DiscoveryConfig(**given_)


def test_a_layer_that_is_not_stored_is_refused(case: Case) -> None:
    with pytest.raises(SettingsError, match="layers: 7 must be different layers of those that the audit stored: 5"):
        discover_pairs(AuditedPairs.open(case.folder), DiscoveryConfig(layers=(7,)))


def test_an_audit_whose_dataset_is_gone_needs_it_again(case: Case, tmp_path: Path) -> None:
    other = build_case(tmp_path / "audit", seed=3, pairs=100)
    (tmp_path / "audit.jsonl").rename(tmp_path / "moved.jsonl")
    with pytest.raises(AttributionError, match=r"audit\.jsonl: no such file"):
        AuditedPairs.open(other.folder)
    assert AuditedPairs.open(other.folder, tmp_path / "moved.jsonl").pair_ids == other.pair_ids
    with pytest.raises(SettingsError, match=r"audited 100 pairs, but \d+ of them were found"):
        AuditedPairs.open(other.folder, AuditedPairs.open(case.folder).info.dataset.name)
