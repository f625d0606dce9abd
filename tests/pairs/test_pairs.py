"""Pairs and their ids: one content, one id, whatever the file, the row order or the other columns."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from trl_attribution.errors import DataError
from trl_attribution.pairs import (
    Duplicate,
    FingerprintBuilder,
    PairReader,
    Reading,
    RowFault,
    dataset_fingerprint,
    pair_id,
    survey,
)
from trl_attribution.pairs.rows import write_rows

HARMLESS_ROWS, HARMLESS_EMPTY = 2312, [86, 516, 925, 1103]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FAST = settings(max_examples=100, deadline=None)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@st.composite
def text_rows(draw: st.DrawFn) -> dict[str, Any]:
    chosen, rejected = draw(st.lists(TEXT, min_size=2, max_size=2, unique=True))
    return {"prompt": draw(TEXT), "chosen": chosen, "rejected": rejected}


@st.composite
def chat_rows(draw: st.DrawFn) -> dict[str, Any]:
    first, second = draw(st.lists(TEXT, min_size=2, max_size=2, unique=True))
    prompt = [user(draw(TEXT)) for _ in range(draw(st.integers(1, 2)))]
    row: dict[str, Any] = {"prompt": prompt, "chosen": [assistant(first)], "rejected": [assistant(second)]}
    if draw(st.booleans()):
        row["tools"] = [{"name": draw(TEXT), "parameters": {draw(st.sampled_from("xyz")): draw(TEXT)}}]
    if draw(st.booleans()):
        row["chat_template_kwargs"] = {draw(st.sampled_from("abc")): draw(st.booleans())}
    return row


def reordered(value: Any, order: random.Random) -> Any:
    """The same JSON value with the keys of every object in another order."""
    if isinstance(value, dict):
        keys = order.sample(list(value), len(value))
        return {key: reordered(value[key], order) for key in keys}
    return [reordered(entry, order) for entry in value] if isinstance(value, list) else value


def ids(dataset: Any, **reading: Any) -> list[str]:
    return [pair.pair_id for pair in PairReader(dataset, Reading(**reading))]


# --- the id ---------------------------------------------------------------------------------------------------------


def test_the_id_of_a_pair_never_changes_between_versions() -> None:
    assert pair_id({"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}) == "029002a88242dcd134829b0b5e37646b"


@FAST
@given(row=text_rows() | chat_rows(), order=st.randoms(use_true_random=False), extra=TEXT)
def test_the_id_ignores_key_order_other_columns_and_none(row: dict[str, Any], order: random.Random, extra: str) -> None:
    expected = pair_id(row)
    assert re.fullmatch("[0-9a-f]{32}", expected)
    assert pair_id(reordered(row, order)) == expected
    assert pair_id({**row, "source": extra, "score": 1.5, "note": None}) == expected
    assert pair_id({"tools": None, "chat_template_kwargs": None, **row}) == expected
    if isinstance(row["chosen"], list):
        filled = {**row, "chosen": [{**message, "tool_calls": None, "name": None} for message in row["chosen"]]}
        assert pair_id(filled) == expected


@FAST
@given(row=text_rows() | chat_rows(), addition=TEXT, field=st.sampled_from(["prompt", "chosen", "rejected"]))
def test_the_id_changes_when_any_text_changes(row: dict[str, Any], addition: str, field: str) -> None:
    if isinstance(row[field], str):
        changed: Any = row[field] + addition
    else:
        changed = [{**row[field][0], "content": row[field][0]["content"] + addition}, *row[field][1:]]
    assume(changed not in (row["chosen"], row["rejected"]))
    assert pair_id({**row, field: changed}) != pair_id(row)


@FAST
@given(row=chat_rows())
def test_template_input_is_part_of_the_id_when_there_is_any(row: dict[str, Any]) -> None:
    bare = {name: row[name] for name in ("prompt", "chosen", "rejected")}
    assert pair_id({**bare, "tools": [], "chat_template_kwargs": {}}) == pair_id(bare)
    assert (pair_id(row) == pair_id(bare)) is (row == bare)
    if "tools" in row:
        assert pair_id({**row, "tools": json.dumps(row["tools"])}) == pair_id(row)


@FAST
@given(row=text_rows() | chat_rows())
def test_the_flipped_id_is_the_id_after_swapping_the_columns(row: dict[str, Any]) -> None:
    (pair,) = PairReader([row])
    (flipped,) = PairReader([{**row, "chosen": row["rejected"], "rejected": row["chosen"]}])
    assert (flipped.pair_id, flipped.flipped_id) == (pair.flipped_id, pair.pair_id)
    assert pair.pair_id != pair.flipped_id


@FAST
@given(prompt=TEXT, first=TEXT, second=TEXT)
def test_the_flipped_id_holds_for_implicit_prompts_too(prompt: str, first: str, second: str) -> None:
    row = {"chosen": prompt + first, "rejected": prompt + second}
    try:
        (pair,) = PairReader([row])
    except DataError:
        assume(False)
    (flipped,) = PairReader([{"chosen": row["rejected"], "rejected": row["chosen"]}])
    assert (flipped.pair_id, flipped.flipped_id) == (pair.flipped_id, pair.pair_id)


@FAST
@given(row=chat_rows())
def test_explicit_and_implicit_forms_of_a_conversation_have_one_id(row: dict[str, Any]) -> None:
    implicit = {name: value for name, value in row.items() if name != "prompt"}
    implicit |= {name: row["prompt"] + row[name] for name in ("chosen", "rejected")}
    assert pair_id(implicit) == pair_id(row)


def test_text_is_not_normalized() -> None:
    composed = {"prompt": "caf\u00e9", "chosen": "a", "rejected": "b"}
    assert pair_id({**composed, "prompt": "cafe\u0301"}) != pair_id(composed)
    assert pair_id({**composed, "chosen": "a "}) != pair_id(composed)


@SLOW
@given(rows=st.lists(text_rows(), min_size=1, max_size=5))
def test_text_pairs_keep_their_ids_in_every_file_format(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    expected = [pair_id(row) for row in rows]
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "saved"):
        write_rows(rows, folder / name)
        assert ids(folder / name) == expected
    assert ids(Dataset.from_list(rows)) == expected
    # In CSV a column of nothing but numbers is one of numbers, and a cell such as NA is none: to datasets and to TRL.
    worded = [{name: f"words {value}" for name, value in row.items()} for row in rows]
    for name in ("a.csv", "a.csv.gz", "a.tsv"):
        write_rows(worded, folder / name)
        assert ids(folder / name) == [pair_id(row) for row in worded]


@SLOW
@given(rows=st.lists(chat_rows(), min_size=1, max_size=5))
def test_conversations_keep_their_ids_in_every_file_format(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    expected = [pair_id(row) for row in rows]
    # from_list takes its columns from the first row alone, so that row names them all.
    arrow = Dataset.from_list([{"tools": None, "chat_template_kwargs": None} | row for row in rows])
    arrow.save_to_disk(str(folder / "arrow"))
    arrow.to_parquet(str(folder / "arrow.parquet"))
    for name in ("a.jsonl", "a.parquet", "saved"):
        write_rows(rows, folder / name)
    for name in ("a.jsonl", "a.parquet", "saved", "arrow", "arrow.parquet"):
        assert ids(folder / name) == expected


@FAST
@given(rows=st.lists(text_rows(), min_size=2, max_size=6), order=st.randoms(use_true_random=False))
def test_row_order_moves_ids_and_changes_none(rows: list[dict[str, Any]], order: random.Random) -> None:
    places = order.sample(range(len(rows)), len(rows))
    expected = ids(rows)
    assert ids([rows[place] for place in places]) == [expected[place] for place in places]


# --- the fingerprint ------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_the_ids_in_row_order() -> None:
    one, two = "00" * 16, "ab" * 16
    builder = FingerprintBuilder()
    builder.add(one)
    builder.add(two)
    assert builder.hexdigest() == dataset_fingerprint([one, two]) != dataset_fingerprint([two, one])
    assert len({dataset_fingerprint(given) for given in ([], [one], [one, one], [one, two])}) == 4


# --- reading --------------------------------------------------------------------------------------------------------


def test_foreign_column_names_are_mapped_and_give_the_same_pairs() -> None:
    row = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go", "source": "forum"}
    foreign = {"question": "Hi", "good": "Hello", "bad": "Go", "origin": "forum"}
    reading = Reading("question", "good", "bad", "origin")
    assert list(PairReader([foreign], reading)) == list(PairReader([row]))
    assert pair_id(foreign, reading) == pair_id(row)


def test_an_empty_prompt_column_name_leaves_a_prompt_column_out() -> None:
    shared = [user("Hi")]
    row = {"prompt": "Hi", "chosen": [*shared, assistant("a")], "rejected": [*shared, assistant("b")]}
    (pair,) = PairReader([row], Reading(prompt_column=""))
    assert (pair.prompt, pair.chosen) == (shared, [assistant("a")])


def test_sources_are_read_and_named_where_there_are_none() -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert [pair.source for pair in PairReader([row])] == ["all"]
    mixed = [{**row, "source": value} for value in ("web", None, "", 3)]
    assert [pair.source for pair in PairReader(mixed)] == ["web", "unknown", "unknown", "3"]


def test_pairs_know_their_row_and_place(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('\n{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    (pair,) = PairReader(path)
    assert (pair.row, pair.location, pair.conversational) == (0, f"{path}:2", False)


def test_tools_and_template_arguments_reach_the_pair() -> None:
    row = {"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    (pair,) = PairReader([{**row, "tools": '[{"name": "f"}]', "chat_template_kwargs": {"thinking": True}}])
    assert (pair.tools, pair.chat_template_kwargs) == ([{"name": "f"}], {"thinking": True})
    (bare,) = PairReader([row])
    assert (bare.tools, bare.chat_template_kwargs) == (None, {})


def test_bad_rows_are_left_out_and_listed_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    write_rows([good, {**good, "chosen": " "}, {**good, "rejected": "a"}, {**good, "prompt": "q"}], path)
    reader = PairReader(path, Reading(on_bad_row="skip"))
    for _ in range(2):
        assert [pair.row for pair in reader] == [0, 3]
        assert [(row.row, row.location, row.reason) for row in reader.skipped] == [
            (1, f"{path}:2", "empty_response"),
            (2, f"{path}:3", "identical_responses"),
        ]
    assert survey(reader).fingerprint == dataset_fingerprint(ids([good, {**good, "prompt": "q"}]))


def test_no_pair_is_handed_out_after_a_bad_row_that_is_to_stop_the_audit() -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = iter(PairReader([good, {**good, "chosen": ""}, good]))
    assert next(rows).row == 0
    with pytest.raises(DataError):
        next(rows)


def test_a_survey_counts_repeats_contradictions_and_sources() -> None:
    rows = [{"prompt": f"p{number}", "chosen": "a", "rejected": "b", "source": "web"} for number in range(4)]
    again = [rows[2], rows[2], rows[0], {**rows[3], "chosen": "b", "rejected": "a", "source": "forum"}]
    seen = survey(PairReader(rows + again))
    assert (seen.pairs, seen.unique, seen.contradictions) == (8, 5, 1)
    assert seen.duplicates == [Duplicate(pair_id(rows[2]), 3, 2), Duplicate(pair_id(rows[0]), 2, 0)]
    assert seen.sources == {"web": 7, "forum": 1}
    assert seen.fingerprint == dataset_fingerprint(ids(rows + again))


# --- Anthropic's transcripts ----------------------------------------------------------------------------------------


def transcript(*turns: str) -> str:
    """Turns that start with H: or A: as a raw transcript."""
    names = {"H": "Human", "A": "Assistant"}
    return "".join(f"\n\n{names[turn[0]]}: {turn[2:]}" for turn in turns)


def read_transcripts(chosen: str, rejected: str) -> Any:
    (pair,) = PairReader([{"chosen": chosen, "rejected": rejected}])
    return pair


def test_shared_turns_are_the_prompt_and_the_last_turn_the_response() -> None:
    pair = read_transcripts(
        transcript("H:Hi", "A:Hello", "H: two\n\nlines ", "A:Yes\n"),
        transcript("H:Hi", "A:Hello", "H: two\n\nlines ", "A:No"),
    )
    assert pair.prompt == [user("Hi"), assistant("Hello"), user(" two\n\nlines ")]
    assert (pair.chosen, pair.rejected) == ([assistant("Yes\n")], [assistant("No")])


def test_transcripts_are_recognized_unless_read_as_plain_text_or_given_a_prompt() -> None:
    row = {"chosen": transcript("H:Hi", "A:a"), "rejected": transcript("H:Hi", "A:b")}
    assert PairReader([row]).format == "anthropic"
    assert PairReader([row], Reading(format="trl")).format == "trl"
    assert PairReader([{**row, "prompt": "p"}]).format == "trl"
    assert pair_id(row) != pair_id(row, Reading(format="trl"))


def test_turns_of_one_speaker_in_a_row_become_one_message() -> None:
    pair = read_transcripts(transcript("H:Hi", "H:there", "A:a", "A:b"), transcript("H:Hi", "H:there", "A:c"))
    assert pair.prompt == [user("Hi\n\nthere")]
    assert (pair.chosen, pair.rejected) == ([assistant("a\n\nb")], [assistant("c")])


def test_transcripts_that_part_at_an_earlier_answer_are_responses_from_there_on() -> None:
    pair = read_transcripts(transcript("H:Hi", "A:a", "H:more", "A:b"), transcript("H:Hi", "A:c", "H:why", "A:d"))
    assert pair.prompt == [user("Hi")]
    assert pair.chosen == [assistant("a"), user("more"), assistant("b")]


def test_a_transcript_and_the_same_conversation_have_one_id() -> None:
    row = {"chosen": transcript("H:Hi", "A:a"), "rejected": transcript("H:Hi", "A:b")}
    assert pair_id(row) == pair_id({"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]})


def test_swapping_transcripts_gives_the_flipped_id() -> None:
    one, two = transcript("H:Hi", "A:a", "H:x", "A:b"), transcript("H:Hi", "A:c")
    assert read_transcripts(one, two).flipped_id == read_transcripts(two, one).pair_id


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (transcript("H:Hi", "A:a", "H:more"), transcript("H:Hi", "A:b"), "odd_transcript"),
        (transcript("H:Hi", "A:a"), transcript("A:Hi", "H:x", "A:b"), "odd_transcript"),
        (transcript("H:Hi", "A:a"), "A preamble." + transcript("H:Hi", "A:b"), "odd_transcript"),
        (transcript("H:Hi"), transcript("H:Hi", "A:b"), "odd_transcript"),
        (transcript("H:Hi", "A:a"), transcript("H:Hey", "A:b"), "prompts_differ"),
        (transcript("H:Hi", "A:a", "H:x", "A:b"), transcript("H:Hi", "A:a", "H:y", "A:b"), "prompts_differ"),
        (transcript("H:Hi", "A:"), transcript("H:Hi", "A:b"), "empty_response"),
        (transcript("H:Hi", "A:a"), transcript("H:Hi", "A:a"), "identical_responses"),
    ],
)
def test_transcripts_without_one_prompt_and_two_answers_are_bad_rows(chosen: str, rejected: str, reason: str) -> None:
    with pytest.raises(RowFault) as fault:
        pair_id({"chosen": chosen, "rejected": rejected})
    assert fault.value.reason == reason


def test_every_row_of_the_harmless_split_is_read_but_the_four_empty_answers(hh_rlhf: Path) -> None:
    reader = PairReader(hh_rlhf, Reading(on_bad_row="skip"))
    pairs = list(reader)
    assert reader.format == "anthropic"
    assert [(row.row, row.reason) for row in reader.skipped] == [(row, "empty_response") for row in HARMLESS_EMPTY]
    assert len(pairs) == len({pair.pair_id for pair in pairs}) == HARMLESS_ROWS - len(HARMLESS_EMPTY)
    for pair in pairs:
        roles = [message["role"] for message in pair.prompt if isinstance(message, dict)]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert (len(pair.chosen), len(pair.rejected)) == (1, 1)
