"""Shared fixtures: a tiny tokenizer with a chat template and tiny randomly initialised models of many kinds."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# With several threads sums are rounded otherwise, and tests compare vectors bit for bit with those of ranks, whose
# launchers give each one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.commands import Commands, serving
from tests.fake_hub import FakeHub, fake_hub

if TYPE_CHECKING:  # the process that hands out the tests loads this file too, while all others wait for it
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = pytest.StashKey[Commands]()
SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start what takes long first, so that no process is left with it when the others have done the rest."""

    def longest_first(item: pytest.Item) -> tuple[bool, float]:
        allowed = item.get_closest_marker("timeout")
        return item.get_closest_marker("slow") is None, -allowed.args[0] if allowed else 0

    items.sort(key=longest_first)


def pytest_collection_finish() -> None:
    """Leave out of garbage collections what has been imported: trainers collect often, half a second each time."""
    from tests.command_server import spare

    spare()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def deterministic() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 512 tokens with a ChatML template, trained here on a few sentences."""
    from tests.tiny import build_tiny_tokenizer

    return build_tiny_tokenizer()


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], PreTrainedModel]:
    """``make_model("llama")`` is a fresh tiny model of that architecture with seeded random weights."""
    from tests.tiny import build_tiny_model

    return build_tiny_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny Llama and the tiny tokenizer saved as a local model folder (safetensors)."""
    from tests.tiny import build_tiny_model

    folder = tmp_path_factory.mktemp("tiny-llama")
    build_tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give each process of pytest-xdist the one server of commands, which loads while they collect."""
    stash = node.config.stash
    if PROGRAMS not in stash:
        server = ExitStack()
        stash[PROGRAMS] = server.enter_context(serving())
        node.config.add_cleanup(server.close)
    node.workerinput["commands"] = [str(stash[PROGRAMS].folder), str(stash[PROGRAMS].cache)]


@pytest.fixture(scope="session")
def commands(request: pytest.FixtureRequest) -> Iterator[Commands]:
    """``trl-attribution`` and ``python`` for tests that run them often."""
    with ExitStack() as server:
        given = getattr(request.config, "workerinput", {}).get("commands")
        yield Commands(*map(Path, given)) if given else server.enter_context(serving())


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and an sdist built from a copy of what the checkout holds, as a zip archive keeps it: without links."""
    source = tmp_path_factory.mktemp("source")
    output = tmp_path_factory.mktemp("dist")
    listed = [
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "callbacks",
        "trl_attribution",
        "tests",
    ]
    copy = ["cp", "-a", *(str(ROOT / name) for name in listed), str(source)]
    subprocess.run(copy, check=True)
    link = source / "trl_attribution" / "callbacks"
    leads_to = str(link.readlink())
    link.unlink()
    link.write_text(leads_to)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(source)]
    result = subprocess.run(build, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return output


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on this machine that this process is logged in to."""
    with fake_hub() as served:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.endpoint)
        template = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", served.token)
        yield served


@pytest.fixture(scope="session")
def hh_rlhf() -> Path:
    """The HH-RLHF harmless test split beside the checkout; tests that need it are skipped where it is absent."""
    path = SHARED_DATA / "hh-rlhf-harmless-base-test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no preference dataset at {path}: this test needs HH-RLHF harmless-base (2,312 pairs)")
    return path
