"""An audit cut into independent jobs and merged is the audit that one process makes, however it is cut and killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.audit_cases import (
    Row,
    auditor_of,
    message_of,
    pair_rows,
    score_rows,
    tiny_loaded,
    tiny_probe,
    unchanged,
)
from tests.commands import Commands
from tests.manifest_cases import ids_of, write_jsonl
from tests.store_cases import contents
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.audit.info import AuditInfo
from trl_attribution.audit.shares import Share
from trl_attribution.errors import DataError, ModelError, ProbeError, SettingsError, StoreError
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding, Reading
from trl_attribution.probes import Probe
from trl_attribution.scoring import Rule
from trl_attribution.store import VectorStore

SHARD_SIZE = 3
# Several command lines in one process, which is not this one: verbs set up logging for good.
CALLS = """
import json, sys
from typer.testing import CliRunner
from trl_attribution.cli import app
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, arguments)
    print(json.dumps([done.exit_code, done.stdout]))
"""


@pytest.fixture(scope="module")
def auditor(loaded: LoadedModel, probe: Probe) -> DataAuditor:
    return auditor_of(loaded, [probe], shard_size=SHARD_SIZE)


def rows() -> list[Row]:
    """Twenty different pairs and three repeats."""
    return [*pair_rows(20), *pair_rows(3)]


@pytest.fixture(scope="module")
def alone(auditor: DataAuditor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The audit of one process."""
    folder = tmp_path_factory.mktemp("alone")
    auditor.audit(rows(), folder)
    return folder


def compute(auditor: DataAuditor, folder: Path, *shards: str, **options: Any) -> list[int]:
    return [auditor.audit_share(rows(), folder, shard, **options).computed for shard in shards]


def assert_equal_audits(folder: Path, alone: Path) -> None:
    assert contents(folder / "vectors") == contents(alone / "vectors")
    assert score_rows(folder) == score_rows(alone)
    mine, theirs = AuditInfo.load(folder), AuditInfo.load(alone)
    assert (mine.dataset, mine.model, mine.probes) == (theirs.dataset, theirs.model, theirs.probes)
    assert (mine.settings, mine.vectors) == (theirs.settings, theirs.vectors)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in alone.iterdir())


@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_jobs_come_to_the_audit_of_one_process(count: int, auditor: DataAuditor, alone: Path, tmp_path: Path) -> None:
    computed = compute(auditor, tmp_path, *(f"{number}/{count}" for number in range(count, 0, -1)))
    assert sum(computed) == 20
    assert not (tmp_path / "vectors").exists() and not (tmp_path / "scores.parquet").exists()
    audit = auditor.merge(rows(), tmp_path)
    assert_equal_audits(tmp_path, alone)
    ranked = sorted(score_rows(alone), key=lambda row: row["rank"])
    assert list(audit.flag(top_k=3).flags.pair_ids) == [row["pair_id"] for row in ranked[:3]]


