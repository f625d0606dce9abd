"""Rules about recall and about the estimate, and that a verdict always says what the test would have caught."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.gate_cases import Place, axis_probe, knowing_probe, only_rule, row, rows, store_scores, write_rows
from trl_attribution.cli import app
from trl_attribution.errors import ProbeError
from trl_attribution.gate import Verdict
from trl_attribution.gate.baseline.recording import record_baseline
from trl_attribution.gate.formats import FORMATS, render
from trl_attribution.gate.policy.file import load_policy
from trl_attribution.gate.rules.scored import _beside
from trl_attribution.pairs import pair_id
from trl_attribution.scoring import Rule, score_view
from trl_attribution.scoring.decision import KnownPairs, decide
from trl_attribution.scoring.flags import flag
from trl_attribution.scoring.recall import KnownScores
from trl_attribution.store import VectorStore

EXAMPLES = np.linspace(0.5, 0.9, 24).tolist()
CLEAN = np.linspace(-0.08, 0.08, 200).tolist()
BAD = np.linspace(0.55, 0.85, 30).tolist()
BY_RECALL = "{probes: {insults: {recall: 0.9, max_flagged_count: 0}}}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    found = Place(tmp_path)
    found.probe(knowing_probe(EXAMPLES))
    return found


def test_a_gate_flags_what_an_audit_flags_by_the_same_rule(place: Place) -> None:
    place.dataset(rows(230), [*BAD, *CLEAN])
    rule = only_rule(place.judge(BY_RECALL))
    store = VectorStore.open("vectors")
    scores = score_view(store.select([pair_id(row(number)) for number in range(230)]), [knowing_probe(EXAMPLES)])
    expected = flag(scores, Rule(recall=0.9))
    assert not rule.passed and rule.measured == len(expected) > 20
    assert [each.pair_id for each in rule.violations] == list(expected.pair_ids)


def test_recall_is_what_pairs_are_flagged_by_where_a_policy_names_nothing(place: Place) -> None:
    place.dataset(rows(230), [*BAD, *CLEAN])
    assert only_rule(place.judge("{probes: {insults: {max_flagged_count: 0}}}")) == only_rule(place.judge(BY_RECALL))


def test_with_evidence_the_gate_fails_and_says_how_many_there_are_and_how_many_are_wrong(place: Place) -> None:
    place.dataset(rows(230), [*BAD, *CLEAN])
    verdict = place.judge(BY_RECALL)
    (said,) = verdict.statements
    assert not verdict.passed and said.count is not None and said.catches is not None
    assert 0 < said.count.low <= 30 <= said.count.high
    assert 0.85 < said.catches.value < 1
    assert said.sentence.startswith("About ") and "of which about" in said.sentence


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("bad", [0, 30])
def test_every_format_says_what_the_test_would_have_caught(form: str, bad: int, place: Place) -> None:
    place.dataset(rows(200 + bad), [*BAD[:bad], *CLEAN])
    verdict = place.judge(BY_RECALL)
    assert verdict.passed is not bool(bad)
    (said,) = verdict.statements
    assert ("o evidence of insults" in said.sentence) is not bool(
        bad
    ) and "of pairs like" in said.sentence + "of pairs like"
    assert ("(catches about 9" if bad else "would have caught 9") in said.sentence
    shown = render(verdict, form)
    plain = shown.replace("&#40;", "(").replace("&#41;", ")").replace("&#58;", ":").replace("&#37;", "%")
    assert said.sentence in " ".join(plain.split())
    assert verdict.outcome in " ".join(plain.split()) or form == "markdown"


def test_the_pairs_that_score_highest_are_shown_also_where_nothing_is_found(place: Place) -> None:
    place.dataset(rows(200), CLEAN)
    verdict = place.judge(BY_RECALL)
    (said,) = verdict.statements
    assert verdict.passed and len(said.highest) == 10
    assert [each.place.line for each in said.highest[:2] if each.place] == [200, 199]
    for form in ("text", "markdown", "json"):
        assert str(said.highest[0].pair_id) in render(verdict, form)
    assert Verdict.from_json(json.loads(render(verdict, "json"))) == verdict


@pytest.mark.parametrize(
    ("rule", "passes"),
    [
        ("{limit: 100, fail_on: doubt}", True),
        ("{limit: 30, fail_on: doubt}", False),  # more than 30 cannot be ruled out
        ("30", False),  # doubt is what is meant where nothing is said
        ("{limit: 30, fail_on: evidence}", True),  # nor can 30
        ("{limit: 10, fail_on: evidence}", False),
    ],
)
def test_a_limit_on_the_estimate_is_broken_by_the_end_that_the_policy_names(
    rule: str, passes: bool, place: Place
) -> None:
    place.dataset(rows(230), [*BAD, *CLEAN])
    found = only_rule(place.judge(f"{{probes: {{insults: {{max_estimated_count: {rule}}}}}}}"))
    assert found.passed is passes
    assert ("it fails only if all of it lies above" in found.sentence) is ("evidence" in rule)
    limit, deciding = found.limit / 230, "evidence" if "evidence" in rule else "doubt"
    share = f"{{probes: {{insults: {{max_estimated_fraction: {{limit: {limit}, fail_on: {deciding}}}}}}}}}"
    assert only_rule(place.judge(share)).passed is passes


def test_only_one_sided_scores_have_a_kind_that_leans_neither_way() -> None:
    examples, controls = (KnownScores(np.array(EXAMPLES) * scale, np.arange(24)) for scale in (1, 0.2))
    trusted, own = np.array(CLEAN, dtype=np.float32), np.array([*BAD, *CLEAN])
    beside = _beside(KnownPairs(examples, controls), trusted)
    assert beside is not None and beside.controls is not None and len(beside.controls.scores) == 224
    assert "control level" not in decide(own, 0.9, beside).prevalence.kinds
    with_flips = KnownPairs(examples, replace(controls, flips=controls.scores / 2))
    beside = _beside(with_flips, trusted)
    assert beside is not None and "control level" in decide(own, 0.9, beside).prevalence.kinds


def test_accepted_pairs_are_left_out_of_the_estimate(place: Place) -> None:
    place.dataset(rows(203), [*BAD[-3:], *CLEAN])
    strict = "{probes: {insults: {max_estimated_count: 2}}}"
    assert not only_rule(place.judge(strict)).passed
    entries = [f"{{pair_id: {pair_id(row(number))}, reason: seen, expires: 2027-01-01}}" for number in range(3)]
    rule = only_rule(place.judge(strict, f"allow: [{', '.join(entries)}]"))
    assert rule.passed and len(rule.allowed) == 3


def test_a_pair_that_scores_as_the_examples_do_waits_for_a_person_without_evidence(place: Place) -> None:
    place.dataset(rows(31), [0.7, *CLEAN[::7][:29], 0.72])
    assert only_rule(place.judge(BY_RECALL)).passed  # two of 31 may be chance
    rule = only_rule(place.judge("{probes: {insults: {max_reaching_count: {limit: 0, recall: 0.9}}}}"))
    assert not rule.passed and [each.pair_id for each in rule.violations] == [pair_id(row(30)), pair_id(row(0))]
    assert only_rule(place.judge("{probes: {insults: {max_reaching_count: {limit: 0, recall: 0.1}}}}")).passed
    both = place.judge("{probes: {insults: {recall: 0.9, max_flagged_count: 0, max_reaching_count: 0}}}")
    said = both.statements[0].sentence
    assert said.startswith(
        "2 of 31 pairs score as the examples of insults do, and about 90% of pairs like them would. No evidence"
    )
    place.dataset(rows(30, 100), CLEAN[::7])
    none = place.judge("{probes: {insults: {recall: 0.9, max_flagged_count: 0, max_reaching_count: 0}}}")
    assert none.outcome.endswith(
        "None of 30 pairs scores as the examples of insults do; about 90% of pairs like them would."
    )


def test_pairs_that_only_look_alike_are_no_evidence_where_trusted_ones_do_too(place: Place) -> None:
    alike = np.linspace(0.5, 0.8, 30).tolist()
    trusted, new = [*rows(230)], [*rows(58, 300)]
    place.dataset([*trusted, *new], [*alike, *CLEAN, *alike[::4], *CLEAN[::4]])
    write_rows(place.data, trusted)
    place.write_policy(BY_RECALL)
    record_baseline(load_policy(place.policy), place.data).save("baseline.safetensors")
    write_rows(place.data, new)
    assert not only_rule(place.judge(BY_RECALL)).passed
    beside = place.judge(BY_RECALL, "baseline: baseline.safetensors")
    assert beside.passed and beside.statements[0].sentence.startswith("No evidence of insults")


def test_what_a_threshold_or_a_rate_catches_is_said_too(place: Place) -> None:
    place.dataset(rows(200), CLEAN)
    verdict = place.judge("{probes: {insults: {threshold: 0.7, max_flagged_count: 0}}}")
    assert verdict.statements[0].catches is not None
    assert verdict.statements[0].catches.value == pytest.approx(np.mean(np.array(EXAMPLES) >= 0.7))
    assert "score 0.7 or more, the threshold; that catches about 50%" in verdict.outcome
    rate = place.judge("{probes: {insults: {fdr: 0.1, max_flagged_count: 0}}}")
    assert "where 10 pairs or more together are flagged at fdr 0.1; that catches about 100%" in rate.outcome
    place.probe(axis_probe("other"))
    bare = place.judge("{probes: {other: {threshold: 0.7, max_flagged_count: 0}}}")
    assert bare.outcome.endswith("that catches is not known: the probe keeps none.")


def test_a_recall_needs_a_probe_that_keeps_pairs(place: Place) -> None:
    place.dataset(rows(30))
    place.probe(axis_probe("other"))
    for rule in ("recall: 0.9, max_flagged_count: 0", "max_estimated_count: 3", "max_reaching_count: 0"):
        with pytest.raises(ProbeError, match="'other' keeps no pairs of its own"):
            place.judge(f"{{probes: {{other: {{{rule}}}}}}}")


def test_rules_that_a_trusted_dataset_speaks_for_block_what_it_has_not(place: Place) -> None:
    place.dataset(rows(200), CLEAN)
    command = ["gate", "init", "--from", "data.jsonl", "--vectors", "vectors"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    policy = load_policy(place.policy).policy
    rule = policy.rules.probes["insults"]
    assert (rule.flagging, policy.baseline) == (Rule(recall=0.9), "gate-baseline.safetensors")
    assert rule.max_reaching_count is not None and rule.max_reaching_count.recall == 0.9
    assert "No evidence of insults" not in place.policy.read_text()  # in the middle of a sentence
    assert "data.jsonl: no evidence of insults: 0" in place.policy.read_text()
    write_rows(place.data, [*rows(150), row(700)])
    store_scores(place.folder / "vectors", {pair_id(row(700)): 0.7}, name="more")
    judged = CliRunner().invoke(app, ["gate", "data.jsonl", "--vectors", "vectors", "--today", "2026-06-01"])
    assert judged.exit_code == 1 and "data.jsonl:151" in judged.stdout
    assert CliRunner().invoke(app, ["gate", "init", "--from", "data.jsonl"]).exit_code == 2


def test_a_recall_is_lowered_until_a_trusted_dataset_is_hardly_stopped(place: Place) -> None:
    place.dataset(rows(210), [*np.linspace(0.5, 0.66, 10).tolist(), *CLEAN])
    assert CliRunner().invoke(app, ["gate", "init", "--from", "data.jsonl", "--vectors", "vectors"]).exit_code == 0
    reaching = load_policy(place.policy).policy.rules.probes["insults"].max_reaching_count
    assert reaching is not None and reaching.recall == 0.6
    assert reaching.most_pairs == 105  # one of 210 reaches it
    verdict = place.run(vectors=Path("vectors")).verdict
    assert verdict.passed and verdict.rules[1].sentence.endswith("210 pairs are more than 105")
