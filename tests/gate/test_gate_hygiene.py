"""Rules about the data itself: they need no model, no probes and no vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import binomtest

from tests.gate_cases import Place, only_rule, row, rows, write_rows
from trl_attribution.errors import DataError
from trl_attribution.gate.verdict import RuleResult
from trl_attribution.pairs import pair_id


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


def judged(place: Place, data: list[dict[str, object]], rule: str, more: str = "") -> RuleResult:
    write_rows(place.data, data)
    place.policy.write_text(f"version: 1\n{more}\nrules: {{hygiene: {{{rule}}}}}\n", encoding="utf-8")
    return only_rule(place.run().verdict)


def lines(rule: RuleResult) -> list[int | None]:
    return [violation.place.line for violation in rule.violations if violation.place is not None]


def test_every_row_beyond_the_first_of_a_pair_is_a_duplicate(place: Place) -> None:
    data = [row(0), row(1), row(0), row(2), row(0, source="elsewhere"), row(1)]
    rule = judged(place, data, "duplicates: 0")
    assert (rule.rule, rule.measured, rule.passed) == ("hygiene.duplicates", 3, False)
    assert lines(rule) == [3, 5, 6]
    assert {violation.pair_id for violation in rule.violations} == {pair_id(row(0)), pair_id(row(1))}


def test_pairs_that_also_stand_the_other_way_round_contradict(place: Place) -> None:
    turned = row(1, chosen=row(1)["rejected"], rejected=row(1)["chosen"])
    rule = judged(place, [row(0), row(1), row(2), turned], "contradictions: 0")
    assert rule.measured == 2 and lines(rule) == [2, 4]
    assert judged(place, rows(4), "contradictions: 0").passed


def test_empty_and_identical_responses_are_judged_by_their_rules(place: Place) -> None:
    data = [row(0), row(1, chosen=" "), row(2, rejected="Yes, answer 2.")]
    more = "reading: {on_bad_row: skip}"
    empty = judged(place, data, "empty_responses: 0", more)
    assert lines(empty) == [2] and "the response is empty" in empty.violations[0].message
    identical = judged(place, data, "identical_responses: 0", more)
    assert lines(identical) == [3] and not identical.passed


def test_a_bad_row_that_no_rule_judges_ends_the_gate(place: Place) -> None:
    data = [row(0), row(1, chosen=" "), row(2, rejected="Yes, answer 2.")]
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be read(.|\n)*data.jsonl:3: column 'rejected'"):
        judged(place, data, "empty_responses: 9")


def test_rows_left_out_are_counted_in_the_verdict(place: Place) -> None:
    write_rows(place.data, [row(0), row(1, chosen=" "), row(2, rejected="Yes, answer 2."), {"prompt": "x"}])
    place.policy.write_text("version: 1\nreading: {on_bad_row: skip}\nrules: {hygiene: {duplicates: 0}}\n")
    verdict = place.run().verdict
    assert verdict.skipped == {"empty_response": 1, "identical_responses": 1, "missing_column": 1}
    assert (verdict.pairs, verdict.examined, verdict.model_fingerprint) == (1, 1, "")


def test_a_dataset_without_one_readable_row_ends_the_gate_even_where_rows_are_skipped(place: Place) -> None:
    with pytest.raises(DataError, match="Not one row can be read"):
        judged(place, [row(0, chosen=" "), row(1, chosen="")], "empty_responses: 9", "reading: {on_bad_row: skip}")


def test_prompts_of_too_many_characters_are_found_longest_first(place: Place) -> None:
    data = [row(0), row(1, prompt="x" * 50), row(2, prompt="x" * 80), row(3, prompt="x" * 49)]
    rule = judged(place, data, "long_prompts: {limit: 1, characters: 49}")
    assert lines(rule) == [3, 2] and rule.measured == 2


def test_lengths_are_those_of_all_messages_of_a_response(place: Place) -> None:
    def talk(number: int, chosen: str, rejected: str) -> dict[str, object]:
        said = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
        prompt = [{"role": "user", "content": f"{number}?"}]
        return {"prompt": prompt, "chosen": said[0], "rejected": said[1]}

    data = [talk(number, "long" * 9, f"no {number}") for number in range(20)]
    assert judged(place, data, "length_bias: 0.6").measured == 1.0


def test_a_preference_for_length_is_found_where_it_is_no_chance(place: Place) -> None:
    longer = [row(number, chosen=f"Yes, {number}, and much more.") for number in range(18)]
    shorter = [row(number, chosen=f"{number}") for number in range(100, 102)]
    rule = judged(place, [*longer, *shorter], "length_bias: {limit: 0.6}")
    p_value = binomtest(18, 20, 0.6, alternative="greater").pvalue
    assert rule.measured == 0.9 and not rule.passed and f"p = {p_value:.2g}" in rule.sentence
    assert [violation.place for violation in rule.violations] == [None]
    assert judged(place, longer[:3], "length_bias: {limit: 0.6}").passed  # three of three may be chance


def test_responses_of_equal_length_count_half(place: Place) -> None:
    assert judged(place, [row(0, chosen="abc", rejected="xyz")], "length_bias: 0.5").measured == 0.5


def test_hostile_text_in_a_row_cannot_break_out_of_a_message(place: Place) -> None:
    data = [row(0), {"chosen\x1b[2J": "a", "rejected": "b"}]
    with pytest.raises(DataError) as caught:
        judged(place, data, "duplicates: 0")
    assert "\x1b" not in str(caught.value) and "\\x1b" in str(caught.value)


def test_rules_that_need_no_vectors_load_no_probes(place: Place) -> None:
    write_rows(place.data, rows(2))
    place.policy.write_text("version: 1\nprobes: nowhere\nmodel: nowhere\nrules: {hygiene: {duplicates: 0}}\n")
    assert place.run().verdict.passed
