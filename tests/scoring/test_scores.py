"""Scores: equal to the definition, whatever the blocks, with signs that can be trusted."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.scoring_cases import HIDDEN, MODEL, ids, naive_scores, random_probe, random_store, store_of
from trl_attribution.errors import AttributionError, ProbeError, SettingsError, StoreError
from trl_attribution.probes.probe import Probe
from trl_attribution.scoring import Column, context_means, score_view
from trl_attribution.store import VectorBlock, VectorStore


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    return random_store(tmp_path / "vectors")


def test_scores_equal_the_definition_for_several_probes_layers_and_kinds(store: VectorStore, tmp_path: Path) -> None:
    probes = [random_probe("a", prompts=4), random_probe("b", prompts=0, seed=3), random_probe("c", (9,), 1, seed=4)]
    scores = score_view(store.view(), probes, scratch=tmp_path)
    assert scores.columns == (
        Column("a", 5, "contextual"),
        Column("a", 9, "contextual"),
        Column("b", 5, "response"),
        Column("b", 9, "response"),
        Column("c", 9, "contextual"),
    )
    for column in scores.columns:
        probe = next(probe for probe in probes if probe.name == column.probe)
        np.testing.assert_allclose(scores.of(column), naive_scores(store, probe, column), atol=2e-7)
    assert scores.pair_ids.to_pylist() == ids(40)


def test_the_contextual_score_differs_from_the_response_score_of_the_same_probe(store: VectorStore) -> None:
    probe = random_probe()
    response = score_view(store.view(), [probe], "response", layers=[9])
    assert response.columns == (Column("insults", 9, "response"),)
    np.testing.assert_allclose(
        response.of(response.columns[0]), naive_scores(store, probe, response.columns[0]), atol=2e-7
    )
    contextual = score_view(store.view(), [probe], "contextual", layers=[9])
    assert np.abs(contextual.of(contextual.columns[0]) - response.of(response.columns[0])).max() > 0.01


@pytest.mark.parametrize("budget", [1, 3_000, 20_000, 2**28])
def test_scores_do_not_depend_on_the_memory_budget(store: VectorStore, budget: int) -> None:
    probes = [random_probe("a"), random_probe("b", prompts=0, seed=3), random_probe("c", prompts=9, seed=4)]
    scores = score_view(store.view(), probes, memory_budget=budget)
    for column in scores.columns:
        probe = next(probe for probe in probes if probe.name == column.probe)
        np.testing.assert_allclose(scores.of(column), naive_scores(store, probe, column), atol=2e-7)


def test_a_small_budget_means_small_blocks_and_more_passes(store: VectorStore) -> None:
    probes = [random_probe("a"), random_probe("b", prompts=9, seed=4)]
    small, large = _Watched(store), _Watched(store)
    score_view(small, probes, memory_budget=1)
    score_view(large, probes)
    assert (set(small.sizes), small.passes) == ({1}, 1 + 4)
    assert (set(large.sizes), large.passes) == ({40}, 1 + 1)


def test_flipping_pairs_negates_their_scores_exactly_and_no_others(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pair, context = (torch.randn(30, 2, HIDDEN, generator=generator) for _ in range(2))
    flipped = pair.clone()
    flipped[::3] = -flipped[::3]
    probes = [random_probe("a"), random_probe("b", prompts=0)]
    before = score_view(store_of(tmp_path / "a", pair, context, (5, 9)).view(), probes)
    after = score_view(store_of(tmp_path / "b", flipped, context, (5, 9)).view(), probes)
    for column in before.columns:
        expected = np.array(before.of(column))
        assert np.count_nonzero(expected[::3]) >= 3
        expected[::3] = -expected[::3]
        np.testing.assert_array_equal(after.of(column), expected)


def test_a_pair_that_points_along_the_probe_scores_one_and_its_opposite_minus_one(tmp_path: Path) -> None:
    probe = random_probe(prompts=0)
    pair = torch.stack([probe.vector, -probe.vector, 0.001 * probe.vector])
    scores = score_view(store_of(tmp_path / "v", pair, pair, (5, 9)).view(), [probe])
    for column in scores.columns:
        np.testing.assert_allclose(scores.of(column), [1, -1, 1], atol=1e-6)
        assert np.abs(scores.of(column)).max() <= 1


def test_a_pair_like_the_behavior_in_response_and_context_scores_one(tmp_path: Path) -> None:
    probe = random_probe(prompts=1)
    assert probe.contexts is not None
    mean = torch.zeros(HIDDEN)
    pair = torch.stack([probe.vector, probe.vector])
    context = torch.stack([probe.contexts[0], -probe.contexts[0]])
    view = store_of(tmp_path / "v", pair, context, (5, 9)).view()
    scores = score_view(view, [probe], layers=[5], context_means={5: mean})
    np.testing.assert_allclose(scores.of(scores.columns[0]), [1, 0], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e30])
def test_the_length_of_pair_and_behavior_vectors_does_not_matter(tmp_path: Path, scale: float) -> None:
    probes = [random_probe("a"), random_probe("b", prompts=0)]
    store = random_store(tmp_path / "a")
    plain = score_view(store.view(), probes)
    pair = torch.stack([store.layer(layer) for layer in (5, 9)], dim=1) * scale
    context = torch.stack([store.context(layer) for layer in (5, 9)], dim=1)
    longer = [
        replace(probe, vector=probe.vector * scale, prompt_vectors=_scaled(probe.prompt_vectors, scale))
        for probe in probes
    ]
    scaled = score_view(store_of(tmp_path / "b", pair, context, (5, 9)).view(), longer)
    for column in plain.columns:
        np.testing.assert_allclose(scaled.of(column), plain.of(column), atol=2e-7)


def test_moving_all_contexts_by_one_vector_changes_nothing(tmp_path: Path) -> None:
    probe = random_probe()
    store = random_store(tmp_path / "a")
    assert probe.contexts is not None
    shift = torch.full((HIDDEN,), 2.5)
    pair = torch.stack([store.layer(layer) for layer in (5, 9)], dim=1)
    context = torch.stack([store.context(layer) for layer in (5, 9)], dim=1) + shift
    plain = score_view(store.view(), [probe])
    moved = score_view(
        store_of(tmp_path / "b", pair, context, (5, 9)).view(), [replace(probe, contexts=probe.contexts + shift)]
    )
    for column in plain.columns:
        np.testing.assert_allclose(moved.of(column), plain.of(column), atol=2e-6)


def test_zero_pairs_and_missing_contexts_score_zero_and_are_counted(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pair, context = (torch.randn(12, 2, HIDDEN, generator=generator) for _ in range(2))
    pair[3, 0] = 0
    context[[5, 7], 1] = 0
    store = store_of(tmp_path / "v", pair, context, (5, 9))
    probes = [random_probe("a"), random_probe("b", prompts=0)]
    scores = score_view(store.view(), probes)
    assert scores.zero_pairs == {5: 1, 9: 0}
    assert scores.no_context == {5: 0, 9: 2}
    assert np.flatnonzero(scores.of(Column("a", 5, "contextual")) == 0)[0] == 3
    assert set(np.flatnonzero(scores.of(Column("a", 9, "contextual")) == 0)) >= {5, 7}
    assert (scores.of(Column("b", 9, "response"))[[5, 7]] != 0).all()
    np.testing.assert_allclose(
        scores.of(Column("a", 9, "contextual")),
        naive_scores(store, probes[0], Column("a", 9, "contextual")),
        atol=2e-7,
    )


def test_pairs_without_context_are_counted_over_all_passes(tmp_path: Path) -> None:
    context = torch.randn(6, 1, HIDDEN, generator=torch.Generator().manual_seed(0))
    context[[1, 4]] = 0
    store = store_of(tmp_path / "v", torch.ones(6, 1, HIDDEN), context, (5,))
    probes = [random_probe("a", (5,), layer=5), random_probe("b", (5,), prompts=0, layer=5)]
    watched = _Watched(store)
    assert score_view(watched, probes, memory_budget=1).no_context == {5: 2}
    assert watched.passes == 1 + 2


def test_pairs_that_share_one_prompt_have_no_context_of_their_own(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(11, 1, HIDDEN, generator=generator)
    context = torch.randn(1, 1, HIDDEN, generator=generator).expand(11, 1, HIDDEN)
    scores = score_view(store_of(tmp_path / "v", pair, context, (5,)).view(), [random_probe(layers=(5,), layer=5)])
    assert scores.no_context == {5: 11}
    assert not scores.of(scores.columns[0]).any()


def test_the_context_mean_can_be_given_and_is_the_one_that_is_kept(store: VectorStore) -> None:
    means = context_means(store.view(), [5, 9])
    torch.testing.assert_close(means[9], store.context(9).double().mean(dim=0).float())
    half = store.select(ids(20))
    with_all = score_view(half, [random_probe()], context_means=means)
    column = Column("insults", 9, "contextual")
    whole = score_view(store.view(), [random_probe()])
    np.testing.assert_allclose(with_all.of(column), whole.of(column)[:20], atol=2e-7)
    torch.testing.assert_close(with_all.context_means[9], means[9])
    own = score_view(half, [random_probe()])
    assert np.abs(own.of(column) - with_all.of(column)).max() > 0.001


def test_scoring_twice_gives_the_same_bits(store: VectorStore) -> None:
    first, second = (score_view(store.view(), [random_probe()]) for _ in range(2))
    for column in first.columns:
        np.testing.assert_array_equal(first.of(column), second.of(column))


def test_float16_stores_score_like_their_float32_originals(tmp_path: Path) -> None:
    store = random_store(tmp_path / "a")
    small = VectorStore.create(tmp_path / "b", replace(store.settings, vector_dtype="float16"))
    with small.writer() as writer:
        vectors = [torch.stack([read(layer) for layer in (5, 9)], dim=1) for read in (store.layer, store.context)]
        writer.add(store.pair_ids, *vectors)
    exact, rounded = (score_view(each.view(), [random_probe()]) for each in (store, small))
    for column in exact.columns:
        np.testing.assert_allclose(rounded.of(column), exact.of(column), atol=2e-3)


def test_an_empty_view_gives_empty_columns(store: VectorStore) -> None:
    scores = score_view(store.select([]), [random_probe()])
    assert len(scores) == 0
    assert scores.of(scores.columns[0]).shape == (0,)
    assert scores.zero_pairs == {5: 0, 9: 0}


def test_progress_counts_every_pass_to_its_end(store: VectorStore) -> None:
    seen: list[tuple[int, int]] = []
    score_view(store.view(), [random_probe()], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (80, 80)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_scratch_folder_holds_no_file_during_or_after_use(store: VectorStore, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scores = score_view(store.view(), [random_probe()], scratch=scratch)
    assert isinstance(scores.of(scores.columns[0]), np.memmap)
    assert list(scratch.iterdir()) == []


def test_a_full_disk_is_reported_before_any_vector_is_read(
    store: VectorStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    view = _Watched(store)
    with pytest.raises(AttributionError, match=r"scratch folder .*No space left"):
        score_view(view, [random_probe()], scratch=tmp_path)
    assert view.passes == 0


def test_a_scratch_folder_that_is_a_file_is_reported(store: VectorStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(AttributionError, match=r"scratch folder .*file"):
        score_view(store.view(), [random_probe()], scratch=tmp_path / "file")


def test_the_column_of_a_probe_is_its_own_layer_or_the_only_one(store: VectorStore) -> None:
    probe = random_probe(layer=9)
    assert score_view(store.view(), [probe]).column("insults").layer == 9
    assert score_view(store.view(), [probe], layers=[5]).column("insults").layer == 5
    assert score_view(store.view(), [probe]).column("insults", 5).layer == 5


def test_several_scored_layers_without_the_probes_own_ask_for_a_choice(tmp_path: Path) -> None:
    store = random_store(tmp_path / "v", layers=(5, 9, 12))
    scores = score_view(store.view(), [random_probe(layers=(5, 9, 12), layer=12)], layers=[5, 9])
    with pytest.raises(SettingsError, match=r"layer 12.*5, 9"):
        scores.column("insults")
    with pytest.raises(SettingsError, match=r"'other'.*insults"):
        scores.column("other")


def test_reference_scores_belong_to_a_column_only_when_their_kind_fits(store: VectorStore) -> None:
    reference = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    probe = replace(random_probe(), reference_scores=reference, built={"calibration": {"kind": "contextual"}})
    with pytest.raises(ProbeError, match=r"'insults' was calibrated by an earlier version.*calibrate it again"):
        score_view(store.view(), [probe])
    probe = replace(probe, reference_center=torch.zeros_like(probe.vector))
    contextual = score_view(store.view(), [probe])
    np.testing.assert_allclose(contextual.references[Column("insults", 9, "contextual")], [0.4, 0.5, 0.6])
    assert score_view(store.view(), [probe], "response").references == {}
    assert score_view(store.view(), [replace(probe, built={})]).references == {}


def test_vectors_that_are_not_finite_name_their_pairs(store: VectorStore) -> None:
    for broken in (float("nan"), float("inf")):
        for part in ("pair", "context"):
            with pytest.raises(StoreError, match=rf"1 pairs.*{ids(40)[17]}"):
                score_view(_Watched(store, break_row=17, part=part, value=broken), [random_probe()])


def test_an_unknown_kind_is_refused_with_the_choices(store: VectorStore) -> None:
    with pytest.raises(SettingsError, match=r"'cosine'.*auto, contextual, response"):
        score_view(store.view(), [random_probe()], "cosine")  # type: ignore[arg-type]


def test_contextual_scores_for_a_probe_without_prompts_are_refused(store: VectorStore) -> None:
    with pytest.raises(ProbeError, match=r"'insults' does not know its prompts.*response"):
        score_view(store.view(), [random_probe(prompts=0)], "contextual")


def test_no_probes_and_repeated_names_are_refused(store: VectorStore) -> None:
    with pytest.raises(SettingsError, match="no probes"):
        score_view(store.view(), [])
    with pytest.raises(SettingsError, match="insults, insults"):
        score_view(store.view(), [random_probe(), random_probe(seed=5)])


def test_a_layer_that_is_not_stored_is_refused_with_those_that_are(store: VectorStore) -> None:
    with pytest.raises(SettingsError, match="layer 20: the store holds layer 5, 9"):
        score_view(store.view(), [random_probe()], layers=[5, 20])


def test_a_probe_without_any_of_the_layers_is_refused_with_both(store: VectorStore) -> None:
    with pytest.raises(SettingsError, match=r"'insults' has layer 12.*layer 5, 9"):
        score_view(store.view(), [random_probe(layers=(12,), layer=12)])


def test_a_probe_of_another_hidden_size_is_refused(store: VectorStore) -> None:
    probe = Probe("small", (5,), torch.ones(1, 8), 5, MODEL)
    with pytest.raises(ProbeError, match=r"size 8.*size 16"):
        score_view(store.view(), [probe])


def test_a_probe_whose_prompts_cannot_be_used_is_refused(store: VectorStore) -> None:
    probe = random_probe()
    assert probe.contexts is not None
    without = replace(probe, contexts=torch.zeros_like(probe.contexts))
    with pytest.raises(ProbeError, match="no prompt with both"):
        score_view(store.view(), [without])


def test_a_prompt_without_context_counts_as_no_similarity(store: VectorStore) -> None:
    probe = random_probe(prompts=2)
    assert probe.contexts is not None
    assert probe.prompt_vectors is not None
    contexts = probe.contexts.clone()
    contexts[1] = 0
    half = score_view(store.view(), [replace(probe, contexts=contexts)])
    alone = replace(probe, contexts=probe.contexts[:1], prompt_vectors=probe.prompt_vectors[:1])
    one = score_view(store.view(), [alone])
    column = Column("insults", 9, "contextual")
    np.testing.assert_allclose(half.of(column), np.array(one.of(column)) / 2, atol=1e-7)


def _scaled(vectors: torch.Tensor | None, scale: float) -> torch.Tensor | None:
    return None if vectors is None else vectors * scale


class _Watched:
    """A store's view that records how it is read, and can spoil one row of what it gives."""

    def __init__(self, store: VectorStore, break_row: int | None = None, part: str = "pair", value: float = 0) -> None:
        self._view = store.view()
        self.pair_ids, self.layers, self.hidden_size = self._view.pair_ids, self._view.layers, self._view.hidden_size
        self.sizes: list[int] = []
        self.passes = 0
        self._break = (break_row, part, value)

    def __len__(self) -> int:
        return len(self._view)

    def blocks(self, layers, size):  # type: ignore[no-untyped-def]
        self.passes += 1
        row, part, value = self._break
        for block in self._view.blocks(layers, size):
            self.sizes.append(len(block.pair))
            # The mean of the contexts is taken first: a spoiled row is met where scores are made.
            if row is not None and block.start <= row < block.start + len(block.pair):
                getattr(block, part)[row - block.start, 0, 0] = value
            yield VectorBlock(block.start, block.pair, block.context)
