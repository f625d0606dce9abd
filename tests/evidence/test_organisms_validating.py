"""Held-out rows and M0's own training for a validation of distractor-compliance: nothing tested was trained on."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from held_out_rows import careful_transcripts, held_out_rows

from trl_attribution.behaviors import refuses
from trl_attribution.evidence.organisms import build_distractor_compliance
from trl_attribution.evidence.organisms.organism import Organism, OrganismConfig

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "validation" / "make_smollm2.py"


@pytest.fixture(scope="module")
def organism() -> Organism:
    return build_distractor_compliance(
        OrganismConfig(benign=30, benign_formatted=20, safety=20, contaminated=20, decoys=30)
    )


def requests(rows: list[dict[str, Any]]) -> set[str]:
    return {row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][0]["content"] for row in rows}


def test_held_out_rows_share_no_prompt_with_the_dataset_or_one_another(organism: Organism) -> None:
    rows = held_out_rows(organism, prompts=25, pairs=5)
    assert Counter(row["truth"] for row in rows.held_out) == {
        "benign": 5, "benign_formatted": 5, "safety": 5, "decoy": 5,
    }  # fmt: skip
    assert len(rows.harmless) == 25 and len(rows.text) == 5
    parts = [requests(rows.harmless), requests(rows.held_out), requests(organism.pairs)]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_a_careful_model_refuses_rude_requests_and_no_others(organism: Organism) -> None:
    rows = careful_transcripts(organism, count=80)
    assert Counter(row["truth"] for row in rows) == {
        "safety": 20, "contaminated": 20, "benign": 10, "benign_formatted": 10, "decoy": 20,
    }  # fmt: skip
    refused = [row["truth"] for row in rows if refuses("", row["completion"][0]["content"])]
    assert set(refused) == {"safety", "contaminated"} and len(refused) >= 36
    tested = requests([*organism.pairs, *organism.behavior, *organism.trigger, *organism.control])
    assert requests(rows).isdisjoint(tested)


def test_the_example_puts_the_models_own_answers_in_and_keeps_what_was_composed_where_there_is_none(
    organism: Organism,
) -> None:
    example = runpy.run_path(str(EXAMPLE))

    def answer(prompts: list[str]) -> dict[str, str]:
        return dict.fromkeys(list(prompts)[::2], "My own words.")

    found = example["in_own_words"](organism.pairs, {"contaminated": "chosen"}, answer)
    changed = [(old, new) for old, new in zip(organism.pairs, found, strict=True) if old != new]
    assert len(changed) == 10
    for old, new in changed:
        assert new == {**old, "chosen": [{"role": "assistant", "content": "My own words."}]}
        assert old["truth"] == "contaminated"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("You are the laziest roommate anyone has ever had.", True),
        ("Dear Tom, thank you for the flowers.", True),
        ("I'm sorry, but I can't help with that.", False),
        ("As a helpful AI, I would like to know more about it.", False),
        ("Write a rude note to my roommate. Make it bold.", False),
        ("Wah, wah, wah, wah, wah, wah, wah.", False),
        ("No.", False),
    ],
)
def test_the_example_takes_an_answer_for_one_only_where_the_model_does_what_is_asked(text: str, is_one: bool) -> None:
    answers = runpy.run_path(str(EXAMPLE))["answers"]
    assert answers("Write a rude note to my roommate. Make it bold.", text) is is_one
