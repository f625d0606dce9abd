"""Token ids are TRL's own: what DPOTrainer prepares and its collator batches, for every preference format."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from tests.tiny import vision_processor
from trl_attribution.pairs import EncodedPair, Encoding, PairReader, Reading, RowFault, encode_pair, encode_pairs
from trl_attribution.utils.compat import is_before, keeps_whole_prompts

Rows = list[dict[str, Any]]

# Both truncation modes exist until TRL 2.0, so both are checked.
pytestmark = pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")


def user(text: str, **extra: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **extra}


def assistant(text: str, **extra: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **extra}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def tool_schema(name: str, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
LONG = "Mix flour, water, salt and yeast. " * 8

FORMATS: dict[str, Rows] = {
    "text, explicit prompt": [
        {"prompt": "The capital of France is", "chosen": " Paris.", "rejected": " Rome.", "source": "a", "id": 7},
        {"prompt": "", "chosen": "Bread is baked.", "rejected": "No.", "source": "b", "id": 8},
        {
            "prompt": "Ends inside a wo",
            "chosen": "rd and goes on",
            "rejected": "od fire <|im_end|>",
            "source": "b",
            "id": 9,
        },
        {"prompt": "Grüße 🙂 ", "chosen": "naïve\n", "rejected": "\tcafé<|im_end|>", "source": "c", "id": 10},
        {"prompt": LONG, "chosen": "short", "rejected": LONG, "source": "c", "id": 11},
    ],
    "text, implicit prompt": [
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": "Bake the bread now", "rejected": "Bake the bread"},
        {"chosen": "Yes, of course", "rejected": "No, never"},
        {"chosen": LONG + " end", "rejected": LONG + " stop it"},
    ],
    "messages, explicit prompt": [
        {"prompt": [user("How do I bake bread?")], "chosen": [assistant("Mix flour.")], "rejected": [assistant("No.")]},
        {
            "prompt": [system("Be brief."), user("Hi"), assistant("Hello"), user("Weather?")],
            "chosen": [assistant("Mild.")],
            "rejected": [assistant(LONG)],
        },
        {"prompt": [system("Only a system message.")], "chosen": [assistant("Yes")], "rejected": [assistant("No")]},
        {"prompt": [user("Go on"), assistant("One")], "chosen": [assistant("Two")], "rejected": [assistant("Three")]},
        {"prompt": [user(LONG)], "chosen": [assistant("Fine")], "rejected": [assistant("Bad")]},
    ],
    "messages, implicit prompt": [
        {
            "chosen": [system("Be kind."), user("Hi"), assistant("Hello")],
            "rejected": [system("Be kind."), user("Hi"), assistant("Go away")],
        },
        {
            "chosen": [user("Hi"), assistant("Hello"), user("And now?"), assistant("Now we talk.")],
            "rejected": [user("Hi"), assistant("What?"), user("Sorry?"), assistant("Nothing.")],
        },
        {
            "chosen": [user("Hi"), assistant("Hello")],
            "rejected": [user("Hi"), assistant("Hello"), user("?"), assistant("!")],
        },
    ],
    "tools as lists with different keys": [
        {
            "prompt": [user("Weather in Paris?")],
            "chosen": [
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "content": "mild"},
                assistant("Mild."),
            ],
            "rejected": [assistant("I cannot help.")],
            "tools": [tool_schema("weather", city="string")],
        },
        {
            "prompt": [user("Bake", name="Ann")],
            "chosen": [assistant("Done.")],
            "rejected": [assistant("No.")],
            "tools": [tool_schema("oven", degrees="integer"), tool_schema("timer", minutes="integer")],
        },
        {"prompt": [user("Hi")], "chosen": [assistant("Hello")], "rejected": [assistant("No")], "tools": []},
        {"prompt": [user("Hi")], "chosen": [assistant("Hey")], "rejected": [assistant("Nope")], "tools": None},
    ],
    "tools as JSON text": [
        {
            "prompt": [user("Weather?")],
            "chosen": [assistant("Mild.")],
            "rejected": [assistant("No.")],
            "tools": json.dumps([tool_schema("weather", city="string")]),
        },
        {"prompt": [user("Hi")], "chosen": [assistant("Hello")], "rejected": [assistant("No")], "tools": "null"},
    ],
    "chat_template_kwargs": [
        {
            "prompt": [user("Hi")],
            "chosen": [assistant("Hello")],
            "rejected": [assistant("No")],
            "chat_template_kwargs": {"shout": True},
        },
        {
            "prompt": [user("Hi there")],
            "chosen": [assistant("Hello")],
            "rejected": [assistant("No")],
            "chat_template_kwargs": {"shout": False, "mood": "calm"},
        },
    ],
    "tokenizer options inside chat_template_kwargs": [
        {
            "prompt": [user("Write a short letter to a friend about the garden in spring.")],
            "chosen": [assistant("Dear friend, the garden is green.")],
            "rejected": [assistant("No, I cannot help with that request.")],
            "chat_template_kwargs": {"truncation": True, "max_length": 60},
        },
    ],
}

if is_before("trl", "1.0"):  # fails at an empty prompt
    for name, rows in FORMATS.items():
        if name.startswith("text"):
            FORMATS[name] = [row for row in rows if row.get("prompt", row["chosen"][0] == row["rejected"][0])]

LIMITS = [
    (1024, "keep_start"),
    (None, "keep_start"),
    (60, "keep_start"),
    (24, "keep_start"),
    (60, "keep_end"),
    (24, "keep_end"),
    (1, "keep_end"),
]


@pytest.fixture(scope="module")
def prepare(
    tokenizer: PreTrainedTokenizerFast,
    make_model: Callable[[str], PreTrainedModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., DPOTrainer]:
    """``prepare(dataset, max_length, mode)`` is a real DPOTrainer over the dataset."""

    def build(dataset: Dataset, max_length: int | None, mode: str, processing_class: Any = tokenizer) -> DPOTrainer:
        args = DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("dpo")),
            use_cpu=True,
            bf16=False,
            report_to=[],
            max_length=max_length,
            truncation_mode=mode,
            disable_tqdm=True,
        )
        return DPOTrainer(
            make_model("llama"),
            ref_model=make_model("llama"),
            args=args,
            train_dataset=dataset,
            processing_class=processing_class,
        )

    return build


def encoded(rows: Any, tokenizer: PreTrainedTokenizerFast, max_length: int | None, mode: str) -> list[EncodedPair]:
    """The pairs that TRL keeps; every fault must be the one for which it drops a row."""
    results = encode_pairs(list(PairReader(rows)), tokenizer, Encoding(max_length, mode))
    faults = [result for result in results if isinstance(result, RowFault)]
    assert {fault.reason for fault in faults} <= {"prompt_too_long"}
    return [result for result in results if isinstance(result, EncodedPair)]


def prepared(trainer: DPOTrainer) -> Dataset:
    """The rows that the trainer trains on."""
    assert isinstance(trainer.train_dataset, Dataset)
    return trainer.train_dataset


def batched(trainer: DPOTrainer) -> list[Tensor]:
    """Token ids, attention mask and completion mask [2B, T] of the whole dataset, without pairs that teach nothing."""
    batch = trainer.data_collator(list(prepared(trainer)))
    tensors = [batch[name] for name in ("input_ids", "attention_mask", "completion_mask")]
    if is_before("trl", "1.0"):  # cuts sequences in its loss only
        tensors = list(trainer._truncate_inputs(*tensors))
    if is_before("trl", "1.9"):  # keeps pairs whose prompts leave no room for a response
        chosen, rejected = tensors[2].any(dim=1).chunk(2)
        tensors = [tensor[(chosen | rejected).repeat(2)] for tensor in tensors]
    return tensors


def assert_same_batch(trainer: DPOTrainer, ours: Sequence[EncodedPair]) -> None:
    """Unpad the collator's batch of the whole dataset and compare it pair by pair."""
    expected = [pair.chosen for pair in ours] + [pair.rejected for pair in ours]
    tensors = batched(trainer)
    assert len(tensors[0]) == len(expected)
    for ids, attention, completion, response in zip(*tensors, expected, strict=True):
        length = int(attention.sum())
        assert ids[:length].tolist() == response.prompt_ids + response.response_ids
        assert completion[:length].tolist() == [0] * len(response.prompt_ids) + [1] * len(response.response_ids)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("max_length", "mode"), LIMITS)
