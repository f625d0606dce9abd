"""Faults that a user can mend, met through DataAuditor: what is wrong, where, what to do, and nothing half-written."""

from __future__ import annotations

import copy
import json
import os
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.audit_cases import Row, auditor_of, message_of, pair_row, pair_rows, tiny_loaded
from tests.manifest_cases import ids_of, write_jsonl
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.audit.calibrate import calibrate_probe
from trl_attribution.audit.config import AuditConfig
from trl_attribution.audit.info import AuditInfo
from trl_attribution.errors import AttributionError, DataError, ModelError, ProbeError, SettingsError, StoreError
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding, Reading
from trl_attribution.probes import Probe, ProbeRegistry
from trl_attribution.report.terminal import audit_summary
from trl_attribution.scoring import Rule
from trl_attribution.store import VectorStore


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", pair_rows(6))


def test_a_probe_of_another_model_is_refused_with_both_fingerprints(probe: Probe, data: Path, tmp_path: Path) -> None:
    other = tiny_loaded("qwen2")
    message = message_of(ProbeError, lambda: auditor_of(other, [probe]).audit(data, tmp_path / "audit"), tmp_path)
    assert "probe 'rude' was built on another model" in message
    assert probe.model.digest in message and other.fingerprint.digest in message
    assert "weights" in message and "build the probe again" in message


def test_an_audit_without_layers_or_probes_to_take_them_from_is_refused(
    loaded: LoadedModel, data: Path, tmp_path: Path
) -> None:
    message = message_of(SettingsError, lambda: DataAuditor(loaded).audit(data, tmp_path / "audit"), tmp_path)
    assert "layers: give some, or probes to take them from" in message


@pytest.mark.parametrize("layer", [5, -1])
def test_a_layer_out_of_range_is_refused(layer: int, loaded: LoadedModel, data: Path, tmp_path: Path) -> None:
    auditor = auditor_of(loaded, layers=[2, layer])
    message = message_of(ModelError, lambda: auditor.audit(data, tmp_path / "audit"), tmp_path)
    assert f"[{layer}] out of range" in message and "choose from 0 (embeddings) to 4" in message


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"layrs": [1]}, ["unknown setting layrs", "layers", "token_budget"]),
        ({"layers": []}, ["layers", "at least one"]),
        ({"layers": [2, 2]}, ["layers", "each once"]),
        ({"layers": ["20"]}, ["['20']", "whole numbers", "[20]"]),
        ({"layers": [1], "score": "cosine"}, ["score: 'cosine'", "contextual", "response"]),
        ({"layers": [1], "vector_dtype": "int8"}, ["vector_dtype: 'int8'", "float16"]),
        ({"layers": [1], "path": "fast"}, ["path: 'fast'", "packed", "plain"]),
        ({"layers": [1], "shard_size": 0}, ["shard_size: 0", "512"]),
        ({"layers": [1], "token_budget": 0}, ["token_budget: 0 is not positive"]),
        ({"layers": [1], "probes": []}, ["probes: none there", "probe build"]),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_at_once(
    settings: dict[str, Any], parts: list[str], loaded: LoadedModel
) -> None:
    with pytest.raises(SettingsError) as caught:
        DataAuditor(loaded, **settings)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_setting_that_the_model_cannot_follow_is_refused(loaded: LoadedModel, data: Path, tmp_path: Path) -> None:
    auditor = auditor_of(loaded, layers=[1], dtype="bfloat16")
    said = message_of(SettingsError, lambda: auditor.audit(data, tmp_path / "audit"), tmp_path)
    assert "model given is float32" in said


def test_one_layer_needs_no_list(loaded: LoadedModel) -> None:
    assert AuditConfig(layers=2).layers == (2,)  # type: ignore[arg-type]  # what people write


def test_layers_that_a_probe_lacks_are_refused(loaded: LoadedModel, probe: Probe) -> None:
    with pytest.raises(SettingsError) as caught:
        DataAuditor(loaded, probes=[probe], layers=[2])
    assert "probe 'rude' knows layers [1, 3], none of [2]" in str(caught.value)


def test_a_layer_at_which_all_prompts_end_alike_is_refused_unless_only_responses_count(probe: Probe) -> None:
    assert probe.contexts is not None
    alike = replace(probe, contexts=probe.contexts[:1].expand_as(probe.contexts))
    with pytest.raises(SettingsError, match="at layer 1 all prompts of probe 'rude' have the same context"):
        DataAuditor(probes=[alike], layers=[1])
    assert DataAuditor(probes=[alike], layers=[1], score="response").layers == (1,)
    assert DataAuditor(probes=[probe], layers=[1]).layers == (1,)


