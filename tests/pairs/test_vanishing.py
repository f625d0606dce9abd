"""Text that never reaches the tokens is a fault; pairs whose two responses come to the same tokens are counted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.tiny import BLOCKS_TEMPLATE, CHAT_TEMPLATE, vision_processor
from trl_attribution.errors import DataError
from trl_attribution.pairs import EncodedPair, Encoding, PairReader, Reading, RowFault, encode_pairs, encode_prompt
from trl_attribution.pairs.dataset_pass import dataset_info, pass_over

Row = dict[str, Any]

NO_SYSTEM = CHAT_TEMPLATE.replace(
    "{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"
)


def blocks(text: str) -> list[Row]:
    return [{"type": "text", "text": text}]


def chat(prompt: Any = "Hi", chosen: Any = "Yes", rejected: Any = "No", **extra: Any) -> Row:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen, **extra}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def encoded(rows: list[Row], tokenizer: Any, limit: int | None = None) -> list[EncodedPair | RowFault]:
    return encode_pairs(list(PairReader(rows)), tokenizer, Encoding(limit))


@pytest.mark.parametrize(
    ("row", "part", "says"),
    [
        (chat(), "prompt", "leaves out what the user says as plain text"),
        (chat(blocks("Hi")), "chosen", "leaves out what the assistant says as plain text"),
        (chat(blocks("Hi"), blocks("Yes")), "rejected", "leaves out what the assistant says as plain text"),
    ],
)
def test_a_template_that_reads_blocks_only_leaves_plain_text_out(
    row: Row, part: str, says: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    (fault,) = encoded([row], with_template(tokenizer, BLOCKS_TEMPLATE))
    assert isinstance(fault, RowFault)
    assert (fault.reason, fault.field) == ("text_vanishes", part)
    assert says in fault.detail
    assert "content blocks" in fault.detail
    assert "processor" in fault.detail


def test_blocks_are_read_by_it_and_plain_text_through_the_processor(tokenizer: PreTrainedTokenizerFast) -> None:
    in_blocks = chat(blocks("Hi"), blocks("Yes"), blocks("No"))
    (direct,) = encoded([in_blocks], with_template(tokenizer, BLOCKS_TEMPLATE))
    (processed,) = encoded([chat()], vision_processor(tokenizer))
    assert isinstance(direct, EncodedPair)
    assert isinstance(processed, EncodedPair)
    assert (direct.chosen, direct.rejected) == (processed.chosen, processed.rejected)
    assert "Hi" in tokenizer.decode(processed.chosen.prompt_ids)


def test_a_prompt_by_itself_is_encoded_by_the_same_rules(tokenizer: PreTrainedTokenizerFast) -> None:
    (pair,) = PairReader([chat()])
    for encoder in (tokenizer, vision_processor(tokenizer)):
        (found,) = encode_pairs([pair], encoder, Encoding(None))
        assert isinstance(found, EncodedPair)
        assert encode_prompt(pair.prompt, encoder) == found.chosen.prompt_ids
        assert encode_prompt("Hi", encoder) == tokenizer("Hi")["input_ids"]
    with pytest.raises(RowFault, match="leaves out what the user says"):
        encode_prompt(pair.prompt, with_template(tokenizer, BLOCKS_TEMPLATE))


def test_rows_that_a_template_writes_are_kept_beside_rows_that_it_does_not(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        chat(blocks("Hi"), blocks("Yes"), blocks("No")),
        chat("Hello"),
        chat(blocks("Oh"), blocks("A"), blocks("B")),
    ]
    found = encoded(rows, with_template(tokenizer, BLOCKS_TEMPLATE))
    assert [isinstance(one, RowFault) for one in found] == [False, True, False]


def test_what_a_template_may_leave_out_is_no_fault(tokenizer: PreTrainedTokenizerFast) -> None:
    with_system = chat()
    with_system["prompt"] = [{"role": "system", "content": "Be brief."}, *with_system["prompt"]]
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    calling = chat(chosen="I look it up", tool_calls=[call])
    calls_only = CHAT_TEMPLATE.replace("{{ message['content'] }}", "{{ message['tool_calls'] or message['content'] }}")
    for row, template in ((with_system, NO_SYSTEM), (calling, calls_only)):
        (found,) = encoded([row], with_template(tokenizer, template))
        assert isinstance(found, EncodedPair)


def test_a_prompt_of_nothing_but_a_system_message_that_is_left_out_is_a_fault(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    row = {**chat(), "prompt": [{"role": "system", "content": "Write a poem."}]}
    (fault,) = encoded([row], with_template(tokenizer, NO_SYSTEM))
    assert isinstance(fault, RowFault)
    assert "what the system says" in fault.detail


def alike_pairs(cause: str) -> list[Row]:
    """A pair that differs only in what ``cause`` takes away, for a limit of 40 tokens."""
    if cause == "template":
        return [chat(chosen="Same", rejected="Same", reasoning_content="I think so.")]
    return [{"prompt": "Hi", "chosen": "word " * 60 + "yes", "rejected": "word " * 60 + "no"}]


@pytest.mark.parametrize("cause", ["template", "truncation"])
def test_pairs_without_a_difference_are_counted_by_cause(cause: str, tokenizer: PreTrainedTokenizerFast) -> None:
    (found,) = encoded(alike_pairs(cause), tokenizer, 40)
    assert isinstance(found, EncodedPair)
    assert found.alike == cause
    good = chat() if cause == "template" else {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
    other = chat("Oh") if cause == "template" else {"prompt": "Oh", "chosen": "Yes", "rejected": "No"}
    reader = PairReader([good, other, *alike_pairs(cause)])
    data = pass_over(reader, tokenizer, Encoding(40))
    assert data.alike == {cause: 1}
    assert dataset_info(reader, data, 3)["alike"] == {cause: 1}


def test_what_a_tokenizer_reads_as_the_same_is_counted_as_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    from tokenizers import normalizers

    lower = copy.deepcopy(tokenizer)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    (found,) = encoded([{"prompt": "Hi", "chosen": "YES", "rejected": "yes"}], lower)
    assert isinstance(found, EncodedPair)
    assert found.alike == "tokenizer"


@pytest.mark.parametrize(
    ("cause", "says"),
    [("template", "the chat template writes both responses alike"), ("truncation", "Raise --max-length")],
)
def test_a_dataset_of_pairs_without_a_difference_is_refused(
    cause: str, says: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DataError, match="1 of 1 pairs have two responses of the same tokens") as refused:
        pass_over(PairReader(alike_pairs(cause)), tokenizer, Encoding(40))
    assert says in str(refused.value)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_only_a_prompt_that_is_too_long_is_answered_with_a_longer_limit(
    on_bad_row: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    def refusal(rows: list[Row], template: str, limit: int) -> str:
        reader = PairReader(rows, Reading(on_bad_row=on_bad_row))
        with pytest.raises(DataError) as refused:
            pass_over(reader, with_template(tokenizer, template), Encoding(limit))
        return str(refused.value)

    strict = refusal([chat()], "{{ raise_exception('roles must alternate') }}", 40)
    assert "roles must alternate" in strict
    assert "max-length" not in strict
    assert "max_length" not in strict
    assert "max_length=8" in refusal([chat("long " * 40)], CHAT_TEMPLATE, 8)
