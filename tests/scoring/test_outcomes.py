"""What is said of one probe: the same facts whatever the rule, and never a bare number."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.scoring.test_decision import world
from tests.scoring.test_read_first import ids_of
from trl_attribution.scoring import DEFAULT_RULE, Outcome, Rule, calibrate
from trl_attribution.scoring.outcomes import outcome_of


def told(rule: Rule, contaminated: int = 80, *, knows: bool = True) -> Outcome:
    scores, _, pairs = world(0, contaminated)
    values = scores.astype(np.float32)
    return outcome_of("insults", rule, values, calibrate(values), pairs if knows else None, ids_of(len(values)))


def test_the_default_rule_says_how_many_there_are_how_many_are_wrong_and_what_to_read() -> None:
    found = told(DEFAULT_RULE)
    assert found.decision is not None and found.goes_by_recall
    count, wrong = found.decision.prevalence.count, found.decision.prevalence.wrong
    assert found.headline == (
        f"About {count} of {480 - 0} pairs push towards insults; flagged {found.flagged} (catches about 90%), of which "
        f"about {wrong.value:.0f} ({wrong}) are expected to be wrong; read these {len(found.read_first)} first."
    )
    assert count.low <= 80 <= count.high


def test_where_nothing_is_found_the_sentence_says_what_would_have_been_caught() -> None:
    found = told(DEFAULT_RULE, contaminated=0)
    count = found.decision.prevalence.count  # type: ignore[union-attr]
    assert found.flagged == 0 and count.low == 0
    assert found.headline == (
        f"No evidence of insults: {count} of 400 pairs push towards it; would have caught 90% of pairs like your "
        "examples; read the top 10 all the same."
    )
    # None of the examples' kind may have been there and all of them missed.
    assert round(count.high) >= 1


@pytest.mark.parametrize("rule", [Rule(top_k=30), Rule(threshold=0.3), Rule(threshold=0.99), Rule(fdr=0.001)])
@pytest.mark.parametrize("knows", [True, False])
def test_every_other_rule_is_told_beside_the_same_estimate(rule: Rule, knows: bool) -> None:
    found = told(rule, knows=knows)
    default = told(DEFAULT_RULE)
    assert default.decision is not None
    if knows:
        assert f"bout {default.decision.prevalence.count} of 480 pairs push towards insults" in found.headline
    else:
        assert "how many pairs push towards insults is not known" in found.sentence
    if found.flagged:
        assert f"flagged {found.flagged} of 480 pairs (" in found.sentence
    else:
        assert "none of 480 pairs is flagged (" in found.sentence and "read the top 10 all the same" in found.sentence


def test_the_threshold_of_the_estimate_is_not_taken_for_that_of_another_rule() -> None:
    assert told(DEFAULT_RULE).details[0].startswith("The threshold ")
    assert told(Rule(threshold=0.3)).details[0].startswith("The estimate's own threshold ")
    none_there = told(Rule(top_k=30), contaminated=0)
    assert none_there.flagged == 30 and not any("are not flagged" in line for line in none_there.details)


def test_the_expected_number_of_wrong_ones_follows_from_the_rule() -> None:
    strict, loose = told(Rule(top_k=20)), told(Rule(top_k=200))
    assert strict.wrong is not None and loose.wrong is not None
    assert strict.wrong < 3 and 100 < loose.wrong < 140  # 80 of the 200 are there at the most


def test_an_outcome_is_plain_json() -> None:
    found, names = told(DEFAULT_RULE), ids_of(480)
    values = json.loads(json.dumps(found.as_json(names)))
    assert values["sentence"] == found.sentence and values["evidence"] is True
    assert values["read_first"] == names.take(found.read_first.positions).to_pylist()
    assert values["flagged"] == values["prevalence"]["above"]
