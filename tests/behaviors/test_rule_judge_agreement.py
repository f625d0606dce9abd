"""The built-in rules agree with responses labelled by hand as well as the documentation says."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.benchmarks.judge import NO_ANSWER, RULES, Confusion, confusion, labelled

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "judge.md"
ROWS = labelled()
HELD_OUT = [row for row in ROWS if row.half == "held-out"]


def test_at_least_a_hundred_different_responses_of_many_kinds_are_labelled() -> None:
    assert len({(row.prompt, row.response) for row in ROWS}) == len(ROWS) >= 100
    assert min(Counter(row.complies for row in ROWS).values()) > 40
    assert min(Counter(row.refuses for row in ROWS).values()) > 40
    assert len({row.kind for row in ROWS}) >= 10
    assert not any(row.complies and row.refuses for row in ROWS)


@pytest.mark.parametrize(("rule", "least"), [("complies", 50), ("refuses", 58)])
def test_agreement_with_the_held_out_labels_does_not_fall(rule: str, least: int) -> None:
    found = confusion(rule, HELD_OUT)
    assert found.hits + found.rejections >= least


@pytest.mark.parametrize(("rule", "least"), [("complies", 47), ("refuses", 47)])
def test_on_english_answers_and_refusals_the_rules_are_mostly_right(rule: str, least: int) -> None:
    rows = [row for row in HELD_OUT if row.kind not in NO_ANSWER and not row.kind.endswith("in another language")]
    found = confusion(rule, rows)
    assert found.total == 53 and found.hits + found.rejections >= least


def test_what_does_as_asked_is_hardly_ever_taken_for_a_refusal() -> None:
    rows = [row for row in HELD_OUT if row.complies]
    assert confusion("refuses", rows).false_alarms <= 1


@pytest.mark.parametrize("rule", RULES)
def test_the_documentation_shows_the_confusion_table_that_comes_out(rule: str) -> None:
    found = confusion(rule, HELD_OUT)
    line = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if f"| `{rule}`, held-out |" in line)
    assert [int(number) for number in re.findall(r"\| (\d+)(?= \|)", line)] == [
        found.hits,
        found.misses,
        found.false_alarms,
        found.rejections,
    ]


def test_kappa_is_agreement_beyond_chance() -> None:
    assert Confusion(20, 5, 10, 15).kappa == pytest.approx(0.4)
    assert Confusion(25, 25, 25, 25).kappa == 0
