"""Pairs as other frameworks write them are the pairs that a person would make of them by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gate_cases import write_rows
from tests.manifest_cases import manifest_for
from tests.pairs.test_trl_parity import assistant, system, user
from trl_attribution.errors import DataError
from trl_attribution.pairs import Pair, PairReader, Reading, RowFault, pair_id

ASK, GOOD, BAD = "How do I bake bread?", "Mix flour and water.", "No idea."
CHAT = {"prompt": [user(ASK)], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}
TEXT = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
SPOKEN = {**CHAT, "prompt": [system("Be brief."), user(ASK)]}
LONGER = {**CHAT, "prompt": [user("Hi."), assistant("Hello."), user(ASK)]}
Row = dict[str, Any]


def said(speaker: str, text: str) -> Row:
    return {"from": speaker, "value": text}


FILES: dict[str, tuple[Row, Row]] = {
    "open-instruct, Tulu": (
        {"id": "a1", "prompt": ASK, "chosen": [user(ASK), assistant(GOOD)], "rejected": [user(ASK), assistant(BAD)]},
        CHAT,
    ),
    "UltraFeedback binarized, distilabel, Argilla's mixes": (
        {
            "prompt": ASK,
            "prompt_id": "a1",
            "chosen": [user(ASK), assistant(GOOD)],
            "rejected": [user(ASK), assistant(BAD)],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        CHAT,
    ),
    "OpenRLHF": ({"chosen": [user(ASK), assistant(GOOD)], "rejected": [user(ASK), assistant(BAD)]}, CHAT),
    "LLaMA-Factory sharegpt": (
        {
            "conversations": [said("human", "Hi."), said("gpt", "Hello."), said("human", ASK)],
            "chosen": said("gpt", GOOD),
            "rejected": said("gpt", BAD),
        },
        LONGER,
    ),
    "LLaMA-Factory sharegpt with a system prompt": (
        {
            "conversations": [said("human", ASK)],
            "system": "Be brief.",
            "chosen": said("gpt", GOOD),
            "rejected": said("gpt", BAD),
        },
        SPOKEN,
    ),
    "LLaMA-Factory alpaca": (
        {
            "instruction": "How do I bake",
            "input": "bread?",
            "chosen": GOOD,
            "rejected": BAD,
            "history": [["Hi.", "Hello."]],
            "system": "",
        },
        {**LONGER, "prompt": [*LONGER["prompt"][:2], user("How do I bake\nbread?")]},
    ),
    "Axolotl chat_template.default": (
        {"messages": [system("Be brief."), user(ASK)], "chosen": assistant(GOOD), "rejected": assistant(BAD)},
        SPOKEN,
    ),
    "Axolotl chat_template.argilla_chat": (
        {"chosen": [user(ASK), assistant(GOOD)], "rejected": [user(ASK), assistant(BAD)]},
        CHAT,
    ),
    "Axolotl chatml.intel": ({"system": "Be brief.", "question": ASK, "chosen": GOOD, "rejected": BAD}, SPOKEN),
    "HelpSteer2": ({"prompt": ASK, "response_1": GOOD, "response_2": BAD, "preference_strength": -2}, TEXT),
    "HelpSteer2, the other way round": (
        {"prompt": ASK, "response_1": BAD, "response_2": GOOD, "preference_strength": 1},
        TEXT,
    ),
    "HelpSteer2, a system prompt beside it": (
        {"prompt": ASK, "system": "Be brief.", "response_1": GOOD, "response_2": BAD, "preference_strength": -2},
        SPOKEN,
    ),
    "HelpSteer3": ({"context": [user(ASK)], "response1": GOOD, "response2": BAD, "overall_preference": -3}, CHAT),
    "SHP": ({"history": ASK, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0}, TEXT),
    "PKU-SafeRLHF": ({"prompt": ASK, "response_0": BAD, "response_1": GOOD, "better_response_id": 1}, TEXT),
    "Chatbot Arena": (
        {
            "conversation_a": [user(ASK), assistant(BAD)],
            "conversation_b": [user(ASK), assistant(GOOD)],
            "winner": "model_b",
        },
        CHAT,
    ),
    "HH-RLHF": (
        {
            "chosen": f"\n\nHuman: {ASK}\n\nAssistant: {GOOD}",
            "rejected": f"\n\nHuman: {ASK}\n\nAssistant: {BAD}",
        },
        CHAT,
    ),
}
MAPPED: dict[str, tuple[Row, Reading, Row]] = {
    "OpenRLHF's keys": (
        {"context_messages": [user(ASK)], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]},
        Reading(prompt_column="context_messages"),
        CHAT,
    ),
    "LLaMA-Factory's dataset_info.json": (
        {"question": "How do I bake", "ctx": "bread?", "sys": "Be brief.", "chosen": GOOD, "rejected": BAD},
        Reading(format="alpaca", prompt_column="question", columns="input=ctx,system=sys"),
        {**CHAT, "prompt": [system("Be brief."), user("How do I bake\nbread?")]},
    ),
    "alpaca without input": (
        {"instruction": ASK, "chosen": GOOD, "rejected": BAD},
        Reading(format="alpaca"),
        CHAT,
    ),
    "Argilla's questions": (
        {"prompt": ASK, "response-a": BAD, "response-b": GOOD, "better": "response-b"},
        Reading(format="rated", chosen_column="response-a", rejected_column="response-b", columns="preference=better"),
        TEXT,
    ),
    "two verdicts": (
        {"prompt": ASK, "response_0": GOOD, "response_1": BAD, "better_response_id": 1, "safer_response_id": 0},
        Reading(columns="preference=safer_response_id"),
        TEXT,
    ),
}


def by_hand(row: Row) -> Pair:
    return next(iter(PairReader([row], Reading(format="trl"))))


@pytest.mark.parametrize(("row", "meant"), FILES.values(), ids=FILES)
def test_a_file_is_recognized_and_means_what_its_framework_trains_on(row: Row, meant: Row, tmp_path: Path) -> None:
    reader = PairReader(write_rows(tmp_path / "data.jsonl", [row] * 3))
    pairs = list(reader)
    assert {(pair.prompt, pair.chosen, pair.rejected) if isinstance(pair.prompt, str) else "" for pair in pairs} == {
        (ASK, GOOD, BAD) if isinstance(meant["prompt"], str) else ""
    }
    assert {pair.pair_id for pair in pairs} == {by_hand(meant).pair_id} == {pair_id(row)}
    # What is stored with an audit reads the rows in the same way, and another file of one row as well.
    assert next(iter(PairReader([row], reader.resolved))).pair_id == pairs[0].pair_id


@pytest.mark.parametrize(("row", "reading", "meant"), MAPPED.values(), ids=MAPPED)
def test_other_columns_are_mapped_in_a_line(row: Row, reading: Reading, meant: Row) -> None:
    (pair,) = PairReader([row], reading)
    assert pair.pair_id == by_hand(meant).pair_id == pair_id(row, reading)


@pytest.mark.parametrize("name", ["LLaMA-Factory alpaca", "LLaMA-Factory sharegpt", "HelpSteer2", "Chatbot Arena"])
def test_a_flip_is_the_other_way_round_for_its_framework_too_and_twice_is_nothing(name: str, tmp_path: Path) -> None:
    row, meant = FILES[name]
    # Two rows, so that the second has to stay as it is.
    other = json.loads(json.dumps(row).replace("bread", "cake"))
    data = write_rows(tmp_path / "data.jsonl", [row, other])
    reader = PairReader(data)
    manifest = manifest_for(data, [pair_id(row)], "flip", reader.resolved)
    flipped = tmp_path / "flipped.jsonl"
    manifest.apply_file(data, flipped)
    turned = list(PairReader(flipped))
    assert [pair.pair_id for pair in turned] == [by_hand(meant).flipped_id, pair_id(other)]
    assert manifest.check_file(data, flipped).flipped == 1
    manifest.apply_file(flipped, tmp_path / "back.jsonl", undo=True)
    assert (tmp_path / "back.jsonl").read_bytes() == data.read_bytes()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"instruction": ASK, "completions": [{"response": GOOD, "overall_score": 8}]}, "as UltraFeedback has them.*"),
        (
            {"instruction": ASK, "generations": [GOOD, BAD], "ratings": [5, 1]},
            "as distilabel writes them.*write prompt",
        ),
        ({"prompt": ASK, "answers": [{"answer": GOOD, "rank": 1}]}, "as Nectar has them.*write prompt, chosen and"),
        (
            {"prompt": ASK, "response_0": GOOD, "response_1": BAD, "better_response_id": 0, "safer_response_id": 1},
            r"two columns say which .* --columns preference=better_response_id",
        ),
        (
            {"instruction": ASK, "chosen": GOOD, "rejected": BAD},
            "--prompt-column instruction .* add --format alpaca too",
        ),
    ],
    ids=["UltraFeedback", "distilabel", "Nectar", "two verdicts", "text or chat"],
)
def test_what_can_be_meant_in_two_ways_is_refused_with_the_way_out(row: Row, says: str) -> None:
    with pytest.raises(DataError, match=says):
        PairReader([row, row, row])


def test_a_dataset_that_says_what_is_chosen_is_read_so_whatever_stands_beside_it() -> None:
    row = {"prompt": ASK, "chosen": BAD, "rejected": GOOD, "response_1": GOOD, "response_2": BAD}
    for verdicts in (
        {"preference_strength": -2},
        {"better_response_id": 0, "safer_response_id": 0, "response_0": GOOD},
    ):
        (pair,) = PairReader([{**row, **verdicts}])
        assert (pair.chosen, pair.rejected) == (BAD, GOOD)


def test_rows_that_prefer_nothing_are_left_out_and_counted() -> None:
    base = {"prompt": ASK, "response_1": GOOD, "response_2": BAD}
    rows = [{**base, "preference_strength": value} for value in (-1, 0, 2)]
    reader = PairReader(rows)
    assert len(list(reader)) == 2
    assert [(row.row, row.reason) for row in reader.skipped] == [(1, "tie")]
    with pytest.raises(DataError, match=r"no example teaches anything \(tie: all of them\)"):
        list(PairReader(rows[1:2]))
    for odd in ("maybe", float("nan"), True):
        with pytest.raises(RowFault, match=f"preference_strength: holds '{odd}'. Write 'response_1' or 'response_2'"):
            pair_id({**base, "preference_strength": odd})


def test_a_prompt_that_ends_with_an_answer_is_no_prompt() -> None:
    row = {"messages": [user(ASK), assistant(GOOD)], "chosen": assistant(GOOD), "rejected": assistant(BAD)}
    with pytest.raises(RowFault, match="messages: ends with an answer"):
        pair_id(row)


def test_a_whole_conversation_beside_whole_conversations_is_read_as_trl_reads_it() -> None:
    row = {"messages": [user(ASK)], "chosen": [user(ASK), assistant(GOOD)], "rejected": [user(ASK), assistant(BAD)]}
    for given in (row, {**row, "prompt": ASK}):
        reader = PairReader([given])
        assert (reader.format, next(iter(reader)).pair_id) == ("trl", by_hand(CHAT).pair_id)


def test_a_system_prompt_beside_a_sharegpt_conversation_is_read() -> None:
    row = {"conversations": [said("human", ASK), said("gpt", GOOD)], "system": "Be brief."}
    assert pair_id(row) == pair_id({"messages": [system("Be brief."), user(ASK), assistant(GOOD)]})
