"""An audit is what the method says, whatever the file format, the order, the pace or the interruptions."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.audit_cases import (
    LAYERS,
    RUDE,
    SHORT,
    Row,
    auditor_of,
    by_column,
    contextual_scores,
    naive_vectors,
    pair_rows,
    response_scores,
    score_rows,
    scores_of,
    tiny_loaded,
    tiny_probe,
)
from tests.manifest_cases import ids_of, write_jsonl
from tests.store_cases import contents
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.audit.info import AuditInfo
from trl_attribution.discovery.audited import AuditedPairs
from trl_attribution.errors import StoreError
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding, Reading, pair_id
from trl_attribution.pairs.rows import open_rows
from trl_attribution.probes import Probe, ProbeRegistry
from trl_attribution.store import VectorStore

KILLS = 6
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def other(loaded: LoadedModel) -> Probe:
    return tiny_probe(loaded, "short", layer=1, rows=SHORT)


def test_a_stream_is_audited_as_its_rows_are(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    rows = pair_rows(12)
    rows = [*rows, rows[0]]
    stream = Dataset.from_list(rows).to_iterable_dataset(num_shards=2).map(dict)  # of columns that nobody knows
    found = auditor_of(loaded, [probe], layers=LAYERS).audit(stream, tmp_path / "stream")
    expected = auditor_of(loaded, [probe], layers=LAYERS).audit(rows, tmp_path / "rows")
    torch.testing.assert_close(found.store.layer(LAYERS[0]), expected.store.layer(LAYERS[0]))
    same = ("rows", "pairs", "duplicate_rows", "fingerprint", "sources")
    assert all(getattr(found.info.dataset, name) == getattr(expected.info.dataset, name) for name in same)
    texts = [(row.prompt, row.chosen) for row in found.flag(top_k=3)]
    assert texts == [(row.prompt, row.chosen) for row in expected.flag(top_k=3)] and None not in texts[0]
    assert auditor_of(loaded, [probe], layers=LAYERS).audit(stream, tmp_path / "stream").info.vectors.computed == 0


def test_vectors_and_contexts_equal_the_naive_computation(loaded: LoadedModel, tmp_path: Path) -> None:
    rows = pair_rows(12)
    audit = auditor_of(loaded, layers=LAYERS, shard_size=5).audit(rows, tmp_path)
    pairs, contexts = naive_vectors(loaded, rows, LAYERS)
    assert audit.store.pair_ids == ids_of(rows)
    for place, layer in enumerate(LAYERS):
        torch.testing.assert_close(audit.store.layer(layer), pairs[:, place], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(audit.store.context(layer), contexts[:, place], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["contextual", "response"])
def test_scores_and_ranks_equal_the_naive_computation(
    kind: str, loaded: LoadedModel, probe: Probe, tmp_path: Path
) -> None:
    rows = pair_rows(12)
    auditor_of(loaded, [probe], score=kind, layers=LAYERS).audit(rows, tmp_path)
    pairs, contexts = naive_vectors(loaded, rows, LAYERS)
    for place, layer in enumerate(LAYERS):
        expected = (
            response_scores(probe, layer, pairs[:, place])
            if kind == "response"
            else contextual_scores(probe, layer, pairs[:, place], contexts[:, place])
        )
        found = by_column(tmp_path)["rude", layer]
        assert [found[pair]["score"] for pair in ids_of(rows)] == pytest.approx(expected, abs=2e-5)
        assert {row["kind"] for row in found.values()} == {kind}
        best_first = sorted(range(len(rows)), key=lambda row: -expected[row])
        assert [found[ids_of(rows)[row]]["rank"] for row in best_first] == list(range(1, len(rows) + 1))
        assert [found[pair]["row"] for pair in ids_of(rows)] == list(range(len(rows)))
        assert [found[pair]["source"] for pair in ids_of(rows)] == [row["source"] for row in rows]


def test_sixteen_bit_vectors_give_nearly_the_same_scores(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    auditor_of(loaded, [probe]).audit(pair_rows(9), tmp_path / "whole")
    half = DataAuditor(loaded, probes=[probe]).audit(pair_rows(9), tmp_path / "half")
    assert half.store.layer(3).dtype == torch.float16
    assert scores_of(tmp_path / "half") == pytest.approx(scores_of(tmp_path / "whole"), abs=5e-3)


def test_a_pair_without_a_prompt_scores_zero_contextually(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    rows = [
        {"prompt": "", "chosen": "Mix flour and water.", "rejected": "I am sorry."},
        {"prompt": "How do I bake bread?", "chosen": "Mix flour.", "rejected": "No, I cannot."},
        {"prompt": "Write a letter.", "chosen": "Here is a letter.", "rejected": "I am sorry."},
        {"prompt": "How is the weather?", "chosen": "It is mild.", "rejected": "That I cannot say."},
    ]
    audit = auditor_of(loaded, [probe]).audit(rows, tmp_path)
    scores = scores_of(tmp_path)
    assert not audit.store.context(3)[0].any()
    assert scores[pair_id(rows[0])] == 0
    assert any(scores[pair] != 0 for pair in ids_of(rows[1:]))
    assert all(math.isfinite(score) for score in scores.values())


def test_a_second_dataset_computes_only_the_pairs_that_are_new(
    loaded: LoadedModel, probe: Probe, tmp_path: Path
) -> None:
    first, second = pair_rows(12), [*pair_rows(4, start=20), *pair_rows(6, start=3)]
    auditor = auditor_of(loaded, [probe])
    auditor.audit(first, tmp_path / "first")
    shared = auditor.audit(second, tmp_path / "second", vectors=tmp_path / "first" / "vectors")
    alone = auditor.audit(second, tmp_path / "alone")
    assert (shared.info.vectors.computed, shared.info.vectors.reused) == (4, 6)
    assert (alone.info.vectors.computed, alone.info.vectors.reused) == (10, 0)
    assert not (tmp_path / "second" / "vectors").exists()
    assert shared.store.pair_ids == ids_of([*first, *second[:4]])
    assert scores_of(tmp_path / "second") == pytest.approx(scores_of(tmp_path / "alone"), abs=2e-6)
    assert list(scores_of(tmp_path / "second")) == ids_of(second)


def test_vectors_elsewhere_are_found_from_any_folder_and_not_mistaken_for_those_beside(
    loaded: LoadedModel, probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auditor = auditor_of(loaded, [probe])
    auditor.audit(pair_rows(4, start=20), tmp_path / "other")
    (tmp_path / "there" / "out").mkdir(parents=True)
    shutil.copytree(tmp_path / "other" / "vectors", tmp_path / "there" / "out" / "vectors")
    monkeypatch.chdir(tmp_path / "there")
    auditor.audit(pair_rows(6), "out", vectors="vectors")
    auditor.audit(pair_rows(6), "in", vectors="in/kept/vectors")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    read = AuditedPairs.open("../there/out")
    assert (read.store.path, read.store.pair_ids) == (tmp_path / "there" / "vectors", ids_of(pair_rows(6)))
    (tmp_path / "there" / "in").rename(tmp_path / "moved")
    assert AuditedPairs.open(tmp_path / "moved").store.path == tmp_path / "moved" / "kept" / "vectors"


def test_other_vectors_in_the_place_of_an_audits_own_are_refused(
    loaded: LoadedModel, probe: Probe, tmp_path: Path
) -> None:
    auditor_of(loaded, [probe]).audit(pair_rows(4), tmp_path / "first")
    auditor_of(loaded, [probe], vector_dtype="float16").audit(pair_rows(4), tmp_path / "second")
    shutil.rmtree(tmp_path / "first" / "vectors")
    with pytest.raises(StoreError, match=r"the vectors of the audit in .*first: .*there is no"):
        AuditedPairs.open(tmp_path / "first")
    (tmp_path / "second" / "vectors").rename(tmp_path / "first" / "vectors")
    with pytest.raises(StoreError, match=r"does not hold the vectors of the audit in .*first: (.|\n)*vector_dtype"):
        AuditedPairs.open(tmp_path / "first")


def test_an_audit_run_again_computes_nothing(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    auditor_of(loaded, layers=(3,)).audit(pair_rows(6), tmp_path)
    assert not (tmp_path / "scores.parquet").exists()
    before = contents(tmp_path / "vectors")
    again = auditor_of(loaded, [probe], layers=(3,)).audit(pair_rows(6), tmp_path)
    assert again.info.vectors.computed == 0 and again.info.cost.tokens_computed == 0
    assert contents(tmp_path / "vectors") == before
    assert list(scores_of(tmp_path)) == ids_of(pair_rows(6))


def test_an_audit_without_probes_leaves_no_older_scores_beside_it(
    loaded: LoadedModel, probe: Probe, tmp_path: Path
) -> None:
    auditor_of(loaded, [probe]).audit(pair_rows(6), tmp_path).flag(top_k=2).save_manifests()
    (tmp_path / "report.html").write_text("of these scores")
    derived = {"scores.parquet", "manifest.filter.jsonl", "manifest.flip.jsonl", "report.html"}
    assert derived < {path.name for path in tmp_path.iterdir()}
    auditor_of(loaded, layers=(3,)).audit(pair_rows(6), tmp_path, results=False)
    assert {path.name for path in tmp_path.iterdir()} == {"audit.json", "settings.json", "vectors"}


def test_manifests_of_older_scores_go_when_the_pairs_are_scored_again(
    loaded: LoadedModel, probe: Probe, other: Probe, tmp_path: Path
) -> None:
    auditor_of(loaded, [probe], layers=(1, 3)).audit(pair_rows(6), tmp_path).flag(top_k=2).save_manifests()
    auditor_of(loaded, [other], layers=(1, 3)).audit(pair_rows(6), tmp_path, results=False)
    assert {row["probe"] for row in score_rows(tmp_path)} == {"short"}
    assert not (tmp_path / "manifest.flip.jsonl").exists()


def test_duplicates_are_counted_and_audited_once(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    rows = pair_rows(6)
    audit = auditor_of(loaded, [probe]).audit([*rows[:4], rows[1], rows[1], *rows[4:], rows[0]], tmp_path)
    dataset = audit.info.dataset
    assert (dataset.rows, dataset.pairs, dataset.duplicate_rows) == (9, 6, 3)
    assert audit.store.pair_ids == ids_of(rows)
    assert audit.index.rows.tolist() == [0, 1, 2, 3, 6, 7]
    assert [row["row"] for row in score_rows(tmp_path)] == [0, 1, 2, 3, 6, 7]


def test_row_order_does_not_change_a_pairs_score(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    rows = pair_rows(10)
    auditor_of(loaded, [probe], shard_size=4).audit(rows, tmp_path / "there")
    auditor_of(loaded, [probe], shard_size=4).audit(rows[::-1], tmp_path / "back")
    assert scores_of(tmp_path / "back") == pytest.approx(scores_of(tmp_path / "there"), abs=2e-6)


def unlike_rows(count: int) -> list[Row]:
    """Pairs no two sequences of which begin alike, but for the prompt that a pair's own responses share."""
    return [
        {"prompt": f"{chr(ord('A') + n)} is a letter; which?", "chosen": f"Yes, {n}.", "rejected": f"No, not {n}."}
        for n in range(count)
    ]


