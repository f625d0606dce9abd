"""Flags and per-source tables, and the file that keeps every score."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import fisher_exact

from tests.scoring_cases import HIDDEN, MODEL, ids, random_probe, random_store, scores_of, store_of
from trl_attribution.errors import AttributionError, SettingsError, StoreError
from trl_attribution.probes.probe import Probe
from trl_attribution.scoring import (
    DEFAULT_RULE,
    Column,
    Rule,
    ScoreTable,
    SourceRow,
    calibrate,
    flag,
    power_notes,
    score_view,
    source_table,
    write_scores,
)
from trl_attribution.scoring.columns import ColumnFile
from trl_attribution.scoring.protocols import VectorViewLike
from trl_attribution.store import VectorBlock


def test_top_k_takes_the_highest_scores_in_order(tmp_path: Path) -> None:
    scores = scores_of({"a": [0.1, 0.7, -0.2, 0.4]}, tmp_path)
    flags = flag(scores, Rule(top_k=2))
    assert [(pair.position, pair.rank, pair.probe, pair.layer, pair.kind) for pair in flags] == [
        (1, 1, "a", 5, "response"),
        (3, 2, "a", 5, "response"),
    ]
    np.testing.assert_allclose([pair.score for pair in flags], [0.7, 0.4], atol=1e-6)
    names = ids(4)
    assert flags.pair_ids == (names[1], names[3])


def test_equal_scores_are_flagged_in_dataset_order(tmp_path: Path) -> None:
    scores = scores_of({"a": [0.25, 0.5, 0.5, 0.5]}, tmp_path)
    assert flag(scores, Rule(top_k=2)).positions.tolist() == [1, 2]


def test_threshold_flags_every_pair_that_scores_at_least_it(tmp_path: Path) -> None:
    scores = scores_of({"a": [0.25, 0.5, -0.5, 0.75]}, tmp_path)
    exact = float(scores.of(scores.columns[0])[1])
    assert flag(scores, Rule(threshold=exact)).positions.tolist() == [3, 1]
    assert len(flag(scores, Rule(threshold=1))) == 0


def test_fdr_flags_the_pairs_whose_q_value_is_low_enough(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0, 0.1, 400), random.normal(0.6, 0.05, 60)])
    flags = flag(scores_of({"a": values}, tmp_path), Rule(fdr=0.1))
    assert set(flags.positions) >= set(range(400, 460))
    assert len(flags) < 75
    assert flags.q_value.max() <= 0.1
    assert flags.nulls == {"a": "mirror"}


def test_fdr_uses_the_probes_clean_pairs_where_it_has_some(tmp_path: Path) -> None:
    axis = torch.eye(2)[:1]
    values = torch.tensor([0.3] * 20 + [0.6] * 20)
    pair = torch.stack([values, (1 - values.square()).sqrt()], dim=1).unsqueeze(1)
    view = store_of(tmp_path / "v", pair, torch.zeros_like(pair), (5,)).view()
    clean = torch.linspace(0.1, 0.5, 500).unsqueeze(0)
    calibrated = Probe("a", (5,), axis, 5, MODEL, built={"calibration": {"kind": "response"}}, reference_scores=clean)
    flags = flag(score_view(view, [calibrated]), Rule(fdr=0.05))
    assert flags.nulls == {"a": "reference"}
    assert sorted(flags.positions) == list(range(20, 40))
    assert len(flag(score_view(view, [Probe("a", (5,), axis, 5, MODEL)]), Rule(fdr=0.05))) == 40


def test_with_several_probes_top_k_takes_distinct_pairs_by_their_best_rank(tmp_path: Path) -> None:
    columns = {"a": [0.6, 0.5, 0.1, 0.0, 0.2], "b": [0.7, 0.1, 0.65, 0.0, 0.2]}
    flags = flag(scores_of(columns, tmp_path), Rule(top_k=3))
    # Pair 0 is first for both and scores higher for b; pairs 1 and 2 are second for a and b: the higher score leads.
    assert [(pair.position, pair.probe, pair.rank) for pair in flags] == [(0, "b", 1), (2, "b", 2), (1, "a", 2)]
    np.testing.assert_allclose(flags.pair_scores, [0.7, 0.5, 0.65, 0.0, 0.2], atol=1e-6)


def test_one_of_several_probes_can_be_flagged_alone(tmp_path: Path) -> None:
    columns = {"a": [0.6, 0.5, 0.1], "b": [0.1, 0.1, 0.65]}
    scores = scores_of(columns, tmp_path)
    assert flag(scores, Rule(top_k=2), probe="a").positions.tolist() == [0, 1]
    with pytest.raises(SettingsError, match="'c': scored probes are a, b"):
        flag(scores, Rule(top_k=2), probe="c")


def test_a_pair_is_listed_under_a_probe_whose_score_passes_the_rule(tmp_path: Path) -> None:
    """Probe a ranks pair 0 first with a score below the threshold; b ranks it second with one above."""
    columns = {"a": [0.2, 0.1, 0.0], "b": [0.5, 0.6, 0.0]}
    flags = flag(scores_of(columns, tmp_path), Rule(threshold=0.4))
    assert [(pair.position, pair.probe, pair.rank) for pair in flags] == [(1, "b", 1), (0, "b", 2)]


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("rule", [Rule(top_k=3), Rule(threshold=-0.5)])
def test_a_probe_that_scores_a_pair_positive_lists_it_before_one_that_does_not(
    rule: Rule, order: str, tmp_path: Path
) -> None:
    """All of probe a's scores are negative: it ranks pair 0 first, yet b is the one that pair 0 pushes towards."""
    columns = {"a": [-0.1, -0.2, -0.3], "b": [0.3, 0.5, -0.4]}
    flags = flag(scores_of({name: columns[name] for name in order}, tmp_path), rule)
    assert [(pair.position, pair.probe, pair.rank) for pair in flags] == [(1, "b", 1), (0, "b", 2), (2, "a", 3)]
    np.testing.assert_allclose(flags.pair_scores, [0.3, 0.5, -0.3], atol=1e-6)
    assert flags.not_towards == 1


