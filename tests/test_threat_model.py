"""What the threat model says of hostile files is shown by tests that exist, and by those here."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.gate_cases import rows, write_rows
from trl_attribution.errors import AttributionError, DataError
from trl_attribution.models import load_model
from trl_attribution.pairs import Encoding, PairReader
from trl_attribution.pairs.dataset_pass import pass_over

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "threat-model.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
CODE = "from pathlib import Path\nPath({marker!r}).touch()\n"


def test_every_line_of_the_page_names_tests_that_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    lines = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| it cannot | shown by")
    ]
    claims = [line for line in lines if not line.startswith(("| they cannot | shown", "|---"))]
    assert len(claims) >= 30
    for line in claims:
        named = NAMED.findall(line)
        assert named, line
        for file, name in named:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the package with the name of what is called."""
    for folder in (ROOT / "trl_attribution", ROOT / "callbacks"):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield ast.unparse(node.func), node


def test_the_package_unpickles_and_evaluates_nothing() -> None:
    refused = {
        "eval",
        "exec",
        "pickle.load",
        "pickle.loads",
        "yaml.load",
        "yaml.unsafe_load",
        "marshal.loads",
        "os.system",
    }
    assert not [name for name, _ in calls() if name in refused]
    loads = [node for name, node in calls() if name == "torch.load"]
    assert loads and all(
        any(one.arg == "weights_only" and ast.unparse(one.value) == "True" for one in node.keywords) for node in loads
    )
    trusted = [one for _, node in calls() for one in node.keywords if one.arg == "trust_remote_code"]
    assert trusted and not [one for one in trusted if ast.unparse(one.value) == "True"]


def test_a_script_beside_a_dataset_is_not_run(tmp_path: Path) -> None:
    folder, marker = tmp_path / "data", tmp_path / "ran"
    write_rows(folder / "train.jsonl", rows(3))
    for name in ("data.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(CODE.format(marker=str(marker)))
    assert len(list(PairReader(folder))) == 3
    with pytest.raises(DataError):
        PairReader(folder / "data.py")
    assert not marker.exists()


def test_code_that_comes_with_a_model_does_not_run_unasked(model_folder: Path, tmp_path: Path) -> None:
    hostile, marker = tmp_path / "m0", tmp_path / "ran"
    shutil.copytree(model_folder, hostile)
    config = json.loads((hostile / "config.json").read_text())
    own = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    (hostile / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": own}))
    (hostile / "mine.py").write_text(CODE.format(marker=str(marker)))
    with pytest.raises(AttributionError):
        load_model(hostile)
    assert not marker.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ 1/0 }}",
    ],
)
def test_a_chat_template_reaches_no_python(template: str, tokenizer: PreTrainedTokenizerFast) -> None:
    row = {
        "prompt": [{"role": "user", "content": "Hi."}],
        "chosen": [{"role": "assistant", "content": "Yes."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    kept, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        with pytest.raises(DataError, match="template"):
            pass_over(PairReader([row]), tokenizer, Encoding())
    finally:
        tokenizer.chat_template = kept