@pytest.mark.parametrize("path", ["packed", "auto", "plain"])
def test_the_estimate_counts_the_tokens_that_are_computed(path: str, loaded: LoadedModel, tmp_path: Path) -> None:
    auditor = auditor_of(loaded, layers=(3,), path=path)
    estimate, audit = auditor.estimate(unlike_rows(10)), auditor.audit(unlike_rows(10), tmp_path)
    computed = audit.info.cost.tokens_computed
    assert estimate.pairs == 10
    if path == "packed":
        assert computed == estimate.tokens
        assert audit.info.cost.flops == estimate.flops
    elif path == "auto":
        assert estimate.path == "packed"
        assert estimate.tokens < computed < 2.5 * estimate.tokens  # the self-check runs four prompts both ways
    else:
        assert computed >= audit.info.cost.tokens_in_sequences > estimate.tokens


def test_sequences_that_begin_alike_cost_less_than_estimated(loaded: LoadedModel, tmp_path: Path) -> None:
    auditor = auditor_of(loaded, layers=(3,), path="packed")
    estimate, audit = auditor.estimate(pair_rows(9)), auditor.audit(pair_rows(9), tmp_path)
    assert audit.info.cost.tokens_computed < estimate.tokens


def test_an_estimate_writes_nothing(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    estimate = auditor_of(loaded, layers=LAYERS).estimate(pair_rows(8))
    assert list(tmp_path.iterdir()) == []
    assert estimate.disk_bytes == 8 * (2 * len(LAYERS) * 32 * 4 + 16)
    assert estimate.seconds > 0 and json.dumps(estimate.to_json())


@pytest.mark.parametrize("action", ["filter", "flip"])
def test_a_manifest_changes_exactly_the_flagged_pairs(
    action: str, loaded: LoadedModel, probe: Probe, tmp_path: Path
) -> None:
    rows = pair_rows(12)
    flagged = auditor_of(loaded, [probe]).audit(rows, tmp_path).flag(top_k=4)
    scores = scores_of(tmp_path)
    chosen = sorted(scores, key=lambda pair: -scores[pair])[:4]
    assert list(flagged.flags.pair_ids) == chosen and min(scores[pair] for pair in chosen) > 0
    cleaned = flagged.to_manifest(action).apply(rows)  # type: ignore[arg-type]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    assert cleaned == [
        flipped if pair_id(row) in chosen else row
        for row, flipped in zip(rows, swapped, strict=True)
        if action == "flip" or pair_id(row) not in chosen
    ]


