"""Fixtures for discovery."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.tiny import build_moved_model


@pytest.fixture(scope="session")
def changed_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """An M1: the tiny Llama with all of its weights moved."""
    folder = tmp_path_factory.mktemp("changed")
    build_moved_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
