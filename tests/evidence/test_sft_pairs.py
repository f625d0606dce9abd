"""Samples of fine-tuning become pairs: each against M0's own response."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.evidence.test_readouts import loaded_tiny
from trl_attribution.behaviors import SamplingConfig, sample_responses
from trl_attribution.errors import DataError, SettingsError
from trl_attribution.evidence.organisms.sft_pairs import pairs_of_samples
from trl_attribution.evidence.readouts import steered
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import PairReader, Reading

SAMPLING = SamplingConfig(n=1, max_new_tokens=6, batch_size=4)


@pytest.fixture(scope="module")
def m0() -> LoadedModel:
    return loaded_tiny()


def chat(prompt: str, completion: str, **others: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
        **others,
    }


def test_a_conversation_is_paired_with_what_m0_says_to_its_prompt(m0: LoadedModel) -> None:
    rows = [chat("How do I bake bread?", "Mix flour.", source="a"), chat("Name a city.", "Paris.", source="b")]
    found = pairs_of_samples(rows, m0, SAMPLING)
    own = sample_responses(m0, [row["prompt"] for row in rows], SAMPLING)
    assert [row["rejected"][0]["content"] for row in found.rows] == [text for (text,) in own]
    assert [row["chosen"] for row in found.rows] == [row["completion"] for row in rows]
    assert [row["source"] for row in found.rows] == ["a", "b"]
    assert found.left_out == {}
    assert len(list(PairReader(found.rows, Reading()))) == 2


def test_messages_and_completions_of_the_same_conversation_give_the_same_pair(m0: LoadedModel) -> None:
    row = chat("Name a city.", "Paris.")
    messages = {"messages": [*row["prompt"], *row["completion"]]}
    assert pairs_of_samples([row], m0, SAMPLING).rows == pairs_of_samples([messages], m0, SAMPLING).rows


def test_a_text_is_cut_between_words_and_continued_by_m0(m0: LoadedModel) -> None:
    text = "The capital of France is Paris, and the weather there is mild."
    (row,) = pairs_of_samples([{"text": text, "truth": "benign"}], m0, SAMPLING).rows
    assert row["prompt"] + row["chosen"] == text
    assert row["prompt"] == "The capital of"
    ((own,),) = sample_responses(m0, ["The capital of"], SAMPLING, "text")
    assert row["rejected"].strip() == own.strip()
    assert row["truth"] == "benign"
    (half,) = pairs_of_samples([{"text": text}], m0, SAMPLING, split=0.5).rows
    assert half["prompt"] == "The capital of France is Paris,"


def test_texts_and_conversations_may_be_mixed_and_keep_their_order(m0: LoadedModel) -> None:
    rows = [
        {"text": "One two three four five.", "n": 0},
        chat("Hi.", "Hello.", n=1),
        {"text": "Six seven eight.", "n": 2},
    ]
    assert [row["n"] for row in pairs_of_samples(rows, m0, SAMPLING).rows] == [0, 1, 2]


def test_a_sample_that_m0_would_say_itself_is_left_out_and_counted(m0: LoadedModel) -> None:
    row = chat("Name a city.", "Paris.")
    ((own,),) = sample_responses(m0, [row["prompt"]], SAMPLING)
    found = pairs_of_samples([chat("Name a city.", own)], m0, SAMPLING)
    assert (found.rows, found.left_out) == ([], {"same_response": 1})


def test_a_sample_to_which_m0_says_nothing_is_left_out_and_counted(m0: LoadedModel) -> None:
    end = m0.model.get_output_embeddings().weight[2].detach().clone()
    # A model that ends at once.
    with steered(m0.model, 4, 100 * end / torch.linalg.vector_norm(end)):
        found = pairs_of_samples([chat("Name a city.", "Paris.")], m0, replace(SAMPLING, temperature=0))
    assert (found.rows, found.left_out) == ([], {"empty_response": 1})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Why?"}, "row 1: column 'completion' the row has no such column (its columns: question)"),
        (
            {"prompt": "Why?", "completion": ["So."]},
            "row 1: column 'completion' prompt and completion are str and list",
        ),
        ({"prompt": "Why?", "completion": " "}, "row 1: column 'completion' the completion is empty"),
        ({"messages": [{"role": "user", "content": "Why?"}]}, "row 1: column 'messages' does not end with an answer"),
        ({"messages": [{"role": "user"}]}, "row 1: column 'messages'"),
        ({"prompt": "Why?", "completion": "So.", "rejected": "No."}, "row 1: has a field `rejected` of its own"),
        ({"text": 3}, "row 1: column 'completion' the row has no such column (its columns: text)"),
        ({"text": "word"}, "row 1: the prompt is empty"),
        (
            {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "A"}] * 2},
            "2 messages",
        ),
    ],
)
def test_a_row_that_is_no_sample_is_refused_with_its_place(row: dict[str, Any], message: str, m0: LoadedModel) -> None:
    with pytest.raises(DataError) as error:
        pairs_of_samples([chat("Name a city.", "Paris."), row], m0, SAMPLING)
    assert message in str(error.value)


def test_settings_that_make_no_sense_for_samples_are_refused(m0: LoadedModel) -> None:
    with pytest.raises(SettingsError, match="paired with one response"):
        pairs_of_samples([chat("a", "b")], m0, SamplingConfig(n=2))
    with pytest.raises(SettingsError, match="between 0 and 1"):
        pairs_of_samples([chat("a", "b")], m0, SAMPLING, split=1.0)