def test_tokens_and_batches_are_those_of_the_trainer(
    name: str, max_length: int | None, mode: str, tokenizer: PreTrainedTokenizerFast, prepare: Callable[..., DPOTrainer]
) -> None:
    dataset = Dataset.from_list(copy.deepcopy(FORMATS[name]))
    trainer = prepare(dataset, max_length, mode)
    ours = encoded(dataset, tokenizer, max_length, mode)
    if ours:
        assert_same_batch(trainer, ours)
    else:
        assert is_before("trl", "1.9") or not len(prepared(trainer))


@pytest.mark.parametrize("name", FORMATS)
def test_untruncated_ids_are_the_columns_of_the_trainers_dataset(
    name: str, tokenizer: PreTrainedTokenizerFast, prepare: Callable[..., DPOTrainer]
) -> None:
    dataset = Dataset.from_list(copy.deepcopy(FORMATS[name]))
    columns = prepared(prepare(dataset, None, "keep_start"))
    ours = encoded(dataset, tokenizer, None, "keep_start")
    assert [pair.chosen.prompt_ids for pair in ours] == list(columns["prompt_ids"])
    assert [pair.rejected.prompt_ids for pair in ours] == list(columns["prompt_ids"])
    assert [pair.chosen.response_ids for pair in ours] == list(columns["chosen_ids"])
    assert [pair.rejected.response_ids for pair in ours] == list(columns["rejected_ids"])


