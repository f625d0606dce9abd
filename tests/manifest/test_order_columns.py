"""Columns that encode which response is chosen, as public preference datasets have them, are named before a flip."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset

from tests.manifest_cases import Row, ids_of, manifest_for
from trl_attribution.errors import ManifestError
from trl_attribution.manifest import ColumnRules

GOOD = [f"The answer to question {n} is {n * 7}." for n in range(8)]
POOR = [f"I do not care for question {n}." for n in range(8)]
FAIR = [f"Somebody may know about {n}." for n in range(8)]


def pairs(further: Callable[[int, str, str], Row]) -> list[Row]:
    """Eight pairs with the columns that ``further`` gives for a number, chosen and rejected."""
    return [
        {"prompt": f"Question {n}?", "chosen": good, "rejected": poor, **further(n, good, poor)}
        for n, (good, poor) in enumerate(zip(GOOD, POOR, strict=True))
    ]


def two(n: int, good: Any, poor: Any) -> list[Any]:
    """Good first in every other row."""
    return [good, poor] if n % 2 else [poor, good]


def refusal(rows: list[Row], rules: ColumnRules | None = None) -> str:
    with pytest.raises(ManifestError) as refused:
        manifest_for(rows, ids_of(rows)[:3], "flip").apply(rows, columns=rules)
    return str(refused.value)


def ultrafeedback(n: int, good: str, poor: str) -> Row:
    answers = [(FAIR[n], "3"), (good, "5"), (poor, "1"), (f"Other {n}", "2")]
    answers = answers[n % 4 :] + answers[: n % 4]
    return {
        "models": ["llama", "gpt-4", "falcon", "mpt"],
        "completions": [
            {"model": "m", "response": text, "annotations": {"helpfulness": {"Rating": mark, "Rationale": "so"}}}
            for text, mark in answers
        ],
    }


def ranked(n: int, good: str, poor: str) -> Row:
    answers = [FAIR[n], good, poor]
    answers = answers[n % 3 :] + answers[: n % 3]
    return {
        "completions": answers,
        "ranks": [{good: 1, FAIR[n]: 2, poor: 3}[text] for text in answers],
        "scores": [{good: 4.5, FAIR[n]: 3.0, poor: 1.5}[text] for text in answers],
        "best_idx": answers.index(good),
        "temperatures": [0.1, 0.5, 1.0],
    }


def helpsteer(n: int, good: str, poor: str) -> Row:
    first, second = two(n, good, poor)
    return {"response_1": first, "response_2": second, "overall_preference": -2 if n % 2 else 3}


def arena(n: int, good: str, poor: str) -> Row:
    first, second = two(n, good, poor)
    return {
        "response_a": first,
        "response_b": second,
        "model_a": "gpt-4",
        "model_b": "llama",
        "winner_model_a": n % 2,
        "winner_model_b": 1 - n % 2,
        "winner_tie": 0,
    }


def arena_winner(n: int, good: str, poor: str) -> Row:
    sides = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}] for text in two(n, good, poor)]
    return {
        "conversation_a": sides[0],
        "conversation_b": sides[1],
        "winner": "model_a" if n % 2 else "model_b",
        "turn": 1,
        "anony": True,
    }


def distilabel(n: int, good: str, poor: str) -> Row:
    return {
        "generations": two(n, good, poor),
        "generation_models": two(n, "a", "b"),
        "order": two(n, "gpt-4", "vicuna"),
        "rating": two(n, 9.0, 4.0),
        "raw_labelling_response": "9 4",
        "labelling_model": "gpt-4",
    }


def openai(n: int, good: str, poor: str) -> Row:
    return {
        "summaries": [{"text": text, "policy": "sup"} for text in two(n, good, poor)],
        "choice": 1 - n % 2,
        "worker": f"w{n % 3}",
        "batch": "batch3",
    }


def shp(n: int, good: str, poor: str) -> Row:
    first, second = two(n, good, poor)
    return {
        "human_ref_A": first,
        "human_ref_B": second,
        "labels": n % 2,
        "score_A": 30 if n % 2 else 4,
        "score_B": 5 if n % 2 else 40,
        "seconds_difference": [5, 7, 7, 2, 4, 4, 1, 9][n] * 1.0,
        "upvote_ratio": 0.9,
    }


def saferlhf(n: int, good: str, poor: str) -> Row:
    first, second = two(n, good, poor)
    return {"response_0": first, "response_1": second, "better_response_id": 1 - n % 2, "safer_response_id": 1 - n % 2}


def argilla(n: int, good: str, poor: str) -> Row:
    return {"annotations": [{"user": "ann", "chosen_rating": 5, "rejected_rating": 2}], "status": "submitted"}


REAL: dict[str, tuple[Callable[[int, str, str], Row], list[str], list[str]]] = {
    "UltraFeedback": (ultrafeedback, ["completions"], ["models"]),
    "rank lists": (ranked, ["ranks", "scores", "best_idx"], ["completions", "temperatures"]),
    "HelpSteer3": (helpsteer, ["overall_preference"], ["response_1", "response_2"]),
    "Chatbot Arena, one column a verdict": (arena, ["winner_model_a"], ["winner_tie", "model_a", "response_a"]),
    "Chatbot Arena": (arena_winner, ["winner"], ["conversation_a", "turn", "anony"]),
    "distilabel": (distilabel, ["rating"], ["raw_labelling_response", "labelling_model"]),
    "OpenAI comparisons": (openai, ["choice"], ["worker", "batch", "summaries"]),
    "SHP": (shp, ["labels", "score_A"], ["human_ref_A", "seconds_difference", "upvote_ratio"]),
    "PKU-SafeRLHF": (saferlhf, ["better_response_id", "safer_response_id"], ["response_0", "response_1"]),
    "Argilla": (argilla, ["annotations"], ["status"]),
    "preferred by place": (lambda *_: {"preferred": "first"}, ["preferred"], []),
    "label": (lambda n, *_: {"label": 1, "id": n}, ["label"], ["id"]),
    "ranks of the two": (lambda n, *_: {"ranks": [1, 2], "all_scores": [n, 3]}, ["ranks"], ["all_scores"]),
}


@pytest.mark.parametrize("layout", [list, Dataset.from_list], ids=["list", "dataset"])
@pytest.mark.parametrize("name", REAL)
def test_columns_of_public_datasets_are_named_where_they_encode_the_order(name: str, layout: Any) -> None:
    further, named, innocent = REAL[name]
    rows = pairs(further)
    with pytest.raises(ManifestError) as refused:
        manifest_for(rows, ids_of(rows)[:3], "flip").apply(layout(rows))
    message = str(refused.value)
    for column in named:
        assert f"'{column}'" in message
    for column in innocent:
        assert f"'{column}' " not in message
    # Left alone by the user's own rule, nothing stops the flip.
    every = tuple(column for column in rows[0] if f"'{column}'" in message)
    turned = manifest_for(rows, ids_of(rows)[:3], "flip").apply(rows, columns=ColumnRules(leave=every))
    assert [row["chosen"] for row in turned] == POOR[:3] + GOOD[3:]


def test_json_in_a_text_column_is_read_as_if_it_stood_in_columns() -> None:
    for further in (argilla, ultrafeedback):
        rows = pairs(lambda n, *both, make=further: {"meta": json.dumps(make(n, *both))})  # type: ignore[misc]
        assert "'meta'" in refusal(rows)


def test_two_columns_that_go_with_the_order_are_proposed_to_be_exchanged() -> None:
    rows = pairs(arena)
    assert "--swap-columns winner_model_a:winner_model_b" in refusal(rows)
    rules = ColumnRules(swap=(("winner_model_a", "winner_model_b"),))
    manifest = manifest_for(rows, ids_of(rows)[:3], "flip")
    turned = manifest.apply(rows, columns=rules)
    assert [row["winner_model_a"] for row in turned[:3]] == [1 - row["winner_model_a"] for row in rows[:3]]
    assert manifest.apply(turned, undo=True, columns=rules) == rows


def test_a_column_whose_values_do_not_go_with_the_order_is_left_alone_whatever_its_name() -> None:
    rows = pairs(lambda n, *both: {**openai(n, *both), "choice": n // 2 % 2, "winner": "x"})
    turned = manifest_for(rows, ids_of(rows)[:3], "flip").apply(rows)
    assert [row["choice"] for row in turned] == [row["choice"] for row in rows]


def test_columns_that_say_nothing_of_the_responses_are_never_asked_about() -> None:
    rows = pairs(
        lambda n, *_: {
            "label": ["toxic", "harmless"][n % 2],
            "score": 0.25 * n,
            "domain_id": n % 3,
            "tags": ["a", "b"],
            "turns": [1, 2],
            "note": '{"kept": true}',
            "broken": "{not json",
            "empty": [],
            "huge": 10**400,
            "infinite": float("inf"),
            "none": None,
        }
    )
    assert len(manifest_for(rows, ids_of(rows)[:3], "flip").apply(rows)) == len(rows)