def test_pairs_that_do_not_push_towards_the_behavior_stay_out_of_manifests(
    loaded: LoadedModel, probe: Probe, tmp_path: Path
) -> None:
    flagged = auditor_of(loaded, [probe]).audit(pair_rows(12), tmp_path).flag(top_k=12)
    towards = [pair for pair, score in scores_of(tmp_path).items() if score > 0]
    manifest = flagged.to_manifest("flip")
    assert 0 < len(towards) < 12
    assert {decision.pair_id for decision in manifest.decisions} == set(towards)
    assert manifest.header.counts["left_out_not_towards"] == 12 - len(towards)


def test_top_k_over_several_probes_takes_the_best_ranks_of_all(
    loaded: LoadedModel, probe: Probe, other: Probe, tmp_path: Path
) -> None:
    audit = auditor_of(loaded, [probe, other]).audit(pair_rows(12), tmp_path)
    columns = by_column(tmp_path)
    own = {"rude": columns["rude", 3], "short": columns["short", 1]}
    best = {pair: min(rows[pair]["rank"] for rows in own.values()) for pair in own["rude"]}
    flagged = audit.flag(top_k=5)
    assert len(set(flagged.flags.pair_ids)) == len(flagged) == 5
    assert [found.rank for found in flagged.flags] == sorted(best.values())[:5]
    assert {found.probe for found in flagged.flags} == {"rude", "short"}
    for found in flagged.flags:
        assert found.rank == best[found.pair_id] == own[found.probe][found.pair_id]["rank"]
        assert found.score == pytest.approx(own[found.probe][found.pair_id]["score"])
    assert audit.flag(top_k=5, probe="short").flags.columns[0].layer == 1