def test_a_job_computes_and_tokenizes_its_own_share_alone(
    auditor: DataAuditor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl_attribution.pairs import dataset_pass

    tokenized: list[str] = []
    encode = dataset_pass.encode_pairs

    def counted(pairs: Any, *arguments: Any) -> Any:
        tokenized.extend(pair.pair_id for pair in pairs)
        return encode(pairs, *arguments)

    monkeypatch.setattr(dataset_pass, "encode_pairs", counted)
    compute(auditor, tmp_path, "2/3")
    blocks = [ids_of(pair_rows(20))[start : start + SHARD_SIZE] for start in range(0, 20, SHARD_SIZE)]
    mine = [pair for block in blocks[1::3] for pair in block]
    assert VectorStore.open(tmp_path / "parts" / "00001").pair_ids == mine
    assert set(tokenized) == set(mine)


def test_missing_jobs_are_named_and_nothing_is_written(auditor: DataAuditor, alone: Path, tmp_path: Path) -> None:
    compute(auditor, tmp_path, "1/4", "3/4")
    message = message_of(StoreError, lambda: auditor.merge(rows(), tmp_path), tmp_path)
    assert "9 of 20 pairs have not been computed" in message
    assert "Missing shards: 2/4 (6 pairs), 4/4 (3 pairs)" in message
    compute(auditor, tmp_path, "2/4", "4/4")
    auditor.merge(rows(), tmp_path)
    assert_equal_audits(tmp_path, alone)


def test_a_job_that_was_killed_goes_on_where_it_was(auditor: DataAuditor, alone: Path, tmp_path: Path) -> None:
    compute(auditor, tmp_path, "1/2", "2/2")
    shards = tmp_path / "parts" / "00000" / "shards"
    (shards / "main-000003.safetensors").rename(shards / "main-000003.safetensors.part")
    with pytest.raises(StoreError, match=r"Missing shards: 1/2 \(2 pairs\)"):
        auditor.merge(rows(), tmp_path)
    assert compute(auditor, tmp_path, "1/2", "2/2") == [2, 0]
    auditor.merge(rows(), tmp_path)
    assert_equal_audits(tmp_path, alone)


def test_jobs_that_share_no_disk_meet_in_a_bucket(auditor: DataAuditor, alone: Path, tmp_path: Path) -> None:
    bucket = MemoryFileSystem()

    def on_a_machine(name: str, shard: str) -> int:
        """What docs/how-to/scaling.md does with ``aws s3 sync``."""
        folder = tmp_path / name
        if bucket.exists("/bucket/audit"):
            bucket.get("/bucket/audit/", f"{folder}/", recursive=True)
        (computed,) = compute(auditor, folder, shard)
        bucket.put(f"{folder}/", "/bucket/audit", recursive=True)
        return computed

    assert on_a_machine("first", "1/2") + on_a_machine("second", "2/2") == 20
    assert on_a_machine("another", "1/2") == 0  # what a lost machine had stored is not computed again
    bucket.get("/bucket/audit/", f"{tmp_path / 'last'}/", recursive=True)
    auditor.merge(rows(), tmp_path / "last")
    assert_equal_audits(tmp_path / "last", alone)


def test_another_split_takes_over_what_is_there(auditor: DataAuditor, alone: Path, tmp_path: Path) -> None:
    compute(auditor, tmp_path, "2/3")
    assert compute(auditor, tmp_path, "1/2", "2/2") == [8, 6]
    auditor.merge(rows(), tmp_path)
    assert_equal_audits(tmp_path, alone)


def test_one_process_finishes_what_jobs_began(auditor: DataAuditor, alone: Path, tmp_path: Path) -> None:
    compute(auditor, tmp_path, "2/3")
    assert auditor.audit(rows(), tmp_path).info.vectors.computed == 20
    assert_equal_audits(tmp_path, alone)


def test_a_merge_killed_before_its_end_is_made_again(auditor: DataAuditor, alone: Path, tmp_path: Path) -> None:
    compute(auditor, tmp_path, "1/2", "2/2")
    shutil.copytree(tmp_path / "parts", tmp_path.with_name("kept"))
    auditor.merge(rows(), tmp_path)
    # As a kill between two shards of the merged store leaves it.
    shutil.copytree(tmp_path.with_name("kept"), tmp_path / "parts")
    for name in ("main-000004", "main-000005", "main-000006"):
        (tmp_path / "vectors" / "shards" / f"{name}.safetensors").unlink()
    (tmp_path / "audit.json").unlink()
    auditor.merge(rows(), tmp_path)
    assert_equal_audits(tmp_path, alone)


def test_merging_again_scores_again_without_the_model(
    auditor: DataAuditor, loaded: LoadedModel, model_folder: Path, tmp_path: Path
) -> None:
    by_name = DataAuditor(model_folder, layers=[3], dtype="float32", device="cpu", shard_size=SHARD_SIZE)
    compute(by_name, tmp_path, "1/1")
    (model_folder / "model.safetensors").rename(tmp_path / "elsewhere")
    try:
        assert by_name.merge(rows(), tmp_path).scores is None
        probes = [tiny_probe(loaded)]
        scored = DataAuditor(model_folder, layers=[3], dtype="float32", probes=probes).merge(rows(), tmp_path)
    finally:
        (tmp_path / "elsewhere").rename(model_folder / "model.safetensors")
    assert scored.scores is not None
    expected = auditor_of(loaded, probes).audit(rows(), tmp_path / "b").info.model
    assert scored.info.model == expected.model_copy(update={"name": str(model_folder)})


def test_a_store_shared_with_another_audit_is_used_and_added_to(
    auditor: DataAuditor, alone: Path, tmp_path: Path
) -> None:
    auditor.audit(pair_rows(7), tmp_path / "first")
    vectors = tmp_path / "first" / "vectors"
    before = contents(vectors)
    assert sum(compute(auditor, tmp_path / "second", "1/2", "2/2", vectors=vectors)) == 13
    assert contents(vectors) == before
    audit = auditor.merge(rows(), tmp_path / "second", vectors=vectors)
    assert (audit.info.vectors.computed, audit.info.vectors.reused) == (13, 7)
    assert audit.store.pair_ids == ids_of(pair_rows(20))


def test_rows_that_cannot_be_encoded_are_left_out_by_all(loaded: LoadedModel, probe: Probe, tmp_path: Path) -> None:
    data = pair_rows(12)
    data[4] = {**data[4], "prompt": [{"role": "user", "content": "bread " * 400}]}
    settings: dict[str, Any] = {"reading": Reading(on_bad_row="skip"), "encoding": Encoding(max_length=300)}
    auditor = auditor_of(loaded, [probe], shard_size=SHARD_SIZE, **settings)
    whole = auditor.audit(data, tmp_path / "alone")
    for shard in ("1/2", "2/2"):
        auditor.audit_share(data, tmp_path / "jobs", shard)
    merged = auditor.merge(data, tmp_path / "jobs")
    assert merged.store.pair_ids == whole.store.pair_ids
    assert merged.info.dataset == whole.info.dataset
    assert merged.info.dataset.skipped == {"prompt_too_long": 1}
    for mine, theirs in zip(score_rows(tmp_path / "jobs"), score_rows(tmp_path / "alone"), strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=2e-6)


def test_a_bad_row_stops_the_job_that_meets_it_and_leaves_no_trace(loaded: LoadedModel, tmp_path: Path) -> None:
    data = pair_rows(12)
    data[4] = {**data[4], "prompt": [{"role": "user", "content": "bread " * 400}]}
    auditor = auditor_of(loaded, layers=[3], shard_size=SHARD_SIZE, encoding=Encoding(max_length=300))
    message = message_of(DataError, lambda: auditor.audit_share(data, tmp_path / "audit", "2/4"), tmp_path)
    assert "row 4" in message and "max_length=300" in message
    auditor.audit_share(data, tmp_path / "audit", "1/4")


def test_jobs_with_other_settings_or_data_are_refused(
    auditor: DataAuditor, loaded: LoadedModel, probe: Probe, tmp_path: Path
) -> None:
    compute(auditor, tmp_path, "1/2")
    other = auditor_of(loaded, [probe], shard_size=SHARD_SIZE, encoding=Encoding(max_length=99))
    message = message_of(SettingsError, lambda: compute(other, tmp_path, "2/2"), tmp_path)
    assert "max_length: stored 1024, asked for 99" in message
    message = message_of(SettingsError, lambda: other.merge(rows(), tmp_path), tmp_path)
    assert "max_length: stored 1024, asked for 99" in message
    message = message_of(SettingsError, lambda: auditor.audit_share(pair_rows(9), tmp_path, "2/2"), tmp_path)
    assert "dataset_fingerprint" in message
    compute(auditor, tmp_path, "2/2")
    with unchanged(tmp_path), pytest.raises(SettingsError, match="dataset_fingerprint"):
        auditor.merge(pair_rows(20), tmp_path)


def test_another_model_is_refused_at_the_merge(auditor: DataAuditor, probe: Probe, tmp_path: Path) -> None:
    compute(auditor, tmp_path, "1/1")
    other = auditor_of(tiny_loaded("qwen2"), layers=[3], shard_size=SHARD_SIZE)
    assert "weights" in message_of(ModelError, lambda: other.merge(rows(), tmp_path), tmp_path)
    foreign = tiny_probe(tiny_loaded("qwen2"))
    wrong = auditor_of(tiny_loaded("qwen2"), [foreign], shard_size=SHARD_SIZE)
    assert "another model" in message_of(ProbeError, lambda: wrong.merge(rows(), tmp_path), tmp_path)


def test_a_rule_that_cannot_be_followed_is_refused_before_the_merge(auditor: DataAuditor, tmp_path: Path) -> None:
    compute(auditor, tmp_path, "1/1")
    message = message_of(SettingsError, lambda: auditor.merge(rows(), tmp_path, rule=Rule(top_k=21)), tmp_path)
    assert "top_k 21 asks for more pairs than there are (20)" in message


def test_there_has_to_be_something_to_merge(auditor: DataAuditor, tmp_path: Path) -> None:
    message = message_of(StoreError, lambda: auditor.merge(rows(), tmp_path / "audit"), tmp_path)
    assert "nothing to merge" in message and "--shard 1/n" in message


def test_a_job_that_fails_before_a_vector_leaves_the_folder_free(loaded: LoadedModel, tmp_path: Path) -> None:
    broken = tiny_loaded()
    broken.model.model.layers[1].mlp.down_proj.weight.data.fill_(float("nan"))
    message = message_of(
        ModelError, lambda: auditor_of(broken, layers=[3]).audit_share(rows(), tmp_path / "audit", "1/2"), tmp_path
    )
    assert "not finite" in message
    report = auditor_of(loaded, layers=[3]).audit_share(rows(), tmp_path / "audit", "1/2")
    assert report.computed > 0


def test_a_second_start_of_a_job_that_is_running_takes_nothing_away_from_it(
    auditor: DataAuditor, alone: Path, tmp_path: Path
) -> None:
    calls: list[str] = []

    def on_progress(stage: str, _done: int, _total: int) -> None:
        calls.append(stage)
        if calls.count("vectors") == 2:  # the first shard is under way
            assert not list(tmp_path.glob("parts/*/shards/*"))
            with pytest.raises(StoreError, match="is being written by another process"):
                compute(auditor, tmp_path, "1/2")

    assert compute(auditor, tmp_path, "1/2", on_progress=on_progress) == [11]
    assert calls.count("vectors") > 2
    assert compute(auditor, tmp_path, "2/2") == [9]
    auditor.merge(rows(), tmp_path)
    assert_equal_audits(tmp_path, alone)


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "a/b", "3/0", "-1/8", "1/8/2"])
def test_a_shard_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="shard: "):
        Share.parse(text)