def test_a_pair_that_the_dataset_holds_twice_is_flagged_once(tmp_path: Path) -> None:
    store = random_store(tmp_path / "v")
    names = ids(40)
    scores = score_view(store.select([*names[:5], *names[:5]]), [random_probe(prompts=0)], layers=[5])
    assert len(set(flag(scores, Rule(top_k=4)).pair_ids)) == 4
    assert len(flag(scores, Rule(threshold=-1))) == 5


def test_flags_are_taken_at_the_probes_own_layer_unless_told(tmp_path: Path) -> None:
    scores = score_view(random_store(tmp_path / "v").view(), [random_probe(layer=9)])
    assert flag(scores, Rule(top_k=3)).columns == (Column("insults", 9, "contextual"),)
    assert flag(scores, Rule(top_k=3), layer=5).columns == (Column("insults", 5, "contextual"),)
    with pytest.raises(SettingsError, match=r"layer 7.*5, 9"):
        flag(scores, Rule(top_k=3), layer=7)


def test_flagged_pairs_that_do_not_push_towards_the_behavior_are_counted(tmp_path: Path) -> None:
    flags = flag(scores_of({"a": [0.5, -0.5, -0.1, 0.0]}, tmp_path), Rule(top_k=3))
    assert flags.not_towards == 2


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "exactly one of top_k, threshold, fdr and recall; given: none"),
        ({"top_k": 5, "fdr": 0.1}, "given: top_k, fdr"),
        ({"top_k": 5, "fdr": 0.1, "recall": 0.9}, "given: top_k, fdr, recall"),
        ({"fdr": 0.05, "recall": 1.5}, "recall must lie between 0 and 1"),
        ({"top_k": 0}, "at least 1, not 0"),
        ({"top_k": 2.5}, "whole number, not 2.5"),
        ({"top_k": True}, "whole number, not True"),
        ({"threshold": 1.5}, "between -1 and 1"),
        ({"threshold": math.nan}, "between -1 and 1"),
        ({"fdr": 0.0}, "between 0 and 1"),
        ({"fdr": 5}, "between 0 and 1"),
        ({"fdr": "0.1"}, "must be a number"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Rule(**rule)


def test_a_threshold_of_zero_is_a_rule() -> None:
    assert Rule(threshold=0.0).as_dict() == {"threshold": 0.0}


def test_top_k_above_the_number_of_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"top_k 5 .*\(4\)"):
        flag(scores_of({"a": [0.1, 0.2, 0.3, 0.4]}, tmp_path), Rule(top_k=5))


def test_the_source_table_puts_the_source_of_the_flagged_pairs_first(tmp_path: Path) -> None:
    flags = flag(scores_of({"a": [0.1, 0.7, 0.2, 0.6, 0.3, 0.0]}, tmp_path), Rule(top_k=2))
    rows = source_table(flags, ["web", "bad", "web", "bad", "chat", "web"])
    assert [(row.source, row.pairs, row.flagged, row.share) for row in rows] == [
        ("bad", 2, 2, 1.0),
        ("chat", 1, 0, 0.0),
        ("web", 3, 0, 0.0),
    ]
    assert rows[0].mean_score == pytest.approx(0.65, abs=1e-6)
    assert rows[0].p_value == pytest.approx(1 / 15)
    assert rows[0].q_value == pytest.approx(3 / 15)
    assert rows[0].enrichment == math.inf
    assert rows[1].enrichment == 0