def test_two_probes_of_one_name_are_refused(loaded: LoadedModel, probe: Probe) -> None:
    with pytest.raises(SettingsError, match="names must differ.*rude, rude"):
        DataAuditor(loaded, probes=[probe, replace(probe, layer=1)])


def test_contextual_scores_without_known_prompts_are_refused_before_anything_is_computed(
    loaded: LoadedModel, probe: Probe
) -> None:
    bare = replace(probe, name="bare", prompt_vectors=None, contexts=None)
    with pytest.raises(ProbeError) as caught:
        DataAuditor(loaded, probes=[probe, bare], score="contextual")
    with pytest.raises(ProbeError, match="one-sided scores need probes that know their prompts"):
        DataAuditor(loaded, probes=[probe, bare], score="one-sided")
    assert "bare" in str(caught.value) and "rude" not in str(caught.value) and "behavior file" in str(caught.value)


@pytest.mark.parametrize("there", [True, False], ids=["empty", "missing"])
def test_a_registry_without_probes_is_refused(there: bool, loaded: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "probes"
    if there:
        folder.mkdir()
    message = message_of(ProbeError, lambda: DataAuditor(loaded, probes=folder), tmp_path)
    assert str(folder) in message and re.search("build (or import )?", message, re.IGNORECASE)


def test_a_damaged_probe_is_refused(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    folder = ProbeRegistry(tmp_path / "probes").save(probe)
    payload = folder / "probe.safetensors"
    payload.write_bytes(payload.read_bytes()[:-4])
    with pytest.raises(ProbeError, match="damaged"):
        DataAuditor(loaded, probes=tmp_path / "probes")


def test_an_unknown_model_is_refused(data: Path, tmp_path: Path) -> None:
    auditor = DataAuditor(tmp_path / "no-model", layers=[1])
    message = message_of(ModelError, lambda: auditor.audit(data, tmp_path / "audit"), tmp_path)
    assert str(tmp_path / "no-model") in message


def test_a_missing_dataset_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    auditor, missing = auditor_of(loaded, layers=[1]), tmp_path / "no-data.jsonl"
    message = message_of(DataError, lambda: auditor.audit(missing, tmp_path / "audit"), tmp_path)
    assert str(missing) in message and "no such file" in message


def test_bad_rows_are_listed_with_file_and_line(loaded: LoadedModel, tmp_path: Path) -> None:
    rows: list[Row] = pair_rows(4)
    rows[1] = {**rows[1], "rejected": rows[1]["chosen"]}
    rows[3] = {**rows[3], "chosen": [{"role": "assistant", "content": " "}]}
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    auditor = auditor_of(loaded, layers=[1])
    message = message_of(DataError, lambda: auditor.audit(data, tmp_path / "audit"), tmp_path)
    assert f"{data}:2: column 'rejected'" in message and f"{data}:4: column 'chosen'" in message
    assert "2 of 4 rows" in message and "--on-bad-row skip" in message


def test_a_prompt_longer_than_max_length_is_refused_with_its_line(loaded: LoadedModel, tmp_path: Path) -> None:
    rows = pair_rows(6)
    rows[4] = {**rows[4], "prompt": [{"role": "user", "content": "bread " * 200}]}
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    auditor = auditor_of(loaded, layers=[1], encoding=Encoding(max_length=200))
    message = message_of(DataError, lambda: auditor.audit(data, tmp_path / "audit"), tmp_path)
    assert "1 row cannot be encoded" in message and f"{data}:5: column 'prompt'" in message
    assert "max_length=200" in message and "--max-length" in message and "--on-bad-row skip" in message


def test_a_dataset_of_long_prompts_only_is_refused_even_when_skipping(loaded: LoadedModel, tmp_path: Path) -> None:
    auditor = auditor_of(loaded, layers=[1], encoding=Encoding(max_length=3), reading=Reading(on_bad_row="skip"))
    message = message_of(DataError, lambda: auditor.audit(pair_rows(3), tmp_path / "audit"), tmp_path)
    assert "no pair can be encoded" in message and "row 0: column 'prompt'" in message and "--max-length" in message


def test_pairs_of_equal_tokens_are_shown_with_their_cause(loaded: LoadedModel, tmp_path: Path) -> None:
    rows = pair_rows(6)
    same = [{"role": "assistant", "content": "Paris."}]
    rows[2] |= {"chosen": [{**same[0], "reasoning_content": "I think so."}], "rejected": same}
    audit = auditor_of(loaded, layers=[1]).audit(rows, tmp_path / "audit")
    assert AuditInfo.load(tmp_path / "audit").dataset.alike == {"template": 1}
    assert not audit.store.layer(1)[2].any()
    assert audit.store.layer(1).any(dim=1).sum() == 5
    console = Console(width=200, record=True, file=StringIO())
    console.print(audit_summary(audit))
    assert "1 have two responses of the same tokens (template: 1)" in console.export_text()
    everything = [{**row, "chosen": rows[2]["chosen"], "rejected": same} for row in rows]
    message = message_of(
        DataError, lambda: auditor_of(loaded, layers=[1]).audit(everything, tmp_path / "other"), tmp_path
    )
    assert "have two responses of the same tokens" in message and "reasoning, tool calls" in message


def test_an_audit_folder_of_another_dataset_is_refused(loaded: LoadedModel, data: Path, tmp_path: Path) -> None:
    auditor, folder = auditor_of(loaded, layers=[1]), tmp_path / "audit"
    first = auditor.audit(data, folder).info.dataset.fingerprint
    message = message_of(SettingsError, lambda: auditor.audit(pair_rows(5), folder), tmp_path)
    assert str(folder) in message and f"dataset_fingerprint: stored '{first}'" in message
    assert "pairs: stored 6, asked for 5" in message
    assert "another output folder" in message and f"--vectors {folder / 'vectors'}" in message


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"encoding": Encoding(max_length=512)}, "max_length: stored 1024, asked for 512"),
        ({"encoding": Encoding(truncation_mode="keep_end")}, "stored 'keep_start', asked for 'keep_end'"),
        ({"layers": [1, 2]}, "layers: stored [1], asked for [1, 2]"),
        ({"vector_dtype": "float16"}, "vector_dtype: stored 'float32', asked for 'float16'"),
    ],
)
def test_an_audit_folder_of_other_settings_is_refused(
    settings: dict[str, Any], difference: str, loaded: LoadedModel, data: Path, tmp_path: Path
) -> None:
    auditor_of(loaded, layers=[1]).audit(data, tmp_path / "audit")
    other = auditor_of(loaded, **{"layers": [1], **settings})
    message = message_of(SettingsError, lambda: other.audit(data, tmp_path / "audit"), tmp_path)
    assert difference in message and "pairs:" not in message


