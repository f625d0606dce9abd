"""What scores are compared with: a baseline or the whole dataset, never the pairs that happen to be in a request."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.gate_cases import HIDDEN, LAYER, MODEL, Place, Row, axis_probe, only_rule, row, rows, write_rows
from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.gate.baseline.baseline import BASELINE_FORMAT, GateBaseline
from trl_attribution.gate.baseline.recording import record_baseline
from trl_attribution.gate.policy.file import load_policy
from trl_attribution.gate.verdict import Verdict
from trl_attribution.manifest import Decision, Manifest, ManifestHeader
from trl_attribution.pairs import pair_id
from trl_attribution.probes import Probe
from trl_attribution.scoring import p_values, q_values
from trl_attribution.store import StoreSettings, VectorStore

CONTEXTUAL = "{probes: {rude: {max_score: -1}}}"
"""Every pair that scores above -1 is named, so that all scores can be read from the violations."""


def rude_probe() -> Probe:
    """A probe that knows three prompts, so that scores are contextual and depend on the center of the contexts."""
    generator = torch.Generator().manual_seed(3)
    vectors, contexts = (torch.randn(3, 1, HIDDEN, generator=generator) for _ in range(2))
    return Probe("rude", (LAYER,), vectors.mean(dim=0), LAYER, MODEL, vectors, contexts + 1)


def store_random(folder: Path, data: list[Row]) -> None:
    generator = torch.Generator().manual_seed(4)
    pair, context = (torch.randn(len(data), 1, HIDDEN, generator=generator) for _ in range(2))
    store = VectorStore.create(folder, StoreSettings(MODEL.digest, (LAYER,), HIDDEN, "float32"))
    with store.writer() as writer:
        writer.add([pair_id(each) for each in data], pair, context + 2)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


def record(place: Place, known_bad: Path | None = None) -> GateBaseline:
    found = record_baseline(load_policy(place.policy), place.data, known_bad)
    found.save(place.folder / "baseline.safetensors")
    return found


def scores(verdict: Verdict) -> dict[str, float]:
    return {str(violation.pair_id): float(violation.score or 0) for violation in verdict.rules[0].violations}


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_a_score_does_not_depend_on_what_else_is_in_the_request(place: Place) -> None:
    trusted, new = rows(20), rows(8, 100)
    store_random(place.folder / "vectors", [*trusted, *new])
    place.probe(rude_probe())
    write_rows(place.data, trusted)
    place.write_policy(CONTEXTUAL, "baseline: baseline.safetensors")
    baseline = record(place)
    alone = {}
    for each in new:
        write_rows(place.data, [each])
        alone |= scores(place.run().verdict)
    write_rows(place.data, [*new, *trusted])
    together = scores(place.run().verdict)
    assert {name: together[name] for name in alone} == pytest.approx(alone, abs=1e-6)
    # And it is the definition, with the center of the trusted dataset.
    store, probe = VectorStore.open(place.folder / "vectors"), rude_probe()
    ids = [pair_id(each) for each in trusted]
    mu = store.select(ids).context(LAYER).mean(dim=0)
    torch.testing.assert_close(baseline.context_means()[LAYER], mu)
    assert probe.prompt_vectors is not None and probe.contexts is not None
    view = store.select([pair_id(new[0])])
    response = torch.cosine_similarity(probe.prompt_vectors[:, 0], view.layer(LAYER))
    context = torch.cosine_similarity(probe.contexts[:, 0] - mu, view.context(LAYER) - mu).clamp(min=0)
    assert alone[pair_id(new[0])] == pytest.approx(float((response * context).mean()), abs=1e-6)


def test_without_a_baseline_new_pairs_are_scored_as_in_an_audit_of_the_whole_dataset(place: Place) -> None:
    trusted, new = rows(20), rows(4, 100)
    store_random(place.folder / "vectors", [*trusted, *new])
    place.probe(rude_probe())
    write_rows(place.data, trusted)
    git(place.folder, "init", "-q", "-b", "main")
    git(place.folder, "add", "data.jsonl")
    git(place.folder, "commit", "-qm", "trusted")
    write_rows(place.data, [*trusted, *new])
    place.write_policy(CONTEXTUAL)
    everything, changed = place.run().verdict, place.run(base_ref="main").verdict
    assert set(scores(changed)) == {pair_id(each) for each in new}
    assert scores(changed).items() <= scores(everything).items()
    assert (changed.pairs, changed.examined, changed.cached, changed.base_ref) == (24, 4, 24, "main")
    assert [violation.place.line for violation in changed.rules[0].violations if violation.place] == pytest.approx(
        sorted(range(21, 25), key=lambda line: -scores(changed)[pair_id(new[line - 21])])
    )


def test_with_a_baseline_new_pairs_need_nothing_but_their_own_vectors(place: Place) -> None:
    trusted, new = rows(30), rows(4, 100)
    place.dataset([*trusted, *new], [*np.linspace(-0.5, 0.5, 30).tolist(), 0.9, 0.1, 0.2, 0.9])
    place.probe()
    write_rows(place.data, trusted)
    place.write_policy("{probes: {insults: {fdr: 0.2, max_flagged_count: 0}}}", "baseline: baseline.safetensors")
    baseline = record(place)
    git(place.folder, "init", "-q", "-b", "main")
    git(place.folder, "add", "data.jsonl")
    git(place.folder, "commit", "-qm", "trusted")
    write_rows(place.data, [*trusted, *new])
    unscored = VectorStore.open(place.folder / "vectors").select([pair_id(each) for each in new])
    kept = StoreSettings(MODEL.digest, (LAYER,), HIDDEN, "float32")
    with VectorStore.create(place.folder / "new", kept).writer() as writer:
        vectors = unscored.layer(LAYER).unsqueeze(1)
        writer.add([pair_id(each) for each in new], vectors, torch.zeros_like(vectors))
    place.write_policy(
        "{probes: {insults: {fdr: 0.2, max_flagged_count: 0}}}", "baseline: baseline.safetensors", "vectors: new"
    )
    verdict = place.run(base_ref="main").verdict
    rule = only_rule(verdict)
    assert rule.sentence == "2 of 4 new pairs push towards insults; at most 0 allowed"
    assert [violation.place.line for violation in rule.violations if violation.place] == [31, 34]
    expected = q_values(p_values(np.array([0.9, 0.1, 0.2, 0.9]), -baseline.scores[0].astype(np.float64)))
    assert rule.violations[0].q_value == pytest.approx(expected[0])
    assert (verdict.cached, verdict.computed) == (4, 0)


def test_a_branch_that_changes_nothing_passes_and_says_why(place: Place) -> None:
    place.dataset(rows(3), [0.9])
    place.probe()
    git(place.folder, "init", "-q", "-b", "main")
    git(place.folder, "add", "data.jsonl")
    git(place.folder, "commit", "-qm", "trusted")
    rules = "{probes: {insults: {threshold: 0.5, max_flagged_count: 0, max_score: 0.5}}, hygiene: {length_bias: 0.6}}"
    verdict = place.judge(rules, base_ref="main")
    assert verdict.passed and (verdict.pairs, verdict.examined) == (3, 0)
    assert any("nothing in data.jsonl differs from main" in note for note in verdict.notes)
    assert verdict.outcome == "Gate passed: no rule failed. No new pairs to look for insults in."
    assert [rule.sentence for rule in verdict.rules][:2] == [
        "0 of 0 new pairs push towards insults; at most 0 allowed",
        "none of 0 new pairs has a score for insults that counts",
    ]


def test_only_new_rows_are_duplicates_of_what_was_there(place: Place) -> None:
    write_rows(place.data, [row(0), row(1), row(0)])
    git(place.folder, "init", "-q", "-b", "main")
    git(place.folder, "add", "data.jsonl")
    git(place.folder, "commit", "-qm", "trusted")
    # The added line stands before the one that it repeats.
    write_rows(place.data, [{**row(1), "source": "again"}, row(0), row(1), row(0)])
    place.policy.write_text("version: 1\nrules: {hygiene: {duplicates: 0}}\n")
    verdict = place.run(base_ref="main").verdict
    assert only_rule(verdict).sentence == "1 new row repeats a pair of the dataset; at most 0 allowed"
    assert [violation.place.line for violation in only_rule(verdict).violations if violation.place] == [1]
    assert (verdict.pairs, verdict.examined) == (2, 1)


def test_near_duplicates_of_known_bad_pairs_are_found(place: Place) -> None:
    bad, data = rows(2, 50), rows(4)
    place.dataset([*data, *bad], [0.9, 0.88, -0.5, 0.0, 0.9, 0.0])
    place.probe()
    write_rows(place.data, data)
    write_rows(place.folder / "bad.jsonl", bad[:1])
    place.write_policy("{probes: {insults: {max_score: 1}}}")
    record(place, place.folder / "bad.jsonl")
    rule = "{known_bad: {limit: 0.25, similarity: 0.99}}"
    verdict = place.judge(rule, "baseline: baseline.safetensors")
    found = only_rule(verdict)
    assert found.rule == "known-bad" and found.measured == 0.5 and not found.passed
    assert [violation.pair_id for violation in found.violations] == [pair_id(row(0)), pair_id(row(1))]
    assert pair_id(bad[0]) in found.violations[0].message and found.violations[0].score == pytest.approx(1.0)
    assert verdict.model_fingerprint == MODEL.digest


def test_known_bad_pairs_can_be_those_of_a_manifest(place: Place) -> None:
    place.dataset(rows(3), [0.9, 0.1, -0.5])
    place.probe()
    header = ManifestHeader(
        action="filter", dataset_fingerprint="0" * 64, model_fingerprint="m", probe_fingerprints={}, rule={}
    )
    decisions = [
        Decision(pair_id(row(0)), 0, "filter", "insults", 0.9, 1),
        Decision(pair_id(row(1)), 1, "keep", "", 0, 2),
    ]
    Manifest(header, tuple(decisions)).save(place.folder / "bad.jsonl")
    place.write_policy("{probes: {insults: {max_score: 1}}}")
    assert record(place, place.folder / "bad.jsonl").known_bad_ids == (pair_id(row(0)),)
    Manifest(header, (replace(decisions[0], pair_id="0" * 32),)).save(place.folder / "bad.jsonl")
    with pytest.raises(StoreError, match="1 of 1 listed pairs have no vectors"):
        record(place, place.folder / "bad.jsonl")


def test_a_baseline_without_known_bad_pairs_cannot_judge_them(place: Place) -> None:
    place.dataset(rows(3))
    place.probe()
    place.write_policy("{probes: {insults: {max_score: 1}}}")
    record(place)
    with pytest.raises(SettingsError, match="--known-bad"):
        place.judge("{known_bad: 0}", "baseline: baseline.safetensors")


def test_a_baseline_keeps_everything_and_equal_ones_have_equal_bytes(place: Place) -> None:
    place.dataset(rows(5), [0.3, 0.1, -0.2, 0.5, 0.0])
    place.probe()
    place.write_policy("{probes: {insults: {max_score: 1}}}")
    write_rows(place.folder / "bad.jsonl", rows(2))
    found = record(place, place.folder / "bad.jsonl")
    first = (place.folder / "baseline.safetensors").read_bytes()
    loaded = GateBaseline.load(place.folder / "baseline.safetensors")
    loaded.save(place.folder / "again.safetensors")
    assert (place.folder / "again.safetensors").read_bytes() == first
    assert (loaded.origin, loaded.columns, loaded.layers) == (found.origin, found.columns, found.layers)
    assert loaded.scores[0].tolist() == pytest.approx([-0.2, 0.0, 0.1, 0.3, 0.5], abs=1e-6)
    assert loaded.known_bad is not None and found.known_bad is not None
    assert torch.equal(loaded.known_bad, found.known_bad) and loaded.known_bad_ids == found.known_bad_ids


def test_a_baseline_of_another_probe_or_truncation_is_refused(place: Place) -> None:
    place.dataset(rows(5))
    place.probe()
    place.write_policy("{probes: {insults: {max_score: 1}}}")
    record(place)
    with pytest.raises(SettingsError, match="max_length: stored 1024, asked for 99"):
        place.judge("{probes: {insults: {max_score: 1}}}", "baseline: baseline.safetensors\nencoding: {max_length: 99}")
    place.probe(axis_probe("other", axis=1))
    with pytest.raises(SettingsError, match="no scores for probe 'other'"):
        place.judge("{probes: {other: {drift: 0.5}}}", "baseline: baseline.safetensors")


def test_broken_newer_and_foreign_baselines_are_refused(place: Place) -> None:
    place.dataset(rows(3))
    place.probe()
    place.write_policy("{probes: {insults: {max_score: 1}}}")
    path = place.folder / "baseline.safetensors"
    with pytest.raises(StoreError, match="gate baseline"):
        GateBaseline.load(path)
    record(place)
    whole = path.read_bytes()
    newer = whole.replace(b'\\"version\\": 1', b'\\"version\\": 2')
    for content, message in (
        (whole[:-5], "cannot be read as a baseline"),
        (b"hello", "cannot be read as a baseline"),
        (newer, "format version 2"),
        (whole.replace(BASELINE_FORMAT.encode(), b"x" * len(BASELINE_FORMAT)), "is no gate baseline"),
        (whole.replace(b'\\"pairs\\": 3', b'\\"pairs\\": 4'), "do not fit"),
    ):
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(StoreError, match=message):
            GateBaseline.load(path)


def test_a_policy_without_probes_has_no_baseline(place: Place) -> None:
    write_rows(place.data, rows(2))
    place.policy.write_text("version: 1\nrules: {hygiene: {duplicates: 0}}\n")
    with pytest.raises(SettingsError, match="nothing to record"):
        record(place)


def test_a_verdict_names_no_absolute_path(place: Place) -> None:
    place.dataset(rows(3), [0.9])
    place.probe()
    verdict = place.judge("{probes: {insults: {threshold: 0.5, max_flagged_count: 0}}}")
    assert str(place.folder) not in json.dumps(verdict.to_json()) and verdict.dataset == "data.jsonl"