def test_source_p_values_are_fishers_exact_test(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    flags = flag(scores_of({"a": random.uniform(-0.9, 0.9, 90)}, tmp_path), Rule(top_k=20))
    sources = random.choice(["one", "two", "three"], 90).tolist()
    for row in source_table(flags, sources):
        others, others_flagged = 90 - row.pairs, 20 - row.flagged
        table = [[row.flagged, row.pairs - row.flagged], [others_flagged, others - others_flagged]]
        assert row.p_value == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
        assert row.enrichment == pytest.approx((row.flagged / row.pairs) / (others_flagged / others))


def test_source_rows_are_strict_json(tmp_path: Path) -> None:
    flags = flag(scores_of({"a": [0.1, 0.7, 0.2]}, tmp_path), Rule(top_k=1))
    rows = [row.as_json() for row in source_table(flags, ["x", "y", "x"])]
    assert json.loads(json.dumps(rows, allow_nan=False))[0]["enrichment"] == "inf"


def test_one_source_alone_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    flags = flag(scores_of({"a": [0.1, 0.7, 0.2]}, tmp_path), Rule(top_k=1))
    (row,) = source_table(flags, ["all"] * 3)
    assert isinstance(row, SourceRow)
    assert (row.enrichment, row.p_value, row.flagged) == (None, 1.0, 1)


def test_no_flagged_pairs_leave_every_source_without_evidence(tmp_path: Path) -> None:
    flags = flag(scores_of({"a": [0.1, 0.7, 0.2]}, tmp_path), Rule(threshold=0.99))
    rows = source_table(flags, ["x", "y", "x"])
    assert [(row.source, row.enrichment, row.p_value) for row in rows] == [("x", None, 1.0), ("y", None, 1.0)]


@pytest.mark.parametrize("wrap", [list, pa.array, lambda sources: pa.chunked_array([sources[:2], sources[2:]])])
def test_sources_may_be_arrow_arrays_of_any_encoding(tmp_path: Path, wrap: Any) -> None:
    flags = flag(scores_of({"a": [0.1, 0.7, 0.2]}, tmp_path), Rule(top_k=1))
    expected = source_table(flags, ["x", "y", "x"])
    given = wrap(["x", "y", "x"])
    assert source_table(flags, given) == expected
    if not isinstance(given, list):
        assert source_table(flags, given.dictionary_encode()) == expected


def test_sources_of_another_length_are_refused(tmp_path: Path) -> None:
    flags = flag(scores_of({"a": [0.1, 0.7, 0.2]}, tmp_path), Rule(top_k=1))
    with pytest.raises(SettingsError, match="2 sources were given for 3"):
        source_table(flags, ["x", "y"])


@pytest.fixture
def table(tmp_path: Path) -> tuple[ScoreTable, Any]:
    probes = [random_probe("a"), random_probe("b", (9,), prompts=0)]
    scores = score_view(random_store(tmp_path / "v").view(), probes, scratch=tmp_path)
    path = write_scores(tmp_path / "scores.parquet", scores, ["web", "chat"] * 20, rows=range(100, 140))
    return ScoreTable.open(path), scores


def test_the_score_table_reads_back_what_was_written(table: tuple[ScoreTable, Any]) -> None:
    stored, scores = table
    assert stored.columns == scores.columns
    assert (stored.pairs, stored.nulls) == (40, ("mirror",) * 3)
    for column, rows in stored:
        worth = calibrate(np.array(scores.of(column)))
        read = rows.to_pydict()
        assert read["pair_id"] == ids(40)
        assert read["row"] == list(range(100, 140))
        assert read["source"] == ["web", "chat"] * 20
        assert (set(read["probe"]), set(read["layer"]), set(read["kind"])) == (
            {column.probe},
            {column.layer},
            {column.kind},
        )
        np.testing.assert_array_equal(np.float32(read["score"]), scores.of(column))
        for name in ("rank", "percentile", "p_value", "q_value"):
            np.testing.assert_array_equal(read[name], getattr(worth, name))


def test_any_parquet_reader_finds_one_row_group_per_probe_and_layer(table: tuple[ScoreTable, Any]) -> None:
    stored, _ = table
    parquet = pq.ParquetFile(stored.path)
    assert [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)] == [40, 40, 40]
    assert parquet.schema_arrow.names == [
        "pair_id", "row", "source", "probe", "layer", "kind", "score", "rank", "percentile", "p_value", "q_value",
    ]  # fmt: skip
    best = pq.read_table(stored.path, filters=[("probe", "=", "b"), ("rank", "=", 1)])
    assert best.num_rows == 1