def test_an_audit_folder_of_another_model_is_refused(loaded: LoadedModel, data: Path, tmp_path: Path) -> None:
    auditor_of(loaded, layers=[1]).audit(data, tmp_path / "audit")
    other = tiny_loaded("qwen2")
    auditor = auditor_of(other, layers=[1])
    message = message_of(SettingsError, lambda: auditor.audit(data, tmp_path / "audit"), tmp_path)
    assert loaded.fingerprint.digest in message and other.fingerprint.digest in message


def test_vectors_of_other_settings_are_refused_before_the_folder_is_made(
    loaded: LoadedModel, data: Path, tmp_path: Path
) -> None:
    vectors = auditor_of(loaded, layers=[1]).audit(data, tmp_path / "first").folder / "vectors"
    auditor = auditor_of(loaded, layers=[2])
    message = message_of(SettingsError, lambda: auditor.audit(data, tmp_path / "second", vectors=vectors), tmp_path)
    assert str(vectors) in message and "layers: stored [1], asked for [2]" in message


def test_activations_that_are_not_finite_are_refused_and_the_folder_is_free_again(tmp_path: Path) -> None:
    broken = tiny_loaded()
    with torch.no_grad():
        broken.model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 5] = float("nan")
    auditor = auditor_of(broken, layers=[3])
    message = message_of(ModelError, lambda: auditor.audit(pair_rows(3), tmp_path / "audit"), tmp_path)
    assert "layers [3]" in message and "are not finite numbers" in message
    mended = tiny_loaded()
    assert len(auditor_of(mended, layers=[3]).audit(pair_rows(3), tmp_path / "audit").index) == 3


def test_a_pair_that_is_not_finite_keeps_the_shards_before_it(tmp_path: Path) -> None:
    broken = tiny_loaded()
    rows = [{"prompt": f"{n} ", "chosen": "a" if n < 4 else "Q", "rejected": "b"} for n in range(5)]
    token = broken.tokenizer("Q")["input_ids"][0]
    with torch.no_grad():
        broken.model.get_parameter("model.embed_tokens.weight")[token] = float("nan")
    auditor = auditor_of(broken, layers=[3], shard_size=2)
    with pytest.raises(ModelError, match="are not finite numbers"):
        auditor.audit(rows, tmp_path / "audit")
    assert VectorStore.open(tmp_path / "audit" / "vectors").pair_ids == ids_of(rows)[:4]
    assert not (tmp_path / "audit" / "audit.json").exists() and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("change", ["fewer", "more", "gone"])
