"""Fixtures for discovery."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.tiny import build_tiny_model


@pytest.fixture(scope="session")
def changed_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """An M1: the tiny Llama with all of its weights moved."""
    folder = tmp_path_factory.mktemp("changed")
    model = build_tiny_model("llama")
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
