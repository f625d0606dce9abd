"""A failed audit frees its folder, and leaves alone what a simultaneous one made there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.store_cases import HIDDEN, ids, settings
from trl_attribution.audit.claim import FolderClaim
from trl_attribution.audit.info import AuditInfo
from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.pairs import Survey
from trl_attribution.store import VectorStore


def claim_of(
    folder: Path, fingerprint: str = "f" * 64, vectors: Path | None = None, part: int | None = None
) -> FolderClaim:
    survey = Survey(
        pairs=3,
        rows=3,
        unique=3,
        duplicates=[],
        contradictions=0,
        sources={"all": 3},
        skipped=[],
        fingerprint=fingerprint,
    )
    return FolderClaim(folder, vectors or folder / "vectors", settings(), survey, "data.jsonl", part=part)


def fail(claim: FolderClaim, before: Callable[[], object] = lambda: None) -> None:
    def run() -> None:
        with claim.released_on_failure():
            before()
            raise RuntimeError("the model broke")

    with pytest.raises(RuntimeError, match="broke"):
        run()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.name != "writer.lock"}


def test_an_audit_json_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text("[" * 200_000)
    with pytest.raises(StoreError, match=r"cannot read .*audit\.json"):
        AuditInfo.load(tmp_path)


def test_a_claim_that_fails_before_a_vector_leaves_no_trace(tmp_path: Path) -> None:
    claim = claim_of(tmp_path / "audit")
    fail(claim, claim.take)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_claim_leaves_what_a_simultaneous_one_bound(tmp_path: Path) -> None:
    failing, other = claim_of(tmp_path / "audit"), claim_of(tmp_path / "audit")
    other.take()
    fail(failing, failing.take)
    assert names(tmp_path) == {"store.json", "settings.json"}


def test_a_failed_claim_removes_nothing_while_another_process_writes(tmp_path: Path) -> None:
    claim = claim_of(tmp_path / "audit")
    store = claim.take()
    with store.writer() as writer:
        fail(claim)
        assert names(tmp_path) == {"store.json", "settings.json"}
        vectors = torch.ones(1, 3, HIDDEN)
        writer.add(ids(1), vectors, vectors)
    fail(claim)
    assert names(tmp_path) == {"store.json", "settings.json", "main-000000.safetensors"}


def test_a_store_that_a_failed_claim_removed_takes_no_vectors(tmp_path: Path) -> None:
    claim = claim_of(tmp_path / "audit")
    store = claim.take()
    fail(claim)
    (tmp_path / "audit" / "vectors").mkdir(parents=True)
    with pytest.raises(StoreError, match="changed by another process"):
        store.writer()


def test_a_folder_that_a_simultaneous_audit_bound_to_another_dataset_is_refused(tmp_path: Path) -> None:
    late, first = claim_of(tmp_path / "audit", "a" * 64), claim_of(tmp_path / "audit")
    first.take()
    with pytest.raises(SettingsError, match=r"made with something else:\n.*dataset_fingerprint: stored 'fff"):
        late.take()


def test_the_last_part_to_fail_unbinds_the_folder(tmp_path: Path) -> None:
    first, second = (claim_of(tmp_path / "audit", part=number) for number in range(2))
    first.take()
    second.take()
    fail(first)
    assert names(tmp_path) == {"settings.json", "claim.lock", "store.json"}
    fail(second)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_part_frees_its_folder_beside_vectors_that_lie_elsewhere(tmp_path: Path) -> None:
    store = VectorStore.create(tmp_path / "vectors", settings())
    with store.writer() as writer:
        writer.add(ids(1), torch.ones(1, 3, HIDDEN), torch.ones(1, 3, HIDDEN))
    claim = claim_of(tmp_path / "audit", vectors=tmp_path / "vectors", part=0)
    fail(claim, claim.take)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors"]
    assert len(VectorStore.open(tmp_path / "vectors")) == 1
