"""Shared fixtures: a tiny tokenizer with a chat template and tiny randomly initialised models of many kinds."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# With several threads sums are rounded otherwise, and tests compare vectors bit for bit with those of ranks, whose
# launchers give each one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.commands import Commands, serving
from tests.tiny import build_tiny_model, build_tiny_tokenizer

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start what takes long first, so that no process is left with it when the others have done the rest."""

    def longest_first(item: pytest.Item) -> tuple[bool, float]:
        allowed = item.get_closest_marker("timeout")
        return item.get_closest_marker("slow") is None, -allowed.args[0] if allowed else 0

    items.sort(key=longest_first)


def pytest_collection_finish() -> None:
    """Leave out of garbage collections what has been imported: trainers collect often, half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def deterministic() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 512 tokens with a ChatML template, trained here on a few sentences."""
    return build_tiny_tokenizer()


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], PreTrainedModel]:
    """``make_model("llama")`` is a fresh tiny model of that architecture with seeded random weights."""
    return build_tiny_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny Llama and the tiny tokenizer saved as a local model folder (safetensors)."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    build_tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """``trl-attribution`` and ``python`` for tests that run them often."""
    with serving() as programs:
        yield programs


@pytest.fixture(scope="session")
def hh_rlhf() -> Path:
    """The HH-RLHF harmless test split beside the checkout; tests that need it are skipped where it is absent."""
    path = SHARED_DATA / "hh-rlhf-harmless-base-test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no preference dataset at {path}: this test needs HH-RLHF harmless-base (2,312 pairs)")
    return path