def test_shares_cover_all_blocks_once_and_ranks_divide_their_jobs_share() -> None:
    from trl_attribution.utils.distributed import Ranks

    jobs = [Share.parse(f"{number}/3") for number in (1, 2, 3)]
    ranks = [job.of_rank(Ranks(rank, 4)) for job in jobs for rank in range(4)]
    assert [sum(share.owns(block) for share in ranks) for block in range(30)] == [1] * 30
    assert len({share.index for share in ranks}) == 12
    for job in jobs:
        mine = [job.of_rank(Ranks(rank, 4)) for rank in range(4)]
        assert all(job.owns(block) == any(share.owns(block) for share in mine) for block in range(30))


def test_jobs_on_the_command_line(model_folder: Path, tmp_path: Path, commands: Commands) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", pair_rows(8))
    common = ["audit", str(model_folder), str(data), "--layer", "3", "-o", str(tmp_path / "audit")]
    asked = (["--merge", "--shard", "1/2"], ["--shard", "1/2"], ["--merge"], ["--shard", "2/2"], ["--merge"])
    calls = json.dumps([[*common, "--shard-size", "2", "--json", *more] for more in asked])
    done = commands.run(tmp_path, "python", "-c", CALLS, calls)
    assert done.returncode == 0, done.stdout + done.stderr
    codes, printed = zip(*(json.loads(line) for line in done.stdout.splitlines()), strict=True)
    assert codes == (2, 0, 2, 0, 0)
    both, first, early, _, merged = (json.loads(document) for document in printed)
    assert "give one of them" in both["error"]
    assert (first["shard"]["share"], first["shard"]["computed"], first["shard"]["dataset_pairs"]) == ("1/2", 4, 8)
    assert "Missing shards: 2/2 (4 pairs)" in early["error"]
    assert merged["info"]["vectors"]["computed"] == 8
    assert VectorStore.open(tmp_path / "audit" / "vectors").pair_ids == ids_of(pair_rows(8))
