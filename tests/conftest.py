"""Shared fixtures: a tiny tokenizer with a chat template and tiny randomly initialised models of many kinds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import build_tiny_model, build_tiny_tokenizer

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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
def hh_rlhf() -> Path:
    """The HH-RLHF harmless test split beside the checkout; tests that need it are skipped where it is absent."""
    path = SHARED_DATA / "hh-rlhf-harmless-base-test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no preference dataset at {path}: this test needs HH-RLHF harmless-base (2,312 pairs)")
    return path
