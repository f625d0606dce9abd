"""One data set in every form that it can have: the same ids, tokens and order, which are those of the trainer."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, load_dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from tests.tiny import build_tiny_tokenizer
from trl_attribution.errors import DataError
from trl_attribution.pairs import EncodedPair, Encoding, PairReader, Reading, encode_pairs
from trl_attribution.pairs.rows import open_rows, write_rows
from trl_attribution.utils.compat import is_before

Rows = list[dict[str, Any]]

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% if message.at is defined %} at {{ message.at }}{% endif %}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def called(text: str, **arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "find", "arguments": arguments}}
    return said("assistant", text, tool_calls=[call])


DATA: dict[str, Rows] = {
    "text": [
        {"prompt": "Grüße 🙂 ", "chosen": "naïve\n", "rejected": '\tcafé, "quoted"', "source": "a"},
        {"prompt": "Who?\r\n", "chosen": "日本", "rejected": "cafe\u0301", "source": "b"},
        {"prompt": "When?", "chosen": "2024-05-01", "rejected": "1", "source": "b"},
    ],
    "missing keys": [
        {
            "prompt": [said("user", "Where?")],
            "chosen": [called("", city="Paris", n=1)],
            "rejected": [said("assistant", "5")],
        },
        {"prompt": [said("user", "When?")], "chosen": [called("", day="2024-05-01")], "rejected": [called("", n=1.5)]},
        {"prompt": [said("user", "🙂")], "chosen": [said("assistant", "null")], "rejected": [said("assistant", "[1]")]},
    ],
    "integers and floats": [
        {"prompt": [said("user", "1")], "chosen": [called("a", x=1, y=[1])], "rejected": [called("b", x=2, y=[])]},
        {"prompt": [said("user", "2")], "chosen": [called("c", x=1.5, y=[2])], "rejected": [called("d", x=3, y=[0.5])]},
    ],
    "dates": [
        {
            "prompt": [said("user", f"{day}?", at=f"2024-05-0{day}")],
            "chosen": [said("assistant", "yes", at=f"2024-05-0{day}T10:00:00Z")],
            "rejected": [said("assistant", "no", at=f"2024-05-0{day}T10:00:00Z")],
        }
        for day in (1, 2)
    ],
}


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def loaded(rows: Rows, folder: Path) -> Dataset:
    """What a training script has: ``load_dataset`` of the JSONL file."""
    (folder / "loaded.jsonl").write_bytes(lines(rows))
    dataset = load_dataset("json", data_files=str(folder / "loaded.jsonl"), split="train", cache_dir=str(folder / "c"))
    assert isinstance(dataset, Dataset)
    return dataset


def file_of(name: str, content: Callable[[Rows], bytes]) -> Callable[[Rows, Path], Any]:
    def make(rows: Rows, folder: Path) -> Path:
        (folder / name).write_bytes(content(rows))
        return folder / name

    return make


def configured(*configs: tuple[str, dict[str, str]]) -> str:
    parts = ["---", "configs:"]
    for name, splits in configs:
        parts += [f"- config_name: {name}", "  data_files:"]
        parts += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
    return "\n".join([*parts, "---", "# Card\n"])


def card_folder(rows: Rows, folder: Path) -> Path:
    """As repositories on the Hub have it: the card names configurations, splits and files, more files lie beside."""
    home = folder / "hub"
    (home / "prefs").mkdir(parents=True)
    Dataset.from_parquet(str(saved_parquet(rows, folder))).to_parquet(str(home / "prefs" / "part-0.parquet"))
    (home / "old.parquet").write_bytes(b"left out by the card")
    (home / "README.md").write_text(configured(("default", {"train_prefs": "prefs/part-*.parquet"})))
    return home


def partition_folder(rows: Rows, folder: Path) -> Path:
    (folder / "parted" / "lang=en").mkdir(parents=True)
    (folder / "parted" / "lang=en" / "0.jsonl").write_bytes(lines(rows))
    return folder / "parted"


def saved_parquet(rows: Rows, folder: Path) -> Path:
    loaded(rows, folder).to_parquet(str(folder / "loaded.parquet"))
    return folder / "loaded.parquet"


def written_as(name: str) -> Callable[[Rows, Path], Path]:
    def make(rows: Rows, folder: Path) -> Path:
        source = open_rows(file_of("source.jsonl", lines)(rows, folder))
        write_rows(source, folder / name, like=source)
        return folder / name

    return make


def saved(rows: Rows, folder: Path) -> Path:
    loaded(rows, folder).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def arrow(rows: Rows, folder: Path) -> Path:
    (file,) = saved(rows, folder).glob("*.arrow")
    return file


def separated(delimiter: str) -> Callable[[Rows], bytes]:
    def content(rows: Rows) -> bytes:
        import io

        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    return content


FORMS: dict[str, Callable[[Rows, Path], Any]] = {
    "jsonl": file_of("data.jsonl", lines),
    "gz": file_of("data.jsonl.gz", lambda rows: gzip.compress(lines(rows))),
    "bz2": file_of("data.jsonl.bz2", lambda rows: bz2.compress(lines(rows))),
    "xz": file_of("data.ndjson.xz", lambda rows: lzma.compress(lines(rows))),
    "one array": file_of("data.json", lambda rows: json.dumps(rows, indent=1).encode()),
    "parquet": saved_parquet,
    "parquet from apply": written_as("out.parquet"),
    "Dataset": loaded,
    "DatasetDict": lambda rows, folder: DatasetDict({"train": loaded(rows, folder)}),
    "save_to_disk": saved,
    "save_to_disk from apply": written_as("out"),
    "arrow": arrow,
    "partitions": partition_folder,
    "card": card_folder,
}
CSV_FORMS: dict[str, Callable[[Rows, Path], Any]] = {
    "csv": file_of("data.csv", separated(",")),
    "csv.gz": file_of("data.csv.gz", lambda rows: gzip.compress(separated(",")(rows))),
    "tsv": file_of("data.tsv", separated("\t")),
    "csv from apply": written_as("out.csv"),
    "list": lambda rows, _: rows,
}


@pytest.fixture(scope="module")
def speaker() -> PreTrainedTokenizerFast:
    """A tokenizer whose template shows tool calls and dates."""
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@dataclass(frozen=True)
class Trained:
    """What a real DPOTrainer trains on, and the ids of its rows."""

    prompt: list[list[int]]
    chosen: list[list[int]]
    rejected: list[list[int]]
    ids: list[str]


@pytest.fixture(scope="module")
def trained(
    speaker: PreTrainedTokenizerFast,
    make_model: Callable[[str], PreTrainedModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Trained]:
    known: dict[str, Trained] = {}

    def of(name: str) -> Trained:
        if name not in known:
            dataset = loaded(DATA[name], tmp_path_factory.mktemp("trained"))
            place = str(tmp_path_factory.mktemp("dpo"))
            args = DPOConfig(place, use_cpu=True, bf16=False, report_to=[], max_length=None, disable_tqdm=True)
            trainer = DPOTrainer(
                make_model("llama"), make_model("llama"), args, train_dataset=dataset, processing_class=speaker
            )
            rows = trainer.train_dataset[:]  # type: ignore[index]
            ids = [pair.pair_id for pair in PairReader(dataset)]
            known[name] = Trained(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], ids)
        return known[name]

    return of


CASES = [
    *((name, form) for name in DATA for form in FORMS),
    *(("text", form) for form in CSV_FORMS),
    ("missing keys", "list"),
    ("integers and floats", "list"),
]
if is_before("datasets", "4.7"):  # has no Json: what a column holds depends on its first rows, and on the form
    CASES = [(name, form) for name, form in CASES if name in ("text", "dates") and form != "one array"]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_every_form_gives_the_ids_tokens_and_order_of_the_trainer(
    name: str, form: str, speaker: PreTrainedTokenizerFast, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    dataset = (FORMS | CSV_FORMS)[form](DATA[name], tmp_path)
    pairs = list(PairReader(dataset))
    wanted = trained(name)
    assert [pair.pair_id for pair in pairs] == wanted.ids
    assert [pair.source for pair in pairs] == [row.get("source", "all") for row in DATA[name]]
    encoded = [one for one in encode_pairs(pairs, speaker, Encoding(None)) if isinstance(one, EncodedPair)]
    assert [one.chosen.prompt_ids for one in encoded] == wanted.prompt
    assert [one.chosen.response_ids for one in encoded] == wanted.chosen
    assert [one.rejected.response_ids for one in encoded] == wanted.rejected


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", DATA)
def test_a_list_under_one_key_is_read_as_with_its_field(name: str, indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"rows": DATA[name]}, indent=indent))
    theirs = load_dataset("json", data_files=str(path), field="rows", split="train", cache_dir=str(tmp_path / "c"))
    assert [row.values for row in open_rows(path)] == list(theirs)


def test_the_types_of_a_split_are_those_of_its_first_file(tmp_path: Path) -> None:
    """As ``load_dataset`` does it: 1 of a later file is 1.0 where the first file holds floats."""
    asked = [said("user", "?")]
    floats, integers = (
        [{"prompt": asked, "chosen": [called("a", x=x)], "rejected": [called("b", x=x)]}] for x in (1.5, 1)
    )
    (tmp_path / "train-0.jsonl").write_bytes(lines(floats))
    (tmp_path / "train-1.jsonl").write_bytes(lines(integers))
    ours = [row.values for row in open_rows(tmp_path)]
    theirs = load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path.parent / "c"))
    assert ours == list(theirs)
    assert str(ours[1]["chosen"][0]["tool_calls"][0]["function"]["arguments"]) == "{'x': 1.0}"
    (tmp_path / "train-2.jsonl").write_text('{"prompt": 5, "other": true}\n')
    with pytest.raises(DataError, match=r"train-2\.jsonl: datasets cannot load this file, so no trainer reads it"):
        list(open_rows(tmp_path))


# ----------------------------------------------------------------------------------------------------------- folders


def hub_folder(place: Path, card: str) -> Path:
    for number, name in enumerate(["train_sft", "train_prefs", "train_gen", "extra"]):
        write_rows([{"prompt": name, "chosen": f"a{number}", "rejected": "b"}] * 4, place / "data" / f"{name}.jsonl")
    (place / "README.md").write_text(card)
    return place


SPLITS = {f"train_{name}": f"data/train_{name}*" for name in ("sft", "prefs", "gen")}


def test_a_card_names_the_splits_of_a_folder_and_what_it_leaves_out_is_not_read(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path, configured(("default", SPLITS)))
    rows = [row.values for row in open_rows(folder, "train_prefs")]
    assert [row["prompt"] for row in rows] == ["train_prefs"] * 4
    for split in (None, "train", "extra"):
        with pytest.raises(DataError, match="train_sft, train_prefs, train_gen"):
            open_rows(folder, split)


def test_a_configuration_is_chosen_with_its_split(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path, configured(("prefs", {"train": "data/train_prefs*"}), ("rest", SPLITS)))
    assert next(iter(open_rows(folder, "prefs/train"))).values["prompt"] == "train_prefs"
    assert next(iter(open_rows(folder, "rest/train_gen"))).values["prompt"] == "train_gen"
    assert next(iter(open_rows(folder, "prefs/"))).values["prompt"] == "train_prefs"
    for split in (None, "train", "other/train"):
        with pytest.raises(DataError, match=r"several configurations \(prefs, rest\).*--split prefs/SPLIT"):
            open_rows(folder, split)


@pytest.mark.parametrize("path", ["../secret.jsonl", "{outside}/secret.jsonl"])
def test_a_card_that_leads_out_of_its_folder_is_refused(path: str, tmp_path: Path) -> None:
    write_rows([{"prompt": "p", "chosen": "a", "rejected": "b"}], tmp_path / "secret.jsonl")
    folder = hub_folder(tmp_path / "in", configured(("default", {"train": path.format(outside=tmp_path)})))
    with pytest.raises(DataError, match=r"names the data file '.*secret\.jsonl', which is not in this folder"):
        open_rows(folder)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("---\nconfigs: 3\n---\n", "datasets cannot load this folder"),
        (configured(("default", {"train": "data/nothing.jsonl"})), "datasets cannot load this folder|no dataset files"),
        ("---\n: [\n---\n", "datasets cannot load this folder"),
    ],
)
def test_a_card_that_datasets_cannot_follow_is_refused(card: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_rows(hub_folder(tmp_path, card))


def test_a_folder_with_a_card_is_cleaned_split_by_split(tmp_path: Path) -> None:
    from tests.manifest_cases import manifest_for

    folder = hub_folder(tmp_path / "in", configured(("default", SPLITS)))
    reading = Reading(split="train_prefs")
    (pair_id,) = {pair.pair_id for pair in PairReader(folder, reading)}
    report = manifest_for(folder, [pair_id], "flip", reading).apply_file(folder, tmp_path / "out", reading=reading)
    assert (report.flipped, report.files_rewritten, report.files_copied) == (4, 1, 4)
    assert {row.values["chosen"] for row in open_rows(tmp_path / "out", "train_prefs")} == {"b"}
    assert {row.values["chosen"] for row in open_rows(tmp_path / "out", "train_gen")} == {"a2"}


def test_text_files_are_refused_by_the_name_that_datasets_has_for_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"datasets reads it as text. Supported: \.jsonl"):
        open_rows(tmp_path)