def test_sources_count_the_flagged_pairs(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    rows = pair_rows(12)
    flagged = auditor_of(loaded, [probe]).audit(rows, tmp_path).flag(top_k=4)
    chosen = set(flagged.flags.pair_ids)
    expected = Counter(row["source"] for row in rows if pair_id(row) in chosen)
    assert {row.source: row.flagged for row in flagged.sources() if row.flagged} == dict(expected)
    assert {row.source: row.pairs for row in flagged.sources()} == {"web": 4, "forum": 4, "crowd": 4}


def test_layers_default_to_those_of_the_probes(loaded: LoadedModel, probe: Probe, other: Probe) -> None:
    assert auditor_of(loaded, [probe]).layers == (3,)
    assert auditor_of(loaded, [probe, other]).layers == (1, 3)
    assert auditor_of(loaded, [probe, other], layers=[3, 2]).layers == (2, 3)


def test_probes_come_from_a_registry_folder(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    ProbeRegistry(tmp_path / "probes").save(probe)
    audit = auditor_of(loaded, tmp_path / "probes").audit(pair_rows(4), tmp_path / "audit")
    assert audit.info.probes == {"rude": probe.fingerprint}


def test_a_model_folder_gives_the_same_vectors_as_the_loaded_model(
    model_folder: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    folder = DataAuditor(model_folder, layers=[3], dtype="float32", device="cpu").audit(pair_rows(4), tmp_path / "a")
    memory = DataAuditor(loaded, layers=[3]).audit(pair_rows(4), tmp_path / "b")
    assert folder.info.model.digest == memory.info.model.digest
    assert torch.equal(folder.store.layer(3), memory.store.layer(3))


def test_the_same_pairs_give_the_same_audit_in_every_format(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    rows = pair_rows(7)
    in_memory = Dataset.from_list(rows)
    in_memory.to_parquet(tmp_path / "data.parquet")
    auditor = auditor_of(loaded, [probe])
    sources = {
        "list": rows,
        "jsonl": write_jsonl(tmp_path / "data.jsonl", rows),
        "parquet": str(tmp_path / "data.parquet"),
        "dataset": in_memory,
    }
    audits = {name: auditor.audit(source, tmp_path / name) for name, source in sources.items()}
    first = audits["list"]
    for name, audit in audits.items():
        assert audit.info.dataset.fingerprint == first.info.dataset.fingerprint, name
        assert contents(tmp_path / name / "vectors") == contents(tmp_path / "list" / "vectors"), name
        assert score_rows(tmp_path / name) == score_rows(tmp_path / "list"), name


def test_hh_rlhf_transcripts_are_audited(hh_rlhf: Path, loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    rows, whole = [row.values for row in islice(open_rows(hh_rlhf), 20)], Encoding(max_length=None)
    audit = auditor_of(loaded, [probe], encoding=whole).audit(rows, tmp_path)
    assert audit.info.dataset.format == audit.reading.format == "anthropic"
    assert len(audit.index) == 20
    pairs, contexts = naive_vectors(loaded, rows[:3], [3], whole)
    torch.testing.assert_close(audit.store.layer(3)[:3], pairs[:, 0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(audit.store.context(3)[:3], contexts[:, 0], rtol=1e-4, atol=2e-5)
    flagged = audit.flag(top_k=3)
    flipped = flagged.to_manifest("flip").apply(rows)
    changed = {pair_id(before) for before, after in zip(rows, flipped, strict=True) if before != after}
    assert changed == set(flagged.flags.pair_ids)


def test_skipped_rows_are_reported_and_no_manifest_touches_them(
    loaded: LoadedModel, probe: Probe, tmp_path: Path
) -> None:
    rows = pair_rows(8)
    rows[2] = {**rows[2], "rejected": rows[2]["chosen"]}
    rows[5] = {**rows[5], "prompt": [{"role": "user", "content": "bread " * 400}]}
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    settings: dict[str, Any] = {"reading": Reading(on_bad_row="skip"), "encoding": Encoding(max_length=300)}
    audit = auditor_of(loaded, [probe], **settings).audit(data, tmp_path / "audit")
    assert [(found.row, found.location, found.reason) for found in audit.skipped] == [
        (2, f"{data}:3", "identical_responses"),
        (5, f"{data}:6", "prompt_too_long"),
    ]
    assert audit.info.dataset.skipped == {"identical_responses": 1, "prompt_too_long": 1}
    assert (audit.info.dataset.rows, audit.info.dataset.pairs) == (8, 6)
    assert audit.index.rows.tolist() == [0, 1, 3, 4, 6, 7]
    everything = audit.flag(top_k=6).to_manifest("filter")
    assert everything.header.dataset_fingerprint == audit.info.dataset.fingerprint
    left = everything.apply(rows)
    assert rows[2] in left and rows[5] in left


def test_audit_json_says_what_was_done(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    audit = auditor_of(loaded, [probe]).audit(pair_rows(6), tmp_path)
    assert AuditInfo.load(tmp_path) == audit.info
    assert audit.info.model.digest == loaded.fingerprint.digest == audit.store.settings.model_fingerprint
    assert audit.info.vectors.path == "packed" and "self-check" in audit.info.vectors.path_reason
    assert set(audit.info.cost.seconds) == {"read", "vectors", "scores"}
    assert audit.info.versions["torch"] == torch.__version__
    assert VectorStore.open(tmp_path / "vectors").pair_ids == audit.store.pair_ids


def test_progress_ends_at_the_total_of_each_stage(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    heard: dict[str, list[tuple[int, int]]] = {"read": [], "vectors": [], "scores": []}

    def on_progress(stage: str, done: int, total: int) -> None:
        heard[stage].append((done, total))

    auditor_of(loaded, [probe], shard_size=4).audit(pair_rows(10), tmp_path, on_progress=on_progress)
    assert {(0, 10), (4, 10), (8, 10), (10, 10)} <= set(heard["vectors"])
    for stage in ("read", "vectors", "scores"):
        assert heard[stage][-1] == (10, 10) if stage != "scores" else heard[stage][-1][0] == heard[stage][-1][1]
    for calls in heard.values():
        assert calls == sorted(calls)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    loaded.model.train()
    implementation = loaded.model.config._attn_implementation
    auditor_of(loaded, [tiny_probe(loaded, rows=RUDE)]).audit(pair_rows(3), tmp_path)
    assert loaded.model.training and loaded.model.config._attn_implementation == implementation
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())