def test_one_column_and_some_fields_can_be_read_alone(table: tuple[ScoreTable, Any]) -> None:
    stored, scores = table
    column = Column("b", 9, "response")
    rows = stored.read(column, ["score"])
    assert rows.column_names == ["score"]
    np.testing.assert_array_equal(rows["score"].to_numpy(), scores.of(column))
    with pytest.raises(SettingsError, match=r"no contextual scores of 'b' at layer 9; it has a at layer 5"):
        stored.read(Column("b", 9, "contextual"))
    with pytest.raises(SettingsError, match=r"no field scroe.*score"):
        stored.read(column, ["scroe"])


def test_more_pairs_than_arrows_default_row_group_stay_in_one_group(tmp_path: Path) -> None:
    count = 1_100_000
    view = _Repeated(count)
    scores = score_view(view, [Probe("a", (5,), torch.ones(1, 2), 5, MODEL)], scratch=tmp_path)
    names = pa.array(np.zeros(count, dtype=np.int32))
    sources = pa.DictionaryArray.from_arrays(names, pa.array(["web"]))
    stored = ScoreTable.open(write_scores(tmp_path / "scores.parquet", scores, sources))
    assert stored.pairs == count
    assert pq.ParquetFile(stored.path).num_row_groups == 1


def test_writing_the_same_scores_twice_gives_the_same_bytes(table: tuple[ScoreTable, Any], tmp_path: Path) -> None:
    stored, scores = table
    again = write_scores(tmp_path / "again.parquet", scores, pa.array(["web", "chat"] * 20), rows=range(100, 140))
    assert again.read_bytes() == stored.path.read_bytes()


def test_an_empty_score_table_is_a_table(tmp_path: Path) -> None:
    scores = score_view(random_store(tmp_path / "v").select([]), [random_probe()])
    stored = ScoreTable.open(write_scores(tmp_path / "scores.parquet", scores, []))
    assert stored.pairs == 0
    assert [rows.num_rows for _, rows in stored] == [0, 0]


def test_sources_or_rows_of_another_length_write_nothing(table: tuple[ScoreTable, Any], tmp_path: Path) -> None:
    _, scores = table
    target = tmp_path / "new" / "scores.parquet"
    with pytest.raises(SettingsError, match="3 sources were given for 40"):
        write_scores(target, scores, ["x"] * 3)
    with pytest.raises(SettingsError, match="2 rows were given for 40"):
        write_scores(target, scores, ["x"] * 40, rows=[1, 2])
    assert not target.parent.exists()


def test_an_interrupted_write_leaves_the_old_table_and_nothing_else(
    table: tuple[ScoreTable, Any], tmp_path: Path
) -> None:
    stored, scores = table
    before, files = stored.path.read_bytes(), sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        write_scores(stored.path, replace(scores, file=_Interrupted(3, 40)), ["x"] * 40)
    assert stored.path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == files


def test_a_target_that_cannot_be_written_is_reported(table: tuple[ScoreTable, Any], tmp_path: Path) -> None:
    _, scores = table
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(AttributionError, match=r"cannot write .*taken"):
        write_scores(tmp_path / "taken", scores, ["x"] * 40)
    assert not list(tmp_path.glob("*.part"))


def test_an_absent_or_truncated_score_table_is_refused_by_name(table: tuple[ScoreTable, Any], tmp_path: Path) -> None:
    stored, _ = table
    with pytest.raises(StoreError, match=r"no score table at .*nowhere\.parquet"):
        ScoreTable.open(tmp_path / "nowhere.parquet")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(stored.path.read_bytes()[:-200])
    with pytest.raises(StoreError, match=r"cut\.parquet cannot be read"):
        ScoreTable.open(cut)


def test_a_foreign_parquet_file_is_no_score_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(StoreError, match=r"other\.parquet is a Parquet file, but not a score table"):
        ScoreTable.open(tmp_path / "other.parquet")


