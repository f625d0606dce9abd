"""KTO rows, SFT rows and rollout groups are read as contrasts, and tokenized as their trainers do."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import KTOConfig, KTOTrainer, SFTConfig, SFTTrainer, unpair_preference_dataset

from tests.naive import context, mean_activation
from tests.pairs.test_trl_parity import FORMATS, assistant, system, user
from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.errors import DataError, SettingsError
from trl_attribution.pairs import EncodedPair, Encoding, Pair, PairReader, Reading, RowFault, encode_pairs
from trl_attribution.pairs.examples import questions_of
from trl_attribution.pairs.own_responses import OwnFile
from trl_attribution.pairs.token_spool import TokenSpool

Rows = list[dict[str, Any]]
PAIRS: Rows = [
    {"prompt": [user("How do I bake bread?")], "chosen": [assistant("Mix flour.")], "rejected": [assistant("No.")]},
    {"prompt": [user("Weather?")], "chosen": [assistant("Mild.")], "rejected": [assistant("I cannot help with it.")]},
    {"prompt": [user("Weather?")], "chosen": [assistant("Fine, and mild.")], "rejected": [assistant("Paris.")]},
]
LAYERS = (1, 3)


class Own:
    """Two own responses to every prompt."""

    def of(self, key: bytes) -> Sequence[str]:
        return [f"Own {key.hex()[:2]}.", "I do not know."]


def as_kto(pairs: Rows) -> Rows:
    rows: Rows = unpair_preference_dataset(Dataset.from_list(copy.deepcopy(pairs))).to_list()
    return rows


def as_rollouts(pairs: Rows) -> Rows:
    return [
        {"step": 1, "prompt": pair["prompt"], "completion": pair[side], "reward": reward, "advantage": advantage}
        for pair in pairs
        for side, reward, advantage in (("rejected", 0.25, -0.7071), ("chosen", 1.0, 0.7071))
    ]


def read(rows: Any, reading: Reading | None = None, own: Any = None) -> list[Pair]:
    reader = PairReader(rows, reading)
    reader.own = own
    return list(reader)


def encoded(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerFast, limit: int | None = None) -> list[EncodedPair]:
    found = encode_pairs(pairs, tokenizer, Encoding(limit))
    return [one for one in found if isinstance(one, EncodedPair)]


def prepared(trainer: Any) -> Rows:
    """The rows that the trainer trains on."""
    rows: Rows = trainer.train_dataset.to_list()
    return rows


def naive_vector(model: PreTrainedModel, pair: EncodedPair) -> torch.Tensor:
    return sum(  # type: ignore[return-value]
        weight * mean_activation(model, side.prompt_ids, side.response_ids, LAYERS)
        for weight, side in zip(pair.weights, pair.sides, strict=True)
    )


@pytest.fixture(scope="module")
def engine(make_model: Callable[[str], PreTrainedModel]) -> ActivationEngine:
    return ActivationEngine(make_model("llama"), ActivationConfig(LAYERS))


def test_a_pair_is_the_same_as_two_kto_rows_and_as_a_group_of_two(
    tokenizer: PreTrainedTokenizerFast, engine: ActivationEngine
) -> None:
    forms = [read(PAIRS), read(as_kto(PAIRS)), read(as_rollouts(PAIRS))]
    by_id = [{pair.pair_id: pair for pair in form} for form in forms]
    assert [pair.pair_id for pair in forms[0]] == [pair.pair_id for pair in forms[1]]
    assert by_id[0].keys() == by_id[1].keys() == by_id[2].keys()
    assert [pair.flipped_id for pair in forms[0]] == [by_id[2][pair.pair_id].flipped_id for pair in forms[0]]
    assert [pair.rows for pair in forms[1]] == [(0, 3), (1, 4), (2, 5)]
    found = [engine.pair_vectors(encoded([form[key] for key in by_id[0]], tokenizer)).pair.flatten(1) for form in by_id]
    for other in found[1:]:
        assert torch.nn.functional.cosine_similarity(found[0], other, dim=-1).min() >= 0.99999
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["kto", "sft", "rollouts"])
def test_vectors_are_the_weighted_sums_of_the_naive_means(
    kind: str, tokenizer: PreTrainedTokenizerFast, engine: ActivationEngine
) -> None:
    rows: dict[str, Rows] = {
        "kto": [*as_kto(PAIRS[:1]), {"prompt": [user("Hi")], "completion": [assistant("No.")], "label": False}],
        "sft": [
            {"messages": [system("Be kind."), user("Hi"), assistant("Hello"), user("More?"), assistant("Bread.")]},
            {"messages": [user("Hi"), assistant("Go away")]},
        ],
        "rollouts": [
            {"prompt": "Bake ", "completion": text, "reward": reward, "step": step}
            for step, group in enumerate([(0.0, 1.0, 5.0), (2.0, 2.0, 3.0)])
            for text, reward in zip(("bread", "cake", "the friend"), group, strict=True)
        ],
    }
    pairs = encoded(read(rows[kind], own=Own()), tokenizer)
    assert len(pairs) == 2
    found = engine.pair_vectors(pairs)
    for number, pair in enumerate(pairs):
        assert sum(pair.weights) == pytest.approx(0, abs=1e-9)
        assert sum(map(abs, pair.weights)) == pytest.approx(2)
        torch.testing.assert_close(found.pair[number], naive_vector(engine.model, pair), rtol=1e-3, atol=1e-4)
        prompts = {tuple(side.prompt_ids) for side in pair.sides}
        means = torch.stack([context(engine.model, prompt, LAYERS) for prompt in prompts]).mean(0)
        torch.testing.assert_close(found.context[number], means, rtol=1e-3, atol=1e-4)


def test_tokens_on_disk_keep_all_responses_and_weights(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    pairs = encoded(
        [*read(as_kto(PAIRS)), *read(PAIRS), *read([{"messages": PAIRS[0]["prompt"] + [assistant("Yes")]}], own=Own())],
        tokenizer,
    )
    spool = TokenSpool(tmp_path)
    for pair in pairs:
        spool.add(pair)
    places = np.arange(len(pairs))
    assert list(spool.read(places >= 0)) == pairs
    assert list(spool.read(places == places[-1])) == pairs[-1:]


def settings(kind: Any, folder: Path, **how: Any) -> Any:
    return kind(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, **how)


EXPLICIT = [name for name, rows in FORMATS.items() if "prompt" in rows[0]]


@pytest.mark.parametrize("name", EXPLICIT)
@pytest.mark.parametrize("limit", [None, 24])
def test_kto_tokens_are_those_of_the_trainer(
    name: str,
    limit: int | None,
    tokenizer: PreTrainedTokenizerFast,
    make_model: Callable[[str], PreTrainedModel],
    tmp_path: Path,
) -> None:
    dataset = unpair_preference_dataset(Dataset.from_list(copy.deepcopy(FORMATS[name])))
    model = make_model("llama")
    args = settings(KTOConfig, tmp_path, max_length=limit, per_device_train_batch_size=2)
    trainer = KTOTrainer(
        model, ref_model=make_model("llama"), args=args, train_dataset=dataset, processing_class=tokenizer
    )
    kept = prepared(trainer)
    # Of no row there is no batch.
    batch = trainer.data_collator(kept) if kept else defaultdict(list)
    expected = [
        (ids[:length].tolist(), completion[:length].tolist())
        for ids, attention, completion in zip(
            batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
        )
        for length in [int(attention.sum())]
    ]
    # Each row by itself, as KTOTrainer takes them: the own responses of the other side come after it.
    singles = [read([row], own=Own()) for row in dataset.to_list()]
    ours = []
    for (pair,) in singles:
        for one in encoded([pair], tokenizer, limit):
            side = one.chosen if pair.weights[0] == 1 else one.rejected
            ours.append(
                (side.prompt_ids + side.response_ids, [0] * len(side.prompt_ids) + [1] * len(side.response_ids))
            )
    assert ours == expected


@pytest.mark.parametrize("name", EXPLICIT)
@pytest.mark.parametrize("limit", [None, 60])
def test_sft_tokens_are_those_of_the_trainer(
    name: str,
    limit: int | None,
    tokenizer: PreTrainedTokenizerFast,
    make_model: Callable[[str], PreTrainedModel],
    tmp_path: Path,
) -> None:
    dataset = Dataset.from_list(copy.deepcopy(FORMATS[name])).rename_column("chosen", "completion")
    dataset = dataset.remove_columns("rejected")
    args = settings(SFTConfig, tmp_path, max_length=limit)
    trainer = SFTTrainer(make_model("llama"), args=args, train_dataset=dataset, processing_class=tokenizer)
    expected = [
        (list(row["input_ids"]), [label != -100 for label in row["labels"]])
        for row in prepared(trainer)
        if any(label != -100 for label in row["labels"])  # the others teach nothing, and have a fault here
    ]
    pairs = encoded(read(dataset, own=Own()), tokenizer, limit)
    ours = [
        (
            one.chosen.prompt_ids + one.chosen.response_ids,
            [False] * len(one.chosen.prompt_ids) + [True] * len(one.chosen.response_ids),
        )
        for one in pairs
    ]
    assert ours == expected


def test_every_answer_of_a_conversation_is_what_the_trainer_masks_in(
    make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with_masks = copy.deepcopy(tokenizer)
    with_masks.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>\n{% endgeneration %}"
        "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rows = [{"messages": [system("Be kind."), user("Hi"), assistant("Hello"), user("More?"), assistant("Bake bread.")]}]
    args = settings(SFTConfig, tmp_path, assistant_only_loss=True)
    trainer = SFTTrainer(
        make_model("llama"), args=args, train_dataset=Dataset.from_list(rows), processing_class=with_masks
    )
    (row,) = prepared(trainer)
    (pair,) = encoded(read(rows, own=Own()), with_masks)
    ours = {
        place
        for side, weight in zip(pair.sides, pair.weights, strict=True)
        if weight > 0
        for place in range(len(side.prompt_ids), len(side.prompt_ids) + len(side.response_ids))
    }
    assert ours == {place for place, label in enumerate(row["labels"]) if label != -100}


def test_completions_of_one_label_stand_against_own_responses_of_the_same_prompt() -> None:
    rows = [
        {"prompt": "Q ", "completion": "good", "label": True, "source": "a"},
        {"prompt": "R ", "completion": "bad", "label": "false", "source": "b"},
    ]
    good, bad = read(rows, own=Own())
    assert (good.weights, bad.weights) == ((1.0, -0.5, -0.5), (0.5, -1.0, 0.5))
    assert (good.chosen, bad.rejected, bad.source) == ("good", "bad", "b")
    assert all(response.prompt == pair.prompt for pair in (good, bad) for response in pair.further)
    lacking = read(rows)
    assert [pair.pair_id for pair in lacking] == [good.pair_id, bad.pair_id]
    assert [pair.lacks_own for pair in lacking] == [True, True]
    assert [(one.prompt) for pair in lacking for one in questions_of(pair)] == ["Q ", "R "]


def test_more_rows_of_one_label_are_the_means_of_each() -> None:
    rows = [
        {"prompt": "Q ", "completion": text, "label": label}
        for text, label in (("a", True), ("b", False), ("c", True), ("d", True))
    ]
    (pair,) = read(rows)
    texts = [pair.chosen, pair.rejected, *(one.text for one in pair.further)]
    assert dict(zip(texts, pair.weights, strict=True)) == pytest.approx({"a": 1 / 3, "b": -1, "c": 1 / 3, "d": 1 / 3})
    assert pair.rows == (0, 1, 2, 3)


def test_rows_of_a_group_are_found_wherever_they_stand() -> None:
    rows = [
        {"prompt": prompt, "completion": f"{prompt} {number}", "score": number, "uid": prompt}
        for prompt in ("a", "b", "c")
        for number in range(4)
    ]
    random.Random(0).shuffle(rows)
    groups = read(rows)
    assert sorted(tuple(sorted(rows[row]["completion"] for row in group.rows)) for group in groups) == [
        tuple(f"{prompt} {number}" for number in range(4)) for prompt in ("a", "b", "c")
    ]
    assert {group.chosen for group in groups} == {"a 3", "b 3", "c 3"}


def test_dumps_of_verl_are_read() -> None:
    rows = [
        {"input": f"Q{number // 2}", "output": f"A{number}", "gts": "x", "score": float(number), "step": 1}
        for number in range(4)
    ]
    assert [(pair.kind, pair.prompt, pair.chosen, pair.rejected) for pair in read(rows)] == [
        ("rollouts", "Q0", "A1", "A0"),
        ("rollouts", "Q1", "A3", "A2"),
    ]


def test_a_prompt_that_was_drawn_for_twice_is_two_groups() -> None:
    def group(prompt: str) -> Rows:
        return [{"prompt": prompt, "completion": f"{n}", "advantage": n, "step": 1} for n in (-1.0, 0.0, 1.0)]

    assert [pair.rows for pair in read([*group("a"), *group("b"), *group("a")])] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]


def test_token_ids_that_rollouts_bring_are_taken_for_those_of_their_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    (pair,) = encoded(read(PAIRS[:1]), tokenizer)
    rows = as_rollouts(PAIRS[:1])
    ids = [
        {"prompt_ids": side.prompt_ids, "completion_ids": side.response_ids} for side in (pair.rejected, pair.chosen)
    ]
    brought = [{**row, "completion": [assistant("?")], **tokens} for row, tokens in zip(rows, ids, strict=True)]
    (found,) = encoded(read(brought), tokenizer)
    assert (found.chosen, found.rejected, found.weights) == (pair.chosen, pair.rejected, (1.0, -1.0))
    (text,) = read(rows)
    (same,) = read([{**row, **tokens} for row, tokens in zip(rows, ids, strict=True)])
    assert (same.pair_id, same.flipped_id) == (text.pair_id, text.flipped_id)
    length = len(pair.chosen.prompt_ids) + 1
    (cut,) = encoded(read(brought), tokenizer, length)
    assert (cut.chosen.response_ids, cut.rejected.response_ids) == (
        pair.chosen.response_ids[:1],
        pair.rejected.response_ids[:1],
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"completion_ids": "1 2"}, "bad_completion_ids"),
        ({"completion_ids": [1, -2]}, "bad_completion_ids"),
        ({"prompt_ids": None}, "bad_prompt_ids"),
        ({"completion_ids": []}, "no_response_tokens"),
    ],
)
def test_token_ids_that_are_none_are_a_fault_of_their_row(change: dict[str, Any], reason: str) -> None:
    rows = [{**row, "prompt_ids": [5], "completion_ids": [6]} for row in as_rollouts(PAIRS[:2])]
    rows[1].update(change)
    reader = PairReader(rows, Reading(on_bad_row="skip"))
    assert len(list(reader)) == 1
    assert {row.reason for row in reader.skipped} == {reason}


def test_groups_without_a_contrast_are_counted_and_no_fault() -> None:
    rows = [
        {"prompt": prompt, "completion": text, "reward": reward}
        for prompt, rewards in (("a", (1.0, 1.0)), ("b", (0.0, 1.0)))
        for text, reward in zip(("x", "y"), rewards, strict=True)
    ]
    reader = PairReader(rows)
    assert [pair.prompt for pair in reader] == ["b"]
    assert [(row.row, row.reason) for row in reader.skipped] == [(0, "zero_variance"), (1, "zero_variance")]


def test_lost_generations_are_noted() -> None:
    rows = [
        {"prompt": f"{step}", "completion": f"{n}", "advantage": n, "step": step}
        for step in (10, 20)
        for n in (-1.0, 1.0)
    ]
    rows += [{"prompt": "eval", "completion": f"{n}", "advantage": n, "step": 20} for n in (-1.0, 0.0, 1.0)]
    reader = PairReader(rows)
    list(reader)
    assert "every 10th step" in reader.notes[0]
    assert "1 rollout group of other sizes than 2" in reader.notes[1]


@pytest.mark.parametrize(
    ("row", "reading", "prompt", "answer"),
    [
        (
            {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Count.", "history": [["Hi", "Hello"]]},
            Reading(),
            [system("Count."), user("Hi"), assistant("Hello"), user("Add.\n1 2")],
            [assistant("3")],
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            Reading(),
            [user("Hi")],
            [assistant("Hello")],
        ),
        (
            {"prompt": "Q ", "answer": "A"},
            Reading(columns="completion=answer"),
            "Q ",
            "A",
        ),
    ],
)
def test_columns_of_other_tools_are_read(row: Mapping[str, Any], reading: Reading, prompt: Any, answer: Any) -> None:
    (pair,) = read([dict(row)], reading)
    assert (pair.kind, pair.prompt, pair.chosen) == ("sft", prompt, answer)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "P", "completions": ["a"], "labels": [True]}], "stepwise supervision (PRM)"),
        ([{"prompt": [user("P")]}], "prompt-only dataset"),
        ([{"text": "Once upon a time"}], "plain text for language modeling"),
        ([{"prompt_tokens": [1], "response_tokens": [2], "reward": 1.0}], "rollouts as token ids"),
        ([{"input_ids": [1, 2], "labels": [1, 2]}], "tokenized dataset"),
    ],
)
def test_other_kinds_of_data_are_refused_by_name(rows: Rows, says: str) -> None:
    with pytest.raises(DataError, match="cannot be audited|can be audited") as error:
        PairReader(rows)
    assert says in str(error.value)


def test_a_label_that_is_none_is_a_fault_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"prompt": "a", "completion": "b", "label": true}\n{"prompt": "a", "completion": "c", "label": 3}\n'
    )
    with pytest.raises(DataError) as error:
        list(PairReader(path))
    assert "1 of 2 rows cannot be read as KTO rows (bad_label: 1)" in str(error.value)
    assert "rows.jsonl:2: column 'label' is 3" in str(error.value)
    with pytest.raises(SettingsError, match="ROLE=COLUMN"):
        Reading(columns="answer")


def test_a_completion_with_both_labels_is_a_fault() -> None:
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in (True, False)]
    rows += [{"prompt": "c", "completion": text, "label": text == "d"} for text in "de"]
    reader = PairReader(rows, Reading(on_bad_row="skip"))
    assert [pair.prompt for pair in reader] == ["c"]
    assert [(row.row, row.reason) for row in reader.skipped] == [(0, "identical_responses"), (1, "identical_responses")]


def test_examples_without_own_responses_cannot_be_encoded(tokenizer: PreTrainedTokenizerFast) -> None:
    (fault,) = encode_pairs(read([{"prompt": "a", "completion": "b", "label": True}]), tokenizer, Encoding())
    assert isinstance(fault, RowFault)
    assert fault.reason == "no_own_responses"


def test_a_file_of_own_responses_needs_no_header(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "Q ", "responses": ["x", "y"]}\n{"prompt": "R ", "response": "z"}\n')
    own = OwnFile(path)
    asked = [
        question.key
        for pair in read([{"prompt": "Q ", "completion": "b", "label": True}])
        for question in questions_of(pair)
    ]
    assert [own.of(key) for key in asked] == [["x", "y"]]
    path.write_text('{"prompt": "Q ", "responses": [3]}\n')
    with pytest.raises(DataError, match=r"own.jsonl:1: has no responses that are text"):
        OwnFile(path)
