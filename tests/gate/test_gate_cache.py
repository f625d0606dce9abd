"""The cache between runs: its own store for each way of computing, shared through any place that fsspec reaches."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from tests.gate_cases import HIDDEN, LAYER, MODEL, Place, axis_probe, rows, store_scores
from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.gate.policy.file import load_policy
from trl_attribution.gate.policy.probes import load_policy_probes
from trl_attribution.gate.vectors.cache import VectorCache
from trl_attribution.gate.vectors.remote import RemoteCache
from trl_attribution.pairs import pair_id
from trl_attribution.probes import ProbeRegistry
from trl_attribution.store import StoreSettings, VectorStore

SETTINGS = StoreSettings(MODEL.digest, (LAYER,), HIDDEN, "float32", "float32")
ASKED = replace(SETTINGS, compute_dtype="auto")
IDS = [f"{number:032x}" for number in range(1, 9)]


def fill(cache: VectorCache, ids: list[str], settings: StoreSettings = SETTINGS, value: float = 1.0) -> list[Path]:
    cache.store(settings)
    vectors = torch.full((len(ids), 1, HIDDEN), value)
    return cache.add(settings, ids, vectors, vectors)


@pytest.fixture
def bucket() -> str:
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/gate"


def names(folder: Path) -> set[str]:
    beside = {"writer.lock", ".gitignore"}
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name not in beside}


def test_each_way_of_computing_has_a_store_of_its_own(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    other = replace(SETTINGS, max_length=512)
    fill(cache, IDS[:3])
    fill(cache, IDS, other)
    found = cache.best(ASKED, IDS)
    assert found is not None and found.missing(IDS) == IDS[3:]
    assert cache.best(replace(SETTINGS, layers=(1,)), IDS) is None


def test_any_precision_will_do_unless_one_is_asked_for(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    half = replace(SETTINGS, compute_dtype="bfloat16")
    fill(cache, IDS[:2], half)
    fill(cache, IDS[:5])
    best = cache.best(ASKED, IDS)
    assert best is not None and best.settings == SETTINGS  # it holds more of them
    asked = cache.best(half, IDS)
    assert asked is not None and asked.settings == half


def test_jobs_share_what_they_compute(tmp_path: Path, bucket: str) -> None:
    first = VectorCache(tmp_path / "first", RemoteCache(bucket))
    first.share(SETTINGS, fill(first, IDS[:4]))
    second = VectorCache(tmp_path / "second", RemoteCache(bucket))
    found = second.best(ASKED, IDS)
    assert found is not None and found.missing(IDS) == IDS[4:]
    second.share(SETTINGS, fill(second, IDS[4:]))
    again = VectorCache(tmp_path / "first", RemoteCache(bucket)).best(ASKED, IDS)
    assert again is not None and again.missing(IDS) == []
    again.verify()
    assert names(tmp_path / "first") == names(tmp_path / "second")


def test_a_local_folder_can_be_the_shared_place(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared"
    first = VectorCache(tmp_path / "first", RemoteCache(url))
    first.share(SETTINGS, fill(first, IDS))
    found = VectorCache(tmp_path / "second", RemoteCache(url)).best(ASKED, IDS)
    assert found is not None and not found.missing(IDS)
    assert names(tmp_path / "shared") == names(tmp_path / "first") == names(tmp_path / "second")


def test_jobs_that_compute_the_same_pairs_write_one_name_and_the_first_stays(tmp_path: Path, bucket: str) -> None:
    caches = [VectorCache(tmp_path / name, RemoteCache(bucket)) for name in ("a", "b")]
    shards = [fill(cache, IDS, value=value) for cache, value in zip(caches, (1.0, 2.0), strict=True)]
    for cache, shard in zip(caches, shards, strict=True):
        cache.share(SETTINGS, shard)
    found = VectorCache(tmp_path / "c", RemoteCache(bucket)).best(ASKED, IDS)
    assert found is not None and len(found) == len(IDS)
    assert found.select(IDS).layer(LAYER).unique().tolist() == [1.0]


def test_jobs_whose_new_pairs_overlap_do_not_break_the_cache(tmp_path: Path, bucket: str) -> None:
    caches = [VectorCache(tmp_path / name, RemoteCache(bucket)) for name in ("a", "b")]
    shards = [fill(cache, part) for cache, part in zip(caches, (IDS[:5], IDS[3:]), strict=True)]
    for cache, shard in zip(caches, shards, strict=True):
        cache.share(SETTINGS, shard)
    found = VectorCache(tmp_path / "c", RemoteCache(bucket)).best(ASKED, IDS)
    assert found is not None and found.missing(IDS) == []
    assert len(found) == 5 + 5  # two pairs twice, each read from one place
    assert found.select(IDS).pair_ids == IDS
    with pytest.raises(StoreError, match="holds 2 pairs twice"):
        VectorStore.open(found.path)


def test_pairs_that_another_job_brought_in_the_meantime_are_not_stored_again(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    fill(cache, IDS[:5])
    (shard,) = fill(cache, IDS[3:])
    assert len(VectorStore.open(shard.parents[1])) == len(IDS)  # no pair twice
    assert fill(cache, IDS) == []


def test_a_broken_shard_in_the_shared_place_is_left_out_and_said_so(
    tmp_path: Path, bucket: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = VectorCache(tmp_path / "a", RemoteCache(bucket))
    cache.share(SETTINGS, [*fill(cache, IDS[:4]), *fill(cache, IDS[4:])])
    files = fsspec.filesystem("memory")
    broken = min(path for path in files.find("/bucket") if path.endswith(".safetensors"))
    content = bytearray(files.cat(broken))
    content[-1] ^= 1
    files.pipe(broken, bytes(content))
    monkeypatch.setattr(logging.getLogger("trl_attribution"), "propagate", True)
    found = VectorCache(tmp_path / "b", RemoteCache(bucket)).best(ASKED, IDS)
    assert found is not None and len(found.missing(IDS)) == 4
    assert "left out the broken shard" in caplog.text
    found.verify()


def test_a_job_that_pulls_is_not_disturbed_by_one_that_writes_or_pulls(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = VectorCache(tmp_path / "first", RemoteCache(bucket))
    first.share(SETTINGS, fill(first, IDS[:4]))
    local, download = VectorCache(tmp_path / "second"), MemoryFileSystem.get_file
    started: list[str] = []

    def slow(files: MemoryFileSystem, source: str, target: str) -> None:
        download(files, source, target)
        started.append(source)
        if len(started) == 1:  # the settings, which another job fetches at the same time
            RemoteCache(bucket).pull_settings(local.folder)
        elif len(started) == 3:  # and so the shard
            assert RemoteCache(bucket).pull(tmp_path / "second" / SETTINGS.digest[:16]) == 1
            fill(local, IDS[4:])

    monkeypatch.setattr(MemoryFileSystem, "get_file", slow)
    found = VectorCache(tmp_path / "second", RemoteCache(bucket)).best(ASKED, IDS)
    assert found is not None and found.missing(IDS) == []
    assert started == [started[0]] * 2 + [started[2]] * 2
    assert len(names(tmp_path / "second")) == 3  # store.json and two shards


def test_what_a_job_left_that_was_killed_while_it_fetched_is_removed_a_day_later(tmp_path: Path, bucket: str) -> None:
    first = VectorCache(tmp_path / "first", RemoteCache(bucket))
    first.share(SETTINGS, fill(first, IDS))
    old, fetching = (tmp_path / "second" / SETTINGS.digest[:16] / f".fetched-{name}" for name in ("old", "fetching"))
    for place in (old, fetching):
        place.mkdir(parents=True)
        (place / "file.part").touch()
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    assert VectorCache(tmp_path / "second", RemoteCache(bucket)).best(ASKED, IDS) is not None
    assert fetching.exists() and not old.exists()


def test_a_job_waits_for_another_that_writes_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = VectorCache(tmp_path)
    place = cache.store(SETTINGS).path
    writer = VectorStore.open(place).writer("other")

    def other_ends(_: float) -> None:
        vectors = torch.ones(4, 1, HIDDEN)
        writer.add(IDS[:4], vectors, vectors)
        writer.close()

    monkeypatch.setattr("trl_attribution.gate.vectors.cache.time.sleep", other_ends)
    fill(cache, IDS)
    assert sorted(VectorStore.open(place).pair_ids) == IDS  # no pair twice


def test_a_job_that_another_holds_up_for_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl_attribution.gate.vectors.cache._PATIENCE", 0.0)
    cache = VectorCache(tmp_path)
    store = cache.store(SETTINGS)
    with store.writer(), pytest.raises(StoreError, match="being written by another process"):
        fill(cache, IDS)


def test_git_passes_over_the_cache(tmp_path: Path, bucket: str) -> None:
    first = VectorCache(tmp_path / "first", RemoteCache(bucket))
    first.share(SETTINGS, fill(first, IDS))
    VectorCache(tmp_path / "second", RemoteCache(bucket)).best(ASKED, IDS)
    assert [(tmp_path / name / ".gitignore").read_text() for name in ("first", "second")] == ["*\n", "*\n"]


def test_only_the_shards_that_are_used_are_checked(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    _, broken = [*fill(cache, IDS[:4]), *fill(cache, IDS[4:])]
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    store = VectorStore.open(broken.parents[1])
    store.verify(IDS[:4])
    for asked in (None, IDS[3:5]):
        with pytest.raises(StoreError, match=broken.name):
            store.verify(asked)


def test_foreign_names_in_the_shared_place_are_not_taken(tmp_path: Path, bucket: str) -> None:
    cache = VectorCache(tmp_path / "a", RemoteCache(bucket))
    cache.share(SETTINGS, fill(cache, IDS))
    files = fsspec.filesystem("memory")
    key = SETTINGS.digest[:16]
    for name in (f"{key}/shards/notes.txt", f"{key}/shards/x.safetensors", "elsewhere/store.json", "README"):
        files.pipe(f"/bucket/gate/{name}", b"hello")
    other = VectorCache(tmp_path / "b", RemoteCache(bucket))
    assert other.best(ASKED, IDS) is not None
    assert names(tmp_path / "b") == names(tmp_path / "a")


def test_a_place_that_only_reads_is_a_warning_after_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cache = VectorCache(tmp_path / "a", RemoteCache(f"file://{blocked}/below"))
    monkeypatch.setattr(logging.getLogger("trl_attribution"), "propagate", True)
    cache.share(SETTINGS, fill(cache, IDS))
    assert "cannot be written" in caplog.text and "new vectors stay in" in caplog.text


def test_a_job_that_may_only_read_writes_nothing(tmp_path: Path, bucket: str) -> None:
    cache = VectorCache(tmp_path / "a", RemoteCache(bucket), push=False)
    cache.share(SETTINGS, fill(cache, IDS))
    assert fsspec.filesystem("memory").find("/bucket") == []


def test_an_unknown_protocol_is_refused_without_showing_credentials() -> None:
    with pytest.raises(SettingsError, match="cache.remote") as caught:
        RemoteCache("nosuch://key:secret@bucket/gate")
    assert "secret" not in str(caught.value)


def test_credentials_in_the_words_of_a_protocol_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError("https://key:sec@ret@host/gate/store.json")

    place = RemoteCache("memory://key:sec@ret@host/gate")
    monkeypatch.setattr(MemoryFileSystem, "exists", refuse)
    with pytest.raises(StoreError, match=r"//\*\*\*@host/gate cannot be read \(https://\*\*\*@host") as caught:
        place.pull_settings(Path("anywhere"))
    assert "ret" not in str(caught.value)


def test_the_gate_reads_the_cache_and_the_store_made_elsewhere_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    place.probe()
    place.dataset(rows(4), [0.1, 0.6, 0.2, 0.3])
    more = [*rows(4), *rows(3, 10)]
    place.data.write_text("")
    new = dict(zip((pair_id(each) for each in rows(3, 10)), (0.7, 0.0, 0.5), strict=True))
    store_scores(tmp_path / ".trl-attribution-cache" / "x", new, compute_dtype="bfloat16")
    found = VectorStore.open(tmp_path / ".trl-attribution-cache" / "x")
    settings = replace(found.settings, vector_dtype="float16")
    cache = VectorCache(tmp_path / ".trl-attribution-cache")
    cache.store(settings)
    view = found.view()
    cache.add(settings, found.pair_ids, view.layer(LAYER).unsqueeze(1), view.context(LAYER).unsqueeze(1))
    place.data.write_text("".join(f"{line}\n" for line in map(json.dumps, more)))
    verdict = place.judge("{probes: {insults: {threshold: 0.45, max_flagged_count: 0}}}")
    assert (verdict.computed, verdict.cached) == (0, 7)
    found_lines = [violation.place.line for violation in verdict.rules[0].violations if violation.place]
    assert found_lines == [5, 2, 7]


def test_probes_of_a_hub_repo_come_from_its_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub = tmp_path / "hub"
    repo = hub / "models--team--probes"
    snapshot = repo / "snapshots" / ("a" * 40)
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    probe = axis_probe()
    ProbeRegistry(snapshot / "m0").save(probe)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    policy = tmp_path / "gate.yaml"

    def loaded(name: str) -> list[str]:
        rules = "rules: {probes: {insults: {max_score: 1}}}"
        policy.write_text(f'version: 1\nprobes: {name}\npins: {{insults: "{probe.fingerprint}"}}\n{rules}\n')
        return [each.name for each in load_policy_probes(load_policy(policy)).ruled]

    assert loaded("hf://team/probes/m0") == ["insults"]
    assert loaded("hf://team/probes@main/m0") == ["insults"]
    with pytest.raises(SettingsError, match="--download"):
        loaded("hf://team/others")
    with pytest.raises(SettingsError, match="not of the form"):
        loaded("hf://team/probes/../../etc")