def test_a_newer_score_table_is_refused_by_version(table: tuple[ScoreTable, Any], tmp_path: Path) -> None:
    stored, _ = table
    rows = pq.read_table(stored.path)
    header = {"format": "trl-attribution scores", "format_version": 2, "rewritten": True}
    newer = rows.replace_schema_metadata({b"trl_attribution": json.dumps(header).encode()})
    pq.write_table(newer, tmp_path / "newer.parquet")
    with pytest.raises(StoreError, match=r"newer\.parquet has format version 2; .*reads up to 1"):
        ScoreTable.open(tmp_path / "newer.parquet")


class _Interrupted(ColumnFile):
    """Scores whose second column is never read to its end."""

    def read(self, column: int) -> npt.NDArray[np.float32]:
        if column == 1:
            raise KeyboardInterrupt
        return super().read(column)


class _Repeated:
    """A view of one vector many times over, for a size that a test cannot store."""

    layers, hidden_size = (5,), 2

    def __init__(self, count: int) -> None:
        self._count = count
        self.pair_ids = ids(1) * count

    def __len__(self) -> int:
        return self._count

    def blocks(self, layers, size):  # type: ignore[no-untyped-def]
        for start in range(0, self._count, size):
            rows = torch.ones(min(size, self._count - start), len(layers), self.hidden_size)
            yield VectorBlock(start, rows, rows)


def contaminated_view(folder: Path, contaminated: int) -> tuple[VectorViewLike, Probe]:
    """A store whose first pairs are like those of a probe's prompts, and the others like nothing."""
    generator = torch.Generator().manual_seed(3)
    axis, where = torch.zeros(HIDDEN), torch.zeros(HIDDEN)
    axis[0], where[1] = 1.0, 4.0

    def noise(count: int) -> torch.Tensor:
        return 0.25 * torch.randn(count, 1, HIDDEN, generator=generator)

    pair = torch.cat([noise(contaminated) + axis, noise(200)])
    context = torch.cat([noise(contaminated) + where, noise(200) - where])
    vectors, contexts = noise(20) + axis, noise(20) + where
    probe = Probe("insults", (5,), vectors.mean(dim=0), 5, MODEL, vectors, contexts)
    known = replace(probe, example_vectors=noise(20) + axis, example_prompts=torch.arange(20))
    return store_of(folder, pair, context, (5,)).view(), known


def test_a_recall_flags_that_share_and_says_how_many_there_are(tmp_path: Path) -> None:
    view, probe = contaminated_view(tmp_path / "v", 60)
    flags = flag(score_view(view, [probe]), Rule(recall=0.9))
    assert 40 <= (flags.positions < 60).sum() <= 60
    assert (flags.positions >= 60).sum() <= 2
    decision = flags.decisions["insults"]
    assert decision.prevalence.count.low <= 60 <= decision.prevalence.count.high
    assert decision.prevalence.above == len(flags)
    assert flags.rule.as_dict() == {"recall": 0.9}


def test_a_recall_flags_nothing_where_there_is_no_evidence(tmp_path: Path) -> None:
    view, probe = contaminated_view(tmp_path / "v", 0)
    flags = flag(score_view(view, [probe]), Rule(recall=0.9))
    assert len(flags) == 0
    assert flags.decisions["insults"].sentence("insults").startswith("no evidence of insults: 0")


def test_a_recall_of_a_probe_without_pairs_of_its_own_is_refused(tmp_path: Path) -> None:
    rule = Rule(recall=0.9)
    with pytest.raises(SettingsError, match=r"recall 0\.9: probe insults keeps no pairs of its own"):
        rule.check_probes([random_probe()])
    with pytest.raises(SettingsError, match="probe insults keeps no pairs of its own"):
        flag(score_view(random_store(tmp_path / "v").view(), [random_probe()]), rule)


def test_the_default_rule_goes_by_recall_where_a_probe_keeps_pairs_and_by_fdr_where_it_does_not(tmp_path: Path) -> None:
    view, probe = contaminated_view(tmp_path / "v", 60)
    bare = replace(probe, name="bare", example_vectors=None, example_prompts=None)
    scores = score_view(view, [probe, bare])
    both = flag(scores, DEFAULT_RULE)
    assert both.decisions.keys() == {"insults"}
    alone, rate = flag(scores, Rule(recall=0.9), "insults"), flag(scores, Rule(fdr=0.05), "bare")
    assert set(both.pair_ids) == {*alone.pair_ids, *rate.pair_ids}
    DEFAULT_RULE.check_probes([probe, bare])
    (note,) = power_notes(DEFAULT_RULE, len(scores), [probe, bare], "auto")
    assert note.startswith("bare: flagged at fdr 0.05, not at recall 0.9: probe bare keeps no pairs of its own")