def test_a_dataset_that_changes_once_it_was_read_changes_nothing(
    change: str, loaded: LoadedModel, probe: Probe, data: Path, tmp_path: Path
) -> None:
    def on_progress(stage: str, done: int, _total: int) -> None:
        if (stage, done) != ("vectors", 0):
            return
        if change == "gone":
            data.unlink()
        else:
            write_jsonl(data, pair_rows(4) if change == "fewer" else [*pair_rows(6), pair_row(20)])

    audit = auditor_of(loaded, [probe], shard_size=2).audit(data, tmp_path / "audit", on_progress=on_progress)
    assert audit.store.pair_ids == list(audit.index.pair_ids) == ids_of(pair_rows(6))
    assert audit.info.dataset.rows == 6


def test_a_file_in_the_place_of_the_output_folder_is_refused(loaded: LoadedModel, data: Path, tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("mine")
    for folder in (tmp_path / "audit", tmp_path / "audit" / "deeper"):
        auditor = auditor_of(loaded, layers=[1])
        message = message_of(StoreError, lambda auditor=auditor, folder=folder: auditor.audit(data, folder), tmp_path)  # type: ignore[misc]
        assert f"{tmp_path / 'audit'} is a file" in message and "another output folder" in message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_output_folder_is_refused(loaded: LoadedModel, data: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    auditor = auditor_of(loaded, layers=[1])
    message = message_of(StoreError, lambda: auditor.audit(data, locked / "audit"), tmp_path)
    assert f"{locked} is read-only" in message and "another output folder" in message


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can make folders in")
def test_an_output_folder_that_cannot_be_made_is_refused(loaded: LoadedModel, data: Path) -> None:
    with pytest.raises(AttributionError, match="/proc/self/audit"):
        auditor_of(loaded, layers=[1]).audit(data, "/proc/self/audit")


@pytest.mark.parametrize("name", ["audit.json", "settings.json"])
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"format_version": 99}, ["format version 99", "reads up to 1", "newer trl-attribution"]),
        ({"format": "a shopping list"}, ["holds no audit", "its `format` is not 'trl-attribution audit"]),
    ],
)
def test_a_folder_that_something_else_wrote_is_refused(
    name: str, change: Row, parts: list[str], loaded: LoadedModel, data: Path, tmp_path: Path
) -> None:
    auditor, folder = auditor_of(loaded, layers=[1]), tmp_path / "audit"
    auditor.audit(data, folder)
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    message = message_of(StoreError, lambda: auditor.audit(data, folder), tmp_path)
    assert str(path) in message and all(part in message for part in parts)
    if name == "audit.json":
        assert message_of(StoreError, lambda: AuditInfo.load(folder), tmp_path) == message


@pytest.mark.parametrize("text", ["", '{"format": ', "[1, 2]"])
def test_a_broken_audit_json_is_refused(text: str, loaded: LoadedModel, data: Path, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "audit.json").write_text(text)
    auditor = auditor_of(loaded, layers=[1])
    message = message_of(StoreError, lambda: auditor.audit(data, tmp_path / "audit"), tmp_path)
    assert str(tmp_path / "audit" / "audit.json") in message


def test_an_unfinished_audit_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no finished audit.*Run `trl-attribution audit`"):
        AuditInfo.load(tmp_path)


def test_audit_json_with_a_missing_or_wrong_field_is_refused_by_its_name(
    loaded: LoadedModel, data: Path, tmp_path: Path
) -> None:
    auditor_of(loaded, layers=[1]).audit(data, tmp_path)
    path = tmp_path / "audit.json"
    values = json.loads(path.read_text())
    for broken, fault in (
        ({"cost": None}, "'cost': Input should be a valid dictionary"),
        ({"dataset": {**values["dataset"], "pairs": "many"}}, "'dataset.pairs': Input should be a valid integer"),
        (
            {"vectors": {**values["vectors"], "settings": {"layers": [1]}}},
            "'vectors.settings.model_fingerprint': Field",
        ),
    ):
        path.write_text(json.dumps({**values, **broken}))
        with pytest.raises(StoreError) as caught:
            AuditInfo.load(tmp_path)
        assert str(caught.value).startswith(f"{path} is broken: field {fault}")


