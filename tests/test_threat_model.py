"""What the threat model says of hostile files is shown by tests that exist, and by those here."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from tests.gate_cases import rows, write_rows
from trl_attribution.errors import AttributionError, DataError
from trl_attribution.models import load_model
from trl_attribution.pairs import Encoding, PairReader
from trl_attribution.pairs.dataset_pass import pass_over
from trl_attribution.utils.settings_file import _Loader

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "threat-model.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
CODE = "from pathlib import Path\nPath({marker!r}).touch()\n"


def test_every_line_of_the_page_names_tests_that_exist() -> None:
    heads = ("| it cannot |", "| they cannot |", "|---")
    text = PAGE.read_text(encoding="utf-8")
    claims = [line for line in text.splitlines() if line.startswith("|") and not line.startswith(heads)]
    assert len(claims) >= 25
    for line in claims:
        named = NAMED.findall(line)
        assert named, line
        for file, name in named:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"


def calls() -> Iterator[ast.Call]:
    """Every call in the package."""
    for folder in (ROOT / "trl_attribution", ROOT / "callbacks"):
        for path in folder.rglob("*.py"):
            yield from (node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call))


def test_the_package_unpickles_and_evaluates_nothing() -> None:
    loads = 0
    for call in calls():
        name = ast.unparse(call.func) if isinstance(call.func, ast.Attribute | ast.Name) else ""
        given = {one.arg: ast.unparse(one.value) for one in call.keywords}
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.unsafe_load", "os.system")
        assert name != "torch.load" or given["weights_only"] == "True"
        assert name != "yaml.load" or given["Loader"] in ("_Loader", "yaml.CSafeLoader")
        assert given.get("trust_remote_code") != "True" and given.get("shell") != "True"
        loads += name == "torch.load"
    assert loads and issubclass(_Loader, yaml.SafeLoader)


def test_a_script_beside_a_dataset_is_not_run(tmp_path: Path) -> None:
    folder, marker = tmp_path / "data", tmp_path / "ran"
    write_rows(folder / "train.jsonl", rows(3))
    for name in ("data.py", "__init__.py"):
        (folder / name).write_text(CODE.format(marker=str(marker)))
    for place in (folder, folder / "data.py"):
        with pytest.raises(DataError):
            PairReader(place)
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
        "{{ 1 / 0 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
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
