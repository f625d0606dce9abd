"""Bad datasets: every message says what is wrong, in which file, line or row and field, and how to mend it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import PreTrainedTokenizerFast

from trl_attribution.errors import DataError, ModelError, SettingsError
from trl_attribution.pairs import Encoding, PairReader, Reading, RowFault, encode_pair
from trl_attribution.pairs.rows import open_rows, write_rows

GOOD: dict[str, Any] = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}
CHAT: dict[str, Any] = {
    "prompt": [{"role": "user", "content": "Hi"}],
    "chosen": [{"role": "assistant", "content": "Hello"}],
    "rejected": [{"role": "assistant", "content": "Go away"}],
}


def refusal(dataset: Any, **reading: Any) -> str:
    """The message with which reading the dataset is refused."""
    with pytest.raises(DataError) as error:
        list(PairReader(dataset, Reading(**reading)))
    return str(error.value)


@dataclass(frozen=True)
class BadRow:
    """One bad row, set between two good ones."""

    row: dict[str, Any]
    field: str
    says: str
    fix: str
    reason: str
    good: dict[str, Any] | None = None


def implicit(*texts: str) -> dict[str, Any]:
    return dict(zip(("chosen", "rejected"), texts, strict=True))


BAD_ROWS = {
    "an empty response": BadRow(GOOD | {"chosen": ""}, "chosen", "empty", "drop the row", "empty_response"),
    "a blank response": BadRow(GOOD | {"rejected": " \n\t"}, "rejected", "empty", "drop the row", "empty_response"),
    "identical responses": BadRow(
        GOOD | {"rejected": "Hello"}, "rejected", "the same as chosen", "Drop the row", "identical_responses"
    ),
    "a prompt that is None": BadRow(GOOD | {"prompt": None}, "prompt", "is None", "Write text", "not_text"),
    "a number in place of text": BadRow(
        GOOD | {"chosen": 42}, "chosen", "a int (42), not text", "Write text", "not_text"
    ),
    "a missing value": BadRow(
        {"prompt": "p", "chosen": "c"},
        "rejected",
        "no such column (its columns: prompt, chosen)",
        "Add",
        "missing_column",
    ),
    "messages among text": BadRow(
        CHAT,
        "chosen",
        "the row holds messages, with a prompt, the dataset's first row text",
        "one format",
        "mixed_formats",
    ),
    "no prompt among rows with one": BadRow(
        implicit("Hi a", "Hi b"), "chosen", "the row holds text, without a prompt", "one format", "mixed_formats"
    ),
    "a text prompt before messages": BadRow(
        CHAT | {"prompt": "Hi"},
        "prompt",
        "holds text where chosen holds messages",
        "--prompt-column ''",
        "mixed_formats",
        CHAT,
    ),
    "messages against text": BadRow(
        CHAT | {"rejected": "No"},
        "rejected",
        "holds text where chosen holds messages",
        "one format",
        "mixed_formats",
        CHAT,
    ),
    "a lone surrogate": BadRow(
        GOOD | {"prompt": "\ud800"}, "prompt", "lone surrogate \\ud800", "Remove it", "invalid_text"
    ),
    "a lone surrogate in the source": BadRow(
        GOOD | {"source": "lab\udc80"}, "source", "lone surrogate \\udc80", "Remove it", "invalid_text"
    ),
    "messages written as text": BadRow(
        {name: json.dumps(value) for name, value in CHAT.items()},
        "chosen",
        "messages written out as text",
        "JSONL or Parquet",
        "messages_as_text",
    ),
    "an unknown role": BadRow(
        CHAT | {"chosen": [{"role": "bot", "content": "x"}]},
        "chosen",
        "the role 'bot'",
        "Rename it",
        "wrong_role",
        CHAT,
    ),
    "a user's response": BadRow(
        CHAT | {"chosen": [{"role": "user", "content": "x"}]},
        "chosen",
        "starts with a message of role 'user'",
        "role assistant",
        "wrong_role",
        CHAT,
    ),
    "the prompt repeated in the response": BadRow(
        CHAT | {"chosen": CHAT["prompt"] + CHAT["chosen"]},
        "chosen",
        "the user message of the prompt again",
        "--prompt-column ''",
        "wrong_role",
        CHAT,
    ),
    "a response that ends with the user": BadRow(
        CHAT | {"rejected": CHAT["rejected"] + CHAT["prompt"]},
        "rejected",
        "ends with a message of role 'user'",
        "role assistant",
        "wrong_role",
        CHAT,
    ),
    "a message without content": BadRow(
        CHAT | {"chosen": [{"role": "assistant"}]},
        "chosen",
        "message 0 has no content",
        "Add its text",
        "bad_message",
        CHAT,
    ),
    "a message without a role": BadRow(
        CHAT | {"prompt": [{"from": "human", "value": "Hi"}]},
        "prompt",
        "message 0 has no role (its keys: from, value)",
        "Add one of",
        "bad_message",
        CHAT,
    ),
    "a message that is text": BadRow(
        CHAT | {"prompt": ["Hi"]}, "prompt", "message 0 is a str", 'Write {"role"', "bad_message", CHAT
    ),
    "content that is a number": BadRow(
        CHAT | {"chosen": [{"role": "assistant", "content": 3}]},
        "chosen",
        "content is a int",
        "as text",
        "not_text",
        CHAT,
    ),
    "an image in a message": BadRow(
        CHAT | {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
        "prompt",
        "block of type 'image'",
        "Only text",
        "not_text",
        CHAT,
    ),
    "an empty list of messages": BadRow(
        CHAT | {"prompt": []}, "prompt", "list of messages is empty", "drop the row", "not_text", CHAT
    ),
    "an assistant who says nothing": BadRow(
        CHAT | {"chosen": [{"role": "assistant", "content": " "}]},
        "chosen",
        "empty",
        "drop the row",
        "empty_response",
        CHAT,
    ),
    "no message in common": BadRow(
        {name: CHAT["prompt"] + CHAT[name] for name in ("chosen", "rejected")}
        | {"rejected": [{"role": "user", "content": "Hey"}, *CHAT["rejected"]]},
        "rejected",
        "shares no first message",
        "Add a prompt column",
        "no_shared_prompt",
        {name: CHAT["prompt"] + CHAT[name] for name in ("chosen", "rejected")},
    ),
    "text that TRL would split wrongly": BadRow(
        implicit("Yes ", "No"),
        "rejected",
        "shares no prompt",
        "Strip the space",
        "no_shared_prompt",
        implicit("Hi a", "Hi b"),
    ),
    "tools that are broken JSON": BadRow(
        CHAT | {"tools": "[{"}, "tools", "broken JSON", "Write a JSON list", "broken_tools", CHAT | {"tools": "[]"}
    ),
    "tools with a number of too many digits": BadRow(
        CHAT | {"tools": "[" + "9" * 5000 + "]"},
        "tools",
        "broken JSON (a number that cannot be read: Exceeds the limit",
        "Write a JSON list",
        "broken_tools",
        CHAT | {"tools": "[]"},
    ),
    "tools nested too deeply": BadRow(
        CHAT | {"tools": "[" * 100_000},
        "tools",
        "broken JSON (nested too deeply)",
        "Write a JSON list",
        "broken_tools",
        CHAT | {"tools": "[]"},
    ),
    "tools that are no list": BadRow(
        CHAT | {"tools": {"name": "f"}}, "tools", "is a dict, not a list", "Write a list", "broken_tools", CHAT
    ),
    "template arguments that are text": BadRow(
        CHAT | {"chat_template_kwargs": "x"},
        "chat_template_kwargs",
        "is a str, not an object",
        "as an object",
        "bad_template_kwargs",
        CHAT,
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_with_line_field_and_fix(name: str, tmp_path: Path) -> None:
    bad = BAD_ROWS[name]
    good = bad.good or GOOD
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, bad.row, good)))
    message = refusal(path)
    assert message.startswith(f"{path}: 1 of 3 rows cannot be read as preference pairs ({bad.reason}: 1).")
    line = message.splitlines()[1]
    assert line.startswith(f"  {path}:2: column '{bad.field}' ")
    assert bad.says in line
    assert bad.fix in line
    assert "--on-bad-row skip" in message


def test_ten_bad_rows_are_shown_and_the_rest_counted() -> None:
    message = refusal([GOOD, *({**GOOD, "chosen": ""} for _ in range(13)), {**GOOD, "chosen": None}])
    assert "14 of 15 rows cannot be read as preference pairs (empty_response: 13, not_text: 1)." in message
    assert message.count("  row ") == 10
    assert "and 4 more" in message


def test_a_dataset_without_one_good_row_is_refused_even_when_bad_rows_may_be_skipped() -> None:
    message = refusal([{**GOOD, "chosen": ""}], on_bad_row="skip")
    assert "Not one row can be read: check the column names and the format." in message


def test_hostile_text_in_a_message_is_made_safe() -> None:
    chat = {**CHAT, "chosen": [{"role": "\x1b[31mbot\u202e", "content": "x"}]}
    message = refusal([CHAT, chat])
    assert "\x1b" not in message
    assert "\u202e" not in message
    assert "\\x1b[31mbot" in message


def test_hostile_text_in_broken_json_is_made_safe(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": "\x1b[2J')
    with pytest.raises(DataError) as error:
        list(open_rows(path))
    assert "\x1b" not in str(error.value)
    assert "\\x1b[2J" in str(error.value)


# --- columns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            "prompt Chosen rejected",
            "no column 'chosen'. Columns there: prompt, Chosen, rejected. Did you mean 'Chosen'?",
        ),
        ("prompt Chosen rejected", "Then add --chosen-column Chosen (Reading(chosen_column='Chosen'))."),
        ("prompt chosen reject", "Did you mean 'reject'? Then add --rejected-column reject"),
        ("prompt winner loser", "no column 'chosen' or 'rejected'. Columns there: prompt, winner, loser."),
        ("prompt winner loser", "Did you mean 'winner'? Then add --chosen-column winner"),
        ("text label", "Columns there: text, label. Name the right one with --chosen-column."),
        ("instruction chosen rejected", "no column 'prompt', but 'instruction' looks like one and is not inside the"),
        ("instruction chosen rejected", "Add --prompt-column instruction (Reading(prompt_column='instruction'))"),
        ("context chosen rejected", "'context' looks like one and is not inside the"),
        ("input chosen rejected", "Add --prompt-column input"),
        ("problem chosen rejected", "'problem' looks like one"),
        ("prompt chosen rejected videos", "column 'videos' makes this a dataset of more than text"),
    ],
)
def test_missing_and_renamed_columns_are_named_with_what_was_meant(columns: str, says: str, tmp_path: Path) -> None:
    rows = [{name: f"{name} text" for name in columns.split()}]
    write_rows(rows, tmp_path / "data.jsonl")
    write_rows(rows, tmp_path / "data.parquet")
    for path in (tmp_path / "data.jsonl", tmp_path / "data.parquet"):
        message = refusal(path)
        assert message.startswith(f"{path}: ")
        assert says in message


def test_a_column_that_was_asked_for_must_be_there() -> None:
    assert "no column 'question'" in refusal([GOOD], prompt_column="question")
    assert "no column 'origin'" in refusal([GOOD], source_column="origin")


def test_a_prompt_under_any_name_is_seen_where_the_responses_hold_none() -> None:
    rows = [
        {"case": f"What is {n} and {n}?", "topic": "sums of two numbers", "chosen": f"{2 * n}", "rejected": "No idea"}
        for n in range(1, 5)
    ]
    assert "'case' looks like one" in refusal(rows)
    inside = [{**row, "chosen": f"Sum {row['case']} Yes", "rejected": f"Sum {row['case']} No"} for row in rows]
    about = [{**row, "case": f"The better answer is right, {n}."} for n, row in enumerate(inside)]
    for good in (inside, about, [{**row, "prompt": row["case"]} for row in rows]):
        assert len(list(PairReader(good))) == 4
    assert "'case' looks like one" in refusal([{**row, "prompt": ""} for row in rows])
    assert len(list(PairReader(rows, Reading(prompt_column="")))) == 4


def test_token_ids_are_not_proposed_as_responses() -> None:
    message = refusal([{"chosen_ids": [1, 2], "rejected_ids": [1, 3], "margin": 1.0}])
    assert "Did you mean" not in message
    assert "give the dataset that they were made from" in message


def test_a_question_inside_both_responses_is_no_overlooked_prompt() -> None:
    row = {"question": "Why?", "chosen": "Why? Because.", "rejected": "Why? No."}
    (pair,) = PairReader([row])
    assert pair.prompt == "Why?"


# --- files ----------------------------------------------------------------------------------------------------------


def write_bytes(name: str, data: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def write_table(columns: list[Any], names: list[str]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        arrays = [column if isinstance(column, pa.Array) else pa.array(column) for column in columns]
        pq.write_table(pa.Table.from_arrays(arrays, names), folder / "data.parquet")
        return folder / "data.parquet"

    return write


LINE = json.dumps(GOOD).encode() + b"\n"
ZIPPED = gzip.compress(LINE * 500)

BAD_FILES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "broken JSON at a line": (
        write_bytes("data.jsonl", LINE + LINE + b'{"prompt": "x", "cho\n' + LINE),
        ["data.jsonl:3: broken JSON", '{"prompt": "x", "cho', "Each line must be one JSON object"],
    ),
    "a JSON line that is an array": (
        write_bytes("data.jsonl", LINE + b"[1, 2]\n"),
        ["data.jsonl:2: a JSON array, not an object", "Each line must be one JSON object"],
    ),
    "a JSON line that is a number": (
        write_bytes("data.jsonl", b"3\n"),
        ["data.jsonl:1: a JSON number, not an object", "Each line must be one JSON object"],
    ),
    "two objects on one line": (
        write_bytes("data.jsonl", LINE + LINE.strip() + LINE),
        ["data.jsonl: datasets reads other rows than its lines hold", "Write each row on one line"],
    ),
    "an array that is cut short": (write_bytes("data.json", b"[\n" + LINE), ["data.json:1: broken JSON"]),
    "JSON nested too deeply": (
        write_bytes("data.jsonl", b'{"a":' * 100_000 + b"\n"),
        ["data.jsonl:1: broken JSON (nested too deeply)"],
    ),
    "a JSON number of too many digits": (
        write_bytes("data.jsonl", LINE + b'{"n": ' + b"9" * 5000 + b"}\n"),
        ["data.jsonl:2: broken JSON (a number that cannot be read: Exceeds the limit"],
    ),
    "a truncated gzip file": (
        write_bytes("data.jsonl.gz", ZIPPED[: len(ZIPPED) // 2]),
        ["data.jsonl.gz: the gzip file is cut short or broken", "download it again"],
    ),
    "a gz suffix on plain text": (
        write_bytes("data.jsonl.gz", LINE),
        ["data.jsonl.gz: the gzip file is cut short or broken", "Not a gzipped file"],
    ),
    "damaged gzip data": (
        write_bytes("data.jsonl.gz", ZIPPED[:30] + b"\xff\xff" + ZIPPED[32:]),
        ["data.jsonl.gz: the gzip file is cut short or broken"],
    ),
    "invalid UTF-8 in JSONL": (
        write_bytes("data.jsonl", LINE + b'{"prompt": "caf\xe9"}\n'),
        ["data.jsonl:2: not UTF-8 (byte 0xe9 at position 15", "iconv"],
    ),
    "UTF-16 in JSONL": (
        write_bytes("data.jsonl", LINE.decode().encode("utf-16")),
        ["data.jsonl:1: not UTF-8 (byte 0xff at position 0", "iconv -f UTF-16 -t UTF-8"],
    ),
    "a JSONL line that ends too early": (
        write_bytes("data.jsonl", LINE + b'{"prompt": "a", "chosen": \n'),
        ["data.jsonl:2: broken JSON (Expecting value, column 26)"],
    ),
    "invalid UTF-8 in CSV": (
        write_bytes("data.csv", b"chosen,rejected\na,b\ncaf\xe9,c\n"),
        ["data.csv:3: not UTF-8 (byte 0xe9", "iconv"],
    ),
    "a CSV row with too many cells": (
        write_bytes("data.csv", b"chosen,rejected\na,b\na,b,c\n"),
        ["data.csv:3: 3 cells where the header has 2", "Quote cells"],
    ),
    "a CSV quote that is never closed": (
        write_bytes("data.csv", b'chosen,rejected\na,b\n"a,b\nc,d\n'),
        ["data.csv:3: broken CSV", "Quote cells"],
    ),
    "a CSV header with a name twice": (
        write_bytes("data.csv", b"chosen,chosen\na,b\n"),
        ["data.csv:1: the header names 'chosen' twice", "Rename one"],
    ),
    "a broken Parquet file": (
        write_bytes("data.parquet", b"PAR1 and then nothing"),
        ["data.parquet: not a readable Parquet file", "download it again"],
    ),
    "a column that is there twice": (
        write_table([["a"], ["b"], ["c"]], ["chosen", "rejected", "chosen"]),
        ["data.parquet: has the column 'chosen' twice. Rename one of them"],
    ),
    "a column of maps": (
        write_table([pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))], ["m"]),
        ["data.parquet: column 'm' is of type map<string, int64", "no trainer reads the file", "cast it to text"],
    ),
    "a column of UUIDs": (
        write_table([pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))], ["u"]),
        ["data.parquet: column 'u' is of type extension<arrow.uuid>, which datasets cannot load"],
    ),
    "JSON that datasets cannot load": (
        write_bytes("data.jsonl", LINE + b'{"deep": ' + b"[" * 400 + b"]" * 400 + b"}\n"),
        ["data.jsonl: datasets cannot load this file, so no trainer reads it ("],
    ),
    "a path that datasets takes for two": (
        write_bytes("a::b.jsonl", LINE),
        ["a::b.jsonl: datasets cannot open a path with '::' in it. Rename the file"],
    ),
    "an empty file": (write_bytes("data.jsonl", b""), ["data.jsonl: the file is empty", "Give a file with"]),
    "a file of blank lines": (write_bytes("data.jsonl", b"\n\n"), ["data.jsonl: holds no rows", "at least one"]),
    "an unknown suffix": (
        write_bytes("data.xlsx", b"x"),
        ["data.xlsx: unknown file type '.xlsx'. Supported: .jsonl", "save_to_disk"],
    ),
    "a missing path": (
        lambda folder: folder / "no" / "data.jsonl",
        ["data.jsonl: no such file or folder. Check the path (current folder: "],
    ),
    "a folder without data": (lambda folder: folder, ["no dataset files in this folder. Supported: .jsonl"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_named_with_line_and_fix(name: str, tmp_path: Path) -> None:
    make, parts = BAD_FILES[name]
    message = refusal(make(tmp_path))
    assert message.startswith(str(tmp_path))
    for part in parts:
        assert part in message


def test_a_home_folder_of_nobody_is_refused() -> None:
    message = refusal("~no-such-user/data.jsonl")
    assert message.startswith("~no-such-user/data.jsonl: ~no-such-user has no home folder on this machine. Write")


def test_a_folder_of_two_kinds_of_files_is_refused(tmp_path: Path) -> None:
    write_rows([GOOD], tmp_path / "a.jsonl")
    write_rows([GOOD], tmp_path / "a.parquet")
    assert "datasets would pass over 'a.jsonl' beside 'a.parquet', as it is of another kind" in refusal(tmp_path)
    (tmp_path / "a.parquet").unlink()
    write_rows([GOOD], tmp_path / "b::c.jsonl")
    assert "datasets would pass over 'b::c.jsonl' beside 'a.jsonl'" in refusal(tmp_path)


def test_a_damaged_save_to_disk_folder_is_refused(tmp_path: Path) -> None:
    write_rows([GOOD], tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    assert f"{tmp_path / 'saved'}: a save_to_disk folder that cannot be loaded" in refusal(tmp_path / "saved")


def test_several_splits_must_be_chosen_from(tmp_path: Path) -> None:
    splits = DatasetDict({"train": Dataset.from_list([GOOD]), "test": Dataset.from_list([GOOD])})
    splits.save_to_disk(str(tmp_path / "saved"))
    for dataset in (splits, tmp_path / "saved"):
        assert "several splits (train, test). Choose one with --split train." in refusal(dataset)
        assert "no split 'validation'. Splits there: train, test." in refusal(dataset, split="validation")


def test_a_split_of_something_that_has_none_is_refused(tmp_path: Path) -> None:
    write_rows([GOOD], tmp_path / "data.jsonl")
    write_rows([GOOD], tmp_path / "saved")
    assert "a single file has no split 'test'" in refusal(tmp_path / "data.jsonl", split="test")
    assert "no split 'test'. Leave the split out" in refusal(tmp_path / "saved", split="test")
    (tmp_path / "folder").mkdir()
    write_rows([GOOD], tmp_path / "folder" / "data.jsonl")
    assert "no split 'test'. Splits there: train." in refusal(tmp_path / "folder", split="test")


def test_a_hub_id_while_offline_says_so() -> None:
    message = refusal("some-org/some-preferences")
    assert message.startswith("some-org/some-preferences: no such file or folder here, and as a Hub dataset it cannot")
    assert "HF_HUB_OFFLINE=1" in message
    assert "give its local path" in message


def test_streams_that_are_gone_and_objects_that_are_no_dataset_are_refused() -> None:
    rows = iter([GOOD, GOOD])
    once = PairReader(IterableDataset.from_generator(lambda: rows))
    assert len(list(once)) == 2 and once.source.num_rows == 2
    with pytest.raises(DataError, match=r"gave other rows when it was read again \(0, and 2 before\).*give a copy"):
        list(once)
    assert "cannot read a int as a dataset" in refusal(3)
    assert "row 1: a str, not a dict" in refusal([GOOD, "text"])
    assert "holds no rows" in refusal([])


# --- settings and tokens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: Reading(format="chatml"),
            "unknown format 'chatml'. Choose one of: auto, trl, anthropic, sharegpt, alpaca, rated, kto, sft,",
        ),
        (lambda: Reading(on_bad_row="ignore"), "unknown on_bad_row 'ignore'. Choose one of: error, skip."),
        (lambda: Encoding(truncation_mode="middle"), "unknown truncation_mode 'middle'. Choose one of: keep_start"),
        (lambda: Encoding(max_length=0), "max_length is 0. Give at least 1, or None for no limit."),
    ],
)
def test_settings_that_do_not_exist_are_refused_with_those_that_do(make: Callable[[], object], says: str) -> None:
    with pytest.raises(SettingsError) as error:
        make()
    assert says in str(error.value)


def encoding_fault(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, encoding: Encoding) -> RowFault:
    (pair,) = PairReader([row])
    with pytest.raises(RowFault) as fault:
        encode_pair(pair, tokenizer, encoding)
    return fault.value


def test_a_prompt_that_fills_max_length_is_a_fault_with_its_length(tokenizer: PreTrainedTokenizerFast) -> None:
    fault = encoding_fault({**GOOD, "prompt": "z" * 40}, tokenizer, Encoding(max_length=8))
    assert (fault.reason, fault.field) == ("prompt_too_long", "prompt")
    assert "40 tokens fill max_length=8, so TRL trains on no token of the responses. Raise max_length" in str(fault)


def test_a_template_that_refuses_the_messages_is_a_fault_with_its_own_words(tokenizer: PreTrainedTokenizerFast) -> None:
    strict = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    fault = encoding_fault(CHAT, strict, Encoding())
    assert fault.reason == "template_error"
    assert "roles must alternate" in str(fault)


def test_a_response_that_the_template_leaves_out_is_a_fault(tokenizer: PreTrainedTokenizerFast) -> None:
    deaf = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    deaf.chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    assert encoding_fault(CHAT, deaf, Encoding()).reason == "no_response_tokens"


def test_a_tokenizer_without_template_or_end_of_text_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    for row, says in ((CHAT, "has no chat template"), (GOOD, "has no EOS token")):
        (pair,) = PairReader([row])
        with pytest.raises(ModelError, match=says):
            encode_pair(pair, bare, Encoding())