@pytest.mark.parametrize("name", FORMATS)
def test_a_jsonl_file_gives_the_tokens_that_load_dataset_gives_the_trainer(
    name: str, tokenizer: PreTrainedTokenizerFast, prepare: Callable[..., DPOTrainer], tmp_path: Path
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in FORMATS[name]), encoding="utf-8")
    loaded = Dataset.from_json(str(path), cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded, Dataset)
    trainer = prepare(loaded, 60, "keep_start")
    assert_same_batch(trainer, encoded(path, tokenizer, 60, "keep_start"))


def test_rows_are_dropped_exactly_where_the_trainer_drops_them_or_learns_nothing_from_them(
    tokenizer: PreTrainedTokenizerFast, prepare: Callable[..., DPOTrainer]
) -> None:
    rows = [{"prompt": "x" * length, "chosen": "yes", "rejected": "no"} for length in range(20, 30)]
    trainer = prepare(Dataset.from_list(rows), 24, "keep_start")
    ours = encoded(rows, tokenizer, 24, "keep_start")
    assert_same_batch(trainer, ours)
    assert 0 < len(ours) < len(rows)


def test_a_beginning_of_text_token_is_added_once_to_text_and_not_to_messages(
    tokenizer: PreTrainedTokenizerFast, prepare: Callable[..., DPOTrainer]
) -> None:
    with_bos = copy.deepcopy(tokenizer)
    with_bos.bos_token = "<|endoftext|>"
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", with_bos.bos_token_id)]
    )
    for name, first_is_bos in (("text, explicit prompt", True), ("messages, explicit prompt", False)):
        dataset = Dataset.from_list(copy.deepcopy(FORMATS[name]))
        trainer = prepare(dataset, 60, "keep_start", with_bos)
        ours = encoded(dataset, with_bos, 60, "keep_start")
        assert_same_batch(trainer, ours)
        assert (ours[0].chosen.prompt_ids[0] == with_bos.bos_token_id) is first_is_bos
        assert ours[0].chosen.prompt_ids.count(with_bos.bos_token_id) == int(first_is_bos)


