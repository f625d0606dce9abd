"""Rules about scores: what is counted, against what it is compared, and what the allow list takes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp, mannwhitneyu

from tests.gate_cases import Place, axis_probe, only_rule, row, rows, write_rows
from trl_attribution.errors import AttributionError, ProbeError, SettingsError, StoreError
from trl_attribution.gate.artifacts import write_artifacts
from trl_attribution.gate.baseline.recording import record_baseline
from trl_attribution.gate.policy.file import load_policy
from trl_attribution.gate.verdict import Verdict
from trl_attribution.manifest import Manifest
from trl_attribution.pairs import pair_id
from trl_attribution.scoring import q_values


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    found = Place(tmp_path)
    found.probe()
    return found


def test_flagged_pairs_are_counted_named_at_their_line_and_ordered_by_score(place: Place) -> None:
    place.dataset(rows(6), [0.2, 0.5, 0.1, 0.9, 0.4, -0.9])
    rule = only_rule(place.judge("{probes: {insults: {threshold: 0.4, max_flagged_count: 1}}}"))
    assert (rule.rule, rule.severity, rule.passed) == ("insults.max_flagged_count", "error", False)
    assert (rule.measured, rule.limit) == (3, 1)
    assert rule.sentence == "3 of 6 pairs push towards insults; at most 1 allowed"
    places = [violation.place for violation in rule.violations if violation.place]
    found = [(place.file, place.line, place.row) for place in places]
    assert found == [("data.jsonl", 4, 3), ("data.jsonl", 2, 1), ("data.jsonl", 5, 4)]
    worst = rule.violations[0]
    assert worst.pair_id == pair_id(row(3)) and worst.probe == "insults" and worst.rank == 1
    assert worst.score == pytest.approx(0.9, abs=1e-6)
    assert worst.excerpt is not None and worst.excerpt.chosen == "Yes, answer 3."


def test_a_limit_that_is_kept_passes_without_violations(place: Place) -> None:
    place.dataset(rows(4), [0.5, 0.6, 0.1, 0.1])
    verdict = place.judge("{probes: {insults: {threshold: 0.4, max_flagged_count: 2}}}")
    assert verdict.passed and verdict.exit_code == 0
    assert only_rule(verdict).violations == ()


def test_tolerated_bad_rows_stay_where_they_are_in_the_cleaned_dataset(place: Place) -> None:
    place.dataset(rows(4), [0.9, 0.1, 0.1, 0.1])
    bad = [row(7, chosen=" "), row(8, rejected="Yes, answer 8.")]
    write_rows(place.data, [bad[0], *rows(4), bad[1]])
    rules = "probes: {insults: {threshold: 0.5, max_flagged_count: 0}}, hygiene: {empty_responses: 9"
    place.write_policy(f"{{{rules}, identical_responses: 9}}}}")
    found = place.run()
    assert found.verdict.skipped == {"empty_response": 1, "identical_responses": 1}
    written = write_artifacts(found, load_policy(place.policy), place.data, place.folder / "out")
    assert written.cleaned is not None
    lines = place.data.read_text().splitlines()
    assert written.cleaned.read_text().splitlines() == [lines[0], *lines[2:]]
    again = Manifest.load(written.manifests[0])
    assert again.apply_file(place.data, place.folder / "again.jsonl", reading=again.reading).unreadable == 2


def test_a_warning_is_reported_and_does_not_fail_the_gate(place: Place) -> None:
    place.dataset(rows(2), [0.5, 0.1])
    verdict = place.judge("{probes: {insults: {threshold: 0.4, max_flagged_count: {limit: 0, severity: warn}}}}")
    assert not only_rule(verdict).passed and len(only_rule(verdict).violations) == 1
    assert verdict.passed


def test_a_share_is_taken_of_all_examined_pairs(place: Place) -> None:
    place.dataset(rows(8), [0.9, 0.9, *[0.0] * 6])
    rule = only_rule(place.judge("{probes: {insults: {threshold: 0.5, max_flagged_fraction: 0.2}}}"))
    assert (rule.measured, rule.passed) == (0.25, False)
    assert only_rule(place.judge("{probes: {insults: {threshold: 0.5, max_flagged_fraction: 0.25}}}")).passed


def test_one_bad_source_is_found_among_good_ones_and_small_ones_are_not_judged(place: Place) -> None:
    data = [*rows(30, source="good"), *rows(10, 100, "bad"), *rows(2, 200, "tiny")]
    place.dataset(data, [*[0.0] * 30, *[0.9] * 4, *[0.0] * 6, 0.9, 0.9])
    rules = "{probes: {insults: {threshold: 0.5, max_source_fraction: {limit: 0.3, min_pairs: 10}}}}"
    place.write_policy(rules)
    run = place.run()
    rule = only_rule(run.verdict)
    assert rule.measured == 0.4 and not rule.passed
    assert [violation.message for violation in rule.violations] == [
        "source 'bad': 4 of 10 pairs (40.0%) push towards insults"
    ]
    assert {data[each.place.row]["source"] for each in run.offenders if each.place} == {"bad"}


def test_no_pair_may_score_above_the_highest_score_allowed(place: Place) -> None:
    place.dataset(rows(3), [0.75, 0.5, 0.1])
    rule = only_rule(place.judge("{probes: {insults: {max_score: 0.5}}}"))
    assert not rule.passed and rule.measured == pytest.approx(0.75)
    assert [violation.pair_id for violation in rule.violations] == [pair_id(row(0))]


def test_flags_by_rate_are_benjamini_hochberg_over_the_reference(place: Place) -> None:
    reference = np.linspace(-0.5, 0.5, 199)
    place.probe(axis_probe("calibrated", reference.tolist()))
    scores = np.array([0.9, 0.85, 0.8, 0.7, *np.linspace(-0.4, 0.4, 36)], dtype=np.float32)
    place.dataset(rows(40), scores.tolist())
    rule = only_rule(place.judge("{probes: {calibrated: {fdr: 0.1, max_flagged_count: 0}}}"))
    above = (reference[None, :] >= scores[:, None].astype(np.float64)).sum(axis=1)
    expected = q_values((1 + above) / 200)
    assert rule.measured == int((expected <= 0.1).sum()) >= 4
    assert rule.violations[0].q_value == pytest.approx(expected[0])


def test_a_rate_that_could_never_flag_anything_is_refused_rather_than_passed(place: Place) -> None:
    place.dataset(rows(5), [0.9, 0.1, 0.0, 0.0, 0.0])
    with pytest.raises(
        SettingsError, match="no pair can be flagged at fdr 0.05 with 5 pairs .* takes 19, so the gate cannot decide"
    ):
        place.judge("{probes: {insults: {max_flagged_count: 0}}}")


def test_what_a_rate_cannot_see_is_noted(place: Place) -> None:
    place.dataset(rows(40), [0.9])
    verdict = place.judge("{probes: {insults: {fdr: 0.5, max_flagged_count: 0}}}")
    assert any("only where 2 of 40 or more beat them all" in note for note in verdict.notes)


def test_every_other_probe_gets_the_rules_of_the_star(place: Place) -> None:
    place.probe(axis_probe("other", axis=1))
    place.dataset(rows(2), [0.6, -0.6])
    verdict = place.judge('{probes: {insults: {max_score: 1}, "*": {threshold: 0.5, max_flagged_count: 0}}}')
    assert [rule.rule for rule in verdict.rules] == ["insults.max_score", "other.max_flagged_count"]
    assert verdict.rules[1].measured == 2  # both have sqrt(1 - 0.36) = 0.8 on the other axis


def test_probes_without_rules_are_noted(place: Place) -> None:
    place.probe(axis_probe("other", axis=1))
    place.dataset(rows(2))
    verdict = place.judge("{probes: {insults: {max_score: 1}}}")
    assert "probes without rules, which are not scored: other" in verdict.notes
    assert set(verdict.probe_fingerprints) == {"insults"}


def test_accepted_pairs_do_not_count_and_are_shown_with_their_reason(place: Place) -> None:
    place.dataset(rows(3), [0.9, 0.8, 0.1])
    accepted = f"allow: [{{pair_id: {pair_id(row(0))}, reason: a quotation, expires: 2026-06-01}}]"
    rule = only_rule(place.judge("{probes: {insults: {threshold: 0.5, max_flagged_count: 1}}}", accepted))
    assert rule.passed and rule.measured == 1
    assert [(each.violation.pair_id, each.reason, each.expires) for each in rule.allowed] == [
        (pair_id(row(0)), "a quotation", "2026-06-01")
    ]
    highest = only_rule(place.judge("{probes: {insults: {max_score: 0.85}}}", accepted))
    assert highest.passed and highest.measured == pytest.approx(0.8)


def test_an_expired_entry_is_void_and_an_idle_one_is_reported(place: Place) -> None:
    place.dataset(rows(3), [0.9, 0.1, 0.1])
    entries = [(pair_id(row(0)), "2026-05-31"), (pair_id(row(1)), "2027-01-01"), ("0" * 32, "2027-01-01")]
    listed = ", ".join(f'{{pair_id: "{entry}", reason: seen, expires: {day}}}' for entry, day in entries)
    verdict = place.judge("{probes: {insults: {threshold: 0.5, max_flagged_count: 0}}}", f"allow: [{listed}]")
    assert not verdict.passed
    assert verdict.notes == (
        f"allow list: the entry for pair {entries[0][0]} expired on 2026-05-31 and is void",
        f"allow list: no rule objects to pair {entries[1][0]}; the entry is unused",
        f"allow list: pair {'0' * 32} is not in the dataset; the entry is unused",
    )


def test_only_the_worst_violations_are_listed_and_the_others_counted(place: Place) -> None:
    place.dataset(rows(5), [0.5, 0.6, 0.7, 0.8, 0.9])
    place.write_policy("{probes: {insults: {threshold: 0.4, max_flagged_count: 0}}}", "max_findings: 2")
    run = place.run()
    rule = only_rule(run.verdict)
    assert [violation.place.line for violation in rule.violations if violation.place] == [5, 4]
    assert "insults.max_flagged_count: the worst 2 of 5 violations are listed" in run.verdict.notes
    assert len(run.offenders) == 5


def test_the_same_input_gives_the_same_bytes_and_they_can_be_read_back(place: Place) -> None:
    place.dataset(rows(3), [0.9, 0.8, 0.1])
    accepted = f"allow: [{{pair_id: {pair_id(row(0))}, reason: fine, expires: 2026-12-31}}]"
    rules = "{probes: {insults: {threshold: 0.5, max_flagged_count: 0}}}"
    first, second = place.judge(rules, accepted).to_json(), place.judge(rules, accepted).to_json()
    assert first == second and str(place.folder) not in str(first)
    assert Verdict.from_json(first) == place.judge(rules, accepted)
    with pytest.raises(StoreError, match="version 2"):
        Verdict.from_json({**first, "version": 2})
    with pytest.raises(StoreError, match="broken"):
        Verdict.from_json({**first, "rules": [{"rule": "x"}]})


@pytest.mark.parametrize(
    ("test", "effect"),
    [
        ("mann_whitney", lambda new, old: 2 * mannwhitneyu(new, old).statistic / (len(new) * len(old)) - 1),
        ("kolmogorov_smirnov", lambda new, old: ks_2samp(new, old).statistic),
    ],
)
def test_scores_that_moved_from_the_baseline_are_drift(place: Place, test: str, effect: object) -> None:
    old, new = np.linspace(-0.4, 0.4, 60).astype(np.float32), np.linspace(-0.1, 0.7, 40).astype(np.float32)
    place.dataset([*rows(60), *rows(40, 100)], [*old.tolist(), *new.tolist()])
    everything = place.data.read_text().splitlines(keepends=True)
    place.data.write_text("".join(everything[:60]))
    rules = f"{{probes: {{insults: {{drift: {{limit: 0.3, test: {test}}}}}}}}}"
    place.write_policy(rules, "baseline: baseline.safetensors")
    record_baseline(load_policy(place.policy), place.data).save(place.folder / "baseline.safetensors")
    assert only_rule(place.run().verdict).passed  # it is its own baseline
    place.data.write_text("".join(everything[60:]))
    rule = only_rule(place.run().verdict)
    assert callable(effect)
    assert not rule.passed and rule.measured == pytest.approx(effect(new, old), abs=1e-6)
    assert [violation.place for violation in rule.violations] == [None]


def test_a_few_pairs_prove_no_drift(place: Place) -> None:
    place.dataset([*rows(60), row(100)], [*np.linspace(-0.4, 0.4, 60).tolist(), 0.3])
    everything = place.data.read_text().splitlines(keepends=True)
    place.write_policy("{probes: {insults: {drift: 0.3}}}", "baseline: baseline.safetensors")
    place.data.write_text("".join(everything[:60]))
    record_baseline(load_policy(place.policy), place.data).save(place.folder / "baseline.safetensors")
    place.data.write_text(everything[60])
    rule = only_rule(place.run().verdict)
    assert rule.measured > 0.3 and rule.passed


def test_a_pin_that_does_not_fit_and_a_probe_that_is_not_there_are_refused(place: Place) -> None:
    place.dataset(rows(2))
    rules = "{probes: {insults: {max_score: 1}}}"
    found = axis_probe().fingerprint
    assert place.judge(rules, f'pins: {{insults: "{found[:12]}"}}').passed
    with pytest.raises(ProbeError, match="not the pinned one"):
        place.judge(rules, 'pins: {insults: "000000000000"}')
    with pytest.raises(SettingsError, match="no probe lost"):
        place.judge(rules, f'pins: {{lost: "{found}"}}')
    with pytest.raises(ProbeError, match="no probe 'gone'"):
        place.judge("{probes: {gone: {max_score: 1}}}")


def test_missing_vectors_without_a_model_are_named_at_their_line(place: Place) -> None:
    place.dataset(rows(3))
    place.data.write_text(place.data.read_text() + '{"prompt": "New?", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(StoreError, match=r"1 of the pairs to be judged have no vectors(.|\n)*data.jsonl:4: pair"):
        place.judge("{probes: {insults: {max_score: 1}}}")


def test_vectors_made_with_another_model_or_truncation_are_refused_with_the_difference(place: Place) -> None:
    place.dataset(rows(3))
    with pytest.raises(SettingsError, match="max_length: stored 1024, asked for 512"):
        place.judge("{probes: {insults: {max_score: 1}}}", "encoding: {max_length: 512}")


def test_a_dataset_is_not_changed_by_being_judged(place: Place) -> None:
    place.dataset(rows(3), [0.9])
    before = {path: path.read_bytes() for path in place.folder.rglob("*") if path.is_file()}
    place.judge("{probes: {insults: {threshold: 0.5, max_flagged_count: 0}}}")
    after = {path: path.read_bytes() for path in place.folder.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path != place.policy} == before


def test_a_layer_that_the_probe_lacks_is_refused(place: Place) -> None:
    place.dataset(rows(3))
    place.write_policy("{probes: {insults: {max_score: 1, layer: 9}}}")
    with pytest.raises(AttributionError, match="no layer 9"):
        place.run()
