"""A cleaned dataset goes to a hub only when asked, private, in one commit, and nothing that is there gets lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from tests.fake_hub import FakeHub, Repository, fake_hub
from tests.manifest_cases import ids_of, manifest_for, simple_rows, write_jsonl
from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.manifest.card import Provenance
from trl_attribution.manifest.hub import HubTarget, Pushed
from trl_attribution.manifest.tally import ApplyReport
from trl_attribution.pairs import Reading

ROWS = simple_rows(6)


def cleaned(source: Path, output: Path, split: str | None = None) -> tuple[Path, Provenance, ApplyReport]:
    reading = Reading(split=split)
    manifest = manifest_for(source, ids_of(ROWS)[:1], "filter", reading)
    report = manifest.apply_file(source, output, reading=reading, card=True)
    return output, Provenance(manifest, str(source)), report


def push(target: HubTarget, made: tuple[Path, Provenance, ApplyReport]) -> Pushed:
    return target.push(*made)


def test_a_file_goes_to_a_new_private_repository_with_its_card(hub: FakeHub, tmp_path: Path) -> None:
    made = cleaned(write_jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "cleaned.jsonl")
    pushed = push(HubTarget.check("team/cleaned"), made)
    repository = hub.repositories["team/cleaned"]
    assert repository.private
    assert set(repository.files) == {"README.md", "cleaned.jsonl"} == set(pushed.files)
    assert repository.files["cleaned.jsonl"] == made[0].read_bytes()
    assert made[1].manifest.digest in repository.files["README.md"].decode()
    assert [commit["description"] for commit in repository.commits] == [f"manifest sha256 {made[1].manifest.digest}"]
    assert pushed.url.endswith("/datasets/team/cleaned")


def test_splits_go_up_as_parquet_and_a_folder_as_its_files(hub: FakeHub, tmp_path: Path) -> None:
    splits = {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:2])}
    DatasetDict(splits).save_to_disk(str(tmp_path / "splits"))
    push(HubTarget.check("team/splits"), cleaned(tmp_path / "splits", tmp_path / "out", "train"))
    files = hub.repositories["team/splits"].files
    assert set(files) == {"README.md", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"}
    assert pq.read_table(BytesIO(files["data/train-00000-of-00001.parquet"])).to_pylist() == ROWS[1:]

    (tmp_path / "data" / "deep").mkdir(parents=True)
    write_jsonl(tmp_path / "data" / "deep" / "a.jsonl", ROWS)
    push(HubTarget.check("team/folder", private=False), cleaned(tmp_path / "data", tmp_path / "out2"))
    assert set(hub.repositories["team/folder"].files) == {"README.md", "deep/a.jsonl"}
    assert not hub.repositories["team/folder"].private

    (tmp_path / "data" / "deep" / "a.jsonl").unlink()
    write_jsonl(tmp_path / "data" / "deep" / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "data" / "deep" / "test.jsonl", ROWS[:2])
    push(HubTarget.check("team/files"), cleaned(tmp_path / "data", tmp_path / "out3", "train"))
    assert set(hub.repositories["team/files"].files) == {"README.md", "deep/test.jsonl", "deep/train.jsonl"}


def test_the_card_on_the_hub_stays_and_the_provenance_joins_it_once(hub: FakeHub, tmp_path: Path) -> None:
    mine = b"---\nlicense: mit\n---\n\n# Ours\n"
    hub.repositories["team/cleaned"] = Repository(True, {"README.md": mine, ".gitattributes": b""})
    made = cleaned(write_jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "cleaned.jsonl")
    push(HubTarget.check("team/cleaned"), made)
    files = hub.repositories["team/cleaned"].files
    once = files["README.md"]
    assert once.startswith(mine)
    push(HubTarget.check("team/cleaned"), made)
    assert files["README.md"] == once
    assert hub.repositories["team/cleaned"].commits[-1]["parentCommit"].startswith("c0ffee")


def test_what_would_mix_with_other_files_or_become_public_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["team/open"] = Repository(False)
    with pytest.raises(SettingsError, match="team/open exists and is public. Choose another name, or .*--public"):
        HubTarget.check("team/open")
    hub.repositories["team/full"] = Repository(True, {"data/old.parquet": b"old"})
    made = cleaned(write_jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "cleaned.jsonl")
    with pytest.raises(SettingsError, match=r"team/full holds other files \(data/old.parquet\)"):
        push(HubTarget.check("team/full"), made)
    assert hub.repositories["team/full"].files == {"data/old.parquet": b"old"}
    for name in ("cleaned", "a/b/c", "../x/y", "a b/c"):
        with pytest.raises(SettingsError, match="is no dataset id; write it as owner/name"):
            HubTarget.check(name)


def test_nothing_is_uploaded_to_a_repository_that_turns_out_public(hub: FakeHub, tmp_path: Path) -> None:
    hub.forced_visibility = "public"
    made = cleaned(write_jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "cleaned.jsonl")
    with pytest.raises(AttributionError, match="was made, but is public although a private one was asked for"):
        push(HubTarget.check("team/cleaned"), made)
    assert hub.repositories["team/cleaned"].files == {}


def test_a_hub_that_refuses_or_is_not_there_is_one_message(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cleaned(write_jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "cleaned.jsonl")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(AttributionError, match="team/cleaned cannot be written: .*401.*Log in with `hf auth login`"):
        push(HubTarget.check("team/cleaned"), made)
    assert hub.repositories == {}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AttributionError, match="team/cleaned cannot be written: .*[Oo]ffline"):
        HubTarget.check("team/cleaned")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AttributionError, match="team/cleaned cannot be written: .*refused"):
        HubTarget.check("team/cleaned")


def test_the_command_pushes_without_leaving_a_copy(tmp_path: Path) -> None:
    manifest_for(ROWS, ids_of(ROWS)[:2], "flip").save(tmp_path / "flip.jsonl")
    write_jsonl(tmp_path / "data.jsonl", ROWS)
    words = "apply flip.jsonl data.jsonl --push-to-hub team/cleaned --json"
    with fake_hub() as served:
        settings = {"HF_ENDPOINT": served.endpoint, "HF_TOKEN": served.token, "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "trl_attribution.cli", *words.split()],
            cwd=tmp_path,
            env={**os.environ, **settings, "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        files = served.repositories["team/cleaned"].files
    said = json.loads(done.stdout)
    assert (said["output"], said["pushed"]["private"], said["report"]["flipped"]) == (None, True, 2)
    assert set(files) == {"README.md", "data/train-00000-of-00001.parquet"}
    assert "made from | data.jsonl" in files["README.md"].decode()
    assert {path.name for path in tmp_path.iterdir()} <= {"flip.jsonl", "data.jsonl", "home"}