def test_a_template_that_renders_the_prompt_differently_alone_is_split_where_trl_splits_it(
    tokenizer: PreTrainedTokenizerFast, prepare: Callable[..., DPOTrainer]
) -> None:
    thinking = copy.deepcopy(tokenizer)
    template = str(tokenizer.chat_template)
    thinking.chat_template = template.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}"
    )
    assert thinking.chat_template != template
    rows = [{"prompt": [user("Bake?")], "chosen": [assistant(LONG)], "rejected": [assistant("No, I cannot help.")]}]
    dataset = Dataset.from_list(rows)
    ours = encoded(dataset, thinking, None, "keep_start")
    assert_same_batch(prepare(dataset, None, "keep_start", thinking), ours)
    assert ("think" in thinking.decode(ours[0].chosen.prompt_ids)) is keeps_whole_prompts()


@pytest.mark.parametrize("name", ["text, explicit prompt", "messages, explicit prompt", "messages, implicit prompt"])
def test_text_goes_through_the_processor_where_the_trainer_has_one(
    name: str, tokenizer: PreTrainedTokenizerFast, prepare: Callable[..., DPOTrainer]
) -> None:
    processor = vision_processor(tokenizer)
    dataset = Dataset.from_list(copy.deepcopy(FORMATS[name]))
    trainer = prepare(dataset, 60, "keep_start", processor)
    results = encode_pairs(list(PairReader(dataset)), processor, Encoding(60))
    ours = [result for result in results if isinstance(result, EncodedPair)]
    assert_same_batch(trainer, ours)
    assert {pair.alike for pair in ours} <= {None, "truncation"}


def test_transcripts_give_the_tokens_of_the_same_conversation(
    tokenizer: PreTrainedTokenizerFast, prepare: Callable[..., DPOTrainer]
) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bake?\n\nAssistant: "
    raw = [{"chosen": start + "Mix flour.", "rejected": start + "No."}]
    shared = [user("Hi"), assistant("Hello"), user("Bake?")]
    same = [{"chosen": [*shared, assistant("Mix flour.")], "rejected": [*shared, assistant("No.")]}]
    trainer = prepare(Dataset.from_list(same), 1024, "keep_start")
    assert_same_batch(trainer, encoded(raw, tokenizer, 1024, "keep_start"))


def test_transcripts_read_as_trl_text_give_the_tokens_of_the_raw_text(
    tokenizer: PreTrainedTokenizerFast, prepare: Callable[..., DPOTrainer]
) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: "
    raw = [{"chosen": start + "Hello.", "rejected": start + "Go."}]
    pairs = list(PairReader(raw, Reading(format="trl")))
    ours = [encode_pair(pair, tokenizer, Encoding()) for pair in pairs]
    assert_same_batch(prepare(Dataset.from_list(raw), 1024, "keep_start"), ours)


def test_real_transcripts_encode_like_the_trainers_conversations(
    hh_rlhf: Path, tokenizer: PreTrainedTokenizerFast, prepare: Callable[..., DPOTrainer]
) -> None:
    pairs = list(PairReader(hh_rlhf, Reading(on_bad_row="skip")))[:60]
    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    trainer = prepare(Dataset.from_list(rows), 300, "keep_start")
    results = encode_pairs(pairs, tokenizer, Encoding(300))
    ours = [result for result in results if isinstance(result, EncodedPair)]
    assert 0 < len(ours) < len(pairs)
    assert_same_batch(trainer, ours)


def test_many_pairs_encode_as_each_by_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = [pair for rows in FORMATS.values() for pair in PairReader(rows)]
    together = encode_pairs(pairs, tokenizer, Encoding(None))
    assert together == [encode_pair(pair, tokenizer, Encoding(None)) for pair in pairs]