def test_audit_json_of_an_older_release_is_read(loaded: LoadedModel, data: Path, tmp_path: Path) -> None:
    auditor_of(loaded, layers=[1]).audit(data, tmp_path)
    path = tmp_path / "audit.json"
    values = json.loads(path.read_text())
    for newer in ("training", "notes"):
        del values[newer]
    for newer in ("format", "eos_token", "alike"):
        del values["dataset"][newer]
    path.write_text(json.dumps(values))
    info = AuditInfo.load(tmp_path)
    assert info.training is None and info.notes == () and info.reading.format == "auto"
    assert info.to_json() == {name: value for name, value in values.items() if not name.startswith("format")}


def test_another_process_writing_to_the_store_is_refused(loaded: LoadedModel, data: Path, tmp_path: Path) -> None:
    auditor, folder = auditor_of(loaded, layers=[1]), tmp_path / "audit"
    vectors = auditor.audit(data, folder).store
    with vectors.writer():
        message = message_of(
            StoreError,
            lambda: auditor.audit(pair_rows(3, start=9), tmp_path / "next", vectors=folder / "vectors"),
            tmp_path,
        )
    assert "is being written by another process" in message


@pytest.mark.parametrize(
    ("rule", "parts"),
    [
        ({"top_k": 7}, ["top_k 7", "(6)", "choose fewer"]),
        ({"top_k": 2, "fdr": 0.1}, ["exactly one", "top_k, fdr"]),
        ({"threshold": 1.5}, ["threshold", "1.5"]),
        ({"top_k": 2, "probe": "kind"}, ["'kind'", "rude"]),
        ({"top_k": 2, "layer": 2}, ["layer 2", "3"]),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(
    rule: dict[str, Any], parts: list[str], loaded: LoadedModel, probe: Probe, data: Path, tmp_path: Path
) -> None:
    audit = auditor_of(loaded, [probe]).audit(data, tmp_path / "audit")
    message = message_of(SettingsError, lambda: audit.flag(**rule), tmp_path)
    assert all(part in message for part in parts), message


def test_flags_need_probes(loaded: LoadedModel, data: Path, tmp_path: Path) -> None:
    audit = auditor_of(loaded, layers=[1]).audit(data, tmp_path / "audit")
    message = message_of(SettingsError, lambda: audit.flag(top_k=1), tmp_path)
    assert "no scores" in message and "audit again with probes" in message


def test_a_manifest_of_an_unknown_action_is_refused(
    loaded: LoadedModel, probe: Probe, data: Path, tmp_path: Path
) -> None:
    flagged = auditor_of(loaded, [probe]).audit(data, tmp_path / "audit").flag(top_k=1)
    message = message_of(SettingsError, lambda: flagged.to_manifest("drop"), tmp_path)  # type: ignore[arg-type]
    assert "'drop'" in message and "filter or flip" in message


def test_a_template_that_refuses_the_messages_is_not_answered_with_a_longer_limit(
    loaded: LoadedModel, probe: Probe, tmp_path: Path
) -> None:
    strict = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}{{ messages[0].content }}"
    )
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = strict
    turns = [[{"role": role, "content": "Hello."}] for role in ("system", "assistant", "assistant")]
    turns[2][0]["content"] = "Go away."
    write_jsonl(tmp_path / "chat.jsonl", [dict(zip(("prompt", "chosen", "rejected"), turns, strict=True))])
    auditor = auditor_of(replace(loaded, tokenizer=tokenizer), layers=[2])
    message = message_of(DataError, lambda: auditor.audit(tmp_path / "chat.jsonl", tmp_path / "audit"), tmp_path)
    assert "chat template refuses them (user first)" in message
    assert "max" not in message


def test_a_rate_that_so_few_pairs_cannot_reach_is_told_before_the_work_and_kept(
    loaded: LoadedModel, probe: Probe, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages: list[tuple[str, int]] = []

    def report(stage: str, _done: int, _total: int) -> None:
        stages.append((stage, len(caplog.messages)))

    audit = auditor_of(loaded, [probe]).audit(data, tmp_path / "audit", rule=Rule(fdr=0.05), on_progress=report)
    assert not len(audit.flag(fdr=0.05))
    few, note = AuditInfo.load(tmp_path / "audit").notes
    assert "rude: 6 pairs say little of what is usual" in few
    assert "rude: no pair can be flagged at fdr 0.05 with 6 pairs to compare with; that takes 19" in note
    assert [few, note] == caplog.messages
    assert {told for stage, told in stages if stage == "vectors"} == {2}


def test_too_few_clean_pairs_to_calibrate_with_are_told(
    loaded: LoadedModel, probe: Probe, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calibrated = calibrate_probe(probe, loaded, data)
    assert calibrated.reference_scores is not None and calibrated.reference_scores.shape[1] == 6
    assert "no pair can be flagged at fdr 0.05 with 6 pairs" in caplog.text
