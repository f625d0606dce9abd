"""A pass over a dataset that is kept is the pass that reading it again would make, or it is not used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.audit_cases import auditor_of, pair_rows, tiny_loaded
from tests.gate_cases import write_rows
from tests.store_cases import contents
from trl_attribution.errors import AttributionError
from trl_attribution.pairs import Encoding, PairReader, Reading
from trl_attribution.pairs.dataset_pass import DatasetPass, pass_over
from trl_attribution.pairs.kept_pass import FILE_NAME, TokensAgain, keep_pass, kept_pass, pass_key
from trl_attribution.pairs.token_spool import TokenSpool

ENCODING = Encoding(max_length=60)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve pairs, two of them twice, one that says nothing, one longer than fits."""
    rows = [*pair_rows(12), *pair_rows(2), {**pair_rows(1)[0], "chosen": pair_rows(1)[0]["rejected"]}]
    rows.append({**rows[3], "prompt": [{"role": "user", "content": "and so on " * 90}]})
    return write_rows(tmp_path / "data.jsonl", rows)


def reader_of(data: Path) -> PairReader:
    return PairReader(data, Reading(on_bad_row="skip"))


def plain(found: DatasetPass | None) -> dict[str, Any]:
    """A pass as values that can be compared."""
    assert found is not None
    index = found.index
    arrays = {"rows": index.rows.tolist(), "sources": index.sources.to_pylist(), "ids": index.pair_ids}
    return {**vars(found), "index": arrays}


def test_what_is_kept_is_what_was_read(data: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    reader = reader_of(data)
    key = pass_key(reader, tokenizer, ENCODING)
    assert key is not None and kept_pass(tmp_path, key) is None
    read = pass_over(reader, tokenizer, ENCODING)
    assert len(read.index) == 12 and {row.reason for row in read.skipped} == {"identical_responses", "prompt_too_long"}
    keep_pass(tmp_path, key, read)
    assert plain(kept_pass(tmp_path, key)) == plain(replace(read, longest_pair=None, sample=()))
    # Tokens can be read as texts, which an audit does not hold.
    assert read.longest_pair is not None
    ids = json.dumps(read.longest_pair.chosen.prompt_ids[:5])[1:-1].encode()
    assert ids not in (tmp_path / FILE_NAME).read_bytes()
    assert kept_pass(tmp_path, "another key") is None


def test_a_name_that_no_text_can_hold_keeps_no_pass(
    data: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    read = pass_over(reader_of(data), tokenizer, ENCODING)
    skipped = [replace(row, location="\udcff.jsonl:1") for row in read.skipped]  # as Python reads such a file's name
    keep_pass(tmp_path, "key", replace(read, skipped=skipped))
    assert kept_pass(tmp_path, "key") is None and not (tmp_path / FILE_NAME).exists()


def test_tokens_read_again_are_those_that_were_read_first(
    data: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    reader, spool = reader_of(data), TokenSpool(tmp_path)
    index = pass_over(reader, tokenizer, ENCODING, on_encoded=spool.add).index
    wanted = np.arange(len(index)) % 3 == 1
    again = TokensAgain(reader_of(data), tokenizer, ENCODING, index)
    assert list(again.read(wanted)) == list(spool.read(wanted)) != []
    write_rows(data, pair_rows(14, start=1))
    with pytest.raises(AttributionError, match=r"data\.jsonl:\d+ changed while it was read"):
        list(TokensAgain(reader_of(data), tokenizer, ENCODING, index).read(wanted))


def test_whatever_a_pass_depends_on_is_in_its_key(data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def key(encoding: Encoding = ENCODING, **reading: Any) -> str | None:
        return pass_key(PairReader(data, replace(Reading(on_bad_row="skip"), **reading)), tokenizer, encoding)

    first = key()
    others = [key(Encoding(max_length=61)), key(on_bad_row="error"), key(source_column="prompt")]
    tokenizer.chat_template, template = f"{tokenizer.chat_template} ", tokenizer.chat_template
    others.append(key())
    tokenizer.chat_template = template
    tokenizer.bos_token, bos = tokenizer.eos_token, tokenizer.bos_token  # which templates write
    others.append(key())
    tokenizer.bos_token = bos
    assert key() == first
    data.write_text(data.read_text().replace("bread", "bricks"))
    assert len({first, key(), *others}) == 7
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    assert pass_key(PairReader(rows), tokenizer, ENCODING) is None  # no files


def test_a_card_that_says_how_files_are_read_is_in_the_key(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_rows(folder / "train.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c", "source": 0}] * 2)

    def key(*names: str) -> str | None:
        labels = "".join(f"\n            '{number}': {name}" for number, name in enumerate(names))
        columns = "".join(f"\n  - name: {name}\n    dtype: string" for name in ("prompt", "chosen", "rejected"))
        source = f"\n  - name: source\n    dtype:\n      class_label:\n        names:{labels}"
        (folder / "README.md").write_text(f"---\ndataset_info:\n  features:{columns}{source}\n---\n")
        reader = PairReader(folder)
        assert next(iter(reader)).source == names[0]
        return pass_key(reader, tokenizer, ENCODING)

    assert key("web", "books") == key("web", "books") != key("books", "web")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 3000), flip=st.integers(0, 3000))
def test_a_damaged_file_is_not_used(
    cut: int, flip: int, data: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / FILE_NAME
    if not (tmp_path / "whole").exists():
        keep_pass(tmp_path, "key", pass_over(reader_of(data), tokenizer, ENCODING))
        path.rename(tmp_path / "whole")
    damaged = bytearray((tmp_path / "whole").read_bytes())
    damaged[flip % len(damaged)] ^= 1
    path.write_bytes(damaged[: len(damaged) - cut % len(damaged)])
    assert kept_pass(tmp_path, "key") is None


def test_an_audit_that_goes_on_from_a_kept_pass_is_an_undisturbed_one(data: Path, tmp_path: Path) -> None:
    auditor = auditor_of(
        tiny_loaded(), layers=[1, 3], shard_size=3, encoding=ENCODING, reading=Reading(on_bad_row="skip")
    )
    whole = auditor.audit(data, tmp_path / "whole", results=False)

    def stop(stage: str, done: int, _total: int) -> None:
        if stage == "vectors" and done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        auditor.audit(data, tmp_path / "again", results=False, on_progress=stop)
    stages: list[str] = []
    resumed = auditor.audit(
        data, tmp_path / "again", results=False, on_progress=lambda stage, _done, _total: stages.append(stage)
    )
    assert "read" not in stages and resumed.info.vectors.computed < 12
    assert contents(tmp_path / "again" / "vectors") == contents(tmp_path / "whole" / "vectors")
    assert resumed.info.dataset == whole.info.dataset and resumed.skipped == whole.skipped
