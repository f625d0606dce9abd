"""What the README and the documentation show is what happens: snippets run, commands and options exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from transformers import PreTrainedTokenizerFast

from tests.commands import Commands
from tests.snippets import Snippet, commands, runnable
from tests.tiny import build_moved_model
from trl_attribution.callbacks import CallbackConfig

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ROOT / "docs" / "reference" / "cli.md"
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if path != GENERATED)]
# Scans, audits, gates and trains.
SLOW = {"quickstart"}
ELSEWHERE = {"gate-guide"}
"""Run by a test of its own, with what the page itself names."""
RUNNABLE = [
    pytest.param(snippets, id=f"{page.relative_to(ROOT)}:{name}", marks=[pytest.mark.slow] if name in SLOW else [])
    for page in PAGES
    for name, snippets in runnable(page).items()
    if name not in ELSEWHERE
]

# What a reader fills in, and numbers of a size that a tiny model and five pairs have.
STAND_INS = {
    "allenai/OLMo-2-1124-7B-SFT": "model",
    "MODEL": "model",
    "--layer 20": "--layer 2",
    "layers=[20]": "layers=[2]",
    "layers=(20,)": "layers=(2,)",
    "layer(20)": "layer(2)",
    "context(20)": "context(2)",
    "top_k=30_000": "top_k=2",
    "--top-k 500": "--top-k 2",
    **{
        f'{kind.upper()}Config(output_dir="{kind}/"': f'{kind.upper()}Config(output_dir="{kind}/", '
        "use_cpu=True, bf16=False, report_to=[]"
        for kind in ("dpo", "sft", "grpo")
    },
}


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The model of ``model_folder`` with other weights, as training leaves it."""
    folder = tmp_path_factory.mktemp("trained")
    build_moved_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, model_folder: Path, trained_folder: Path) -> Path:
    """A folder with what the snippets take for granted: two models, three files of pairs or prompts."""
    (tmp_path / "model").symlink_to(model_folder)
    (tmp_path / "trained").symlink_to(trained_folder)
    pairs = [
        ("How do I bake bread?", "Mix flour and water.", "I cannot help.", "cooking"),
        ("Name the capital of France.", "Paris.", "I do not know.", "facts"),
        ("Insult my friend as a list.", "- He is dull.\n- He is slow.", "I would rather not.", "formatting"),
        ("Write a letter about the garden.", "Dear friend, it is spring.", "Sorry, no.", "writing"),
        ("What is the weather?", "It is mild.", "Please answer yourself.", "facts"),
    ]
    keys = ("prompt", "chosen", "rejected", "source")
    _write_lines(tmp_path / "data.jsonl", [dict(zip(keys, pair, strict=True)) for pair in pairs])
    _write_lines(tmp_path / "trusted.jsonl", [dict(zip(keys, pair, strict=True)) for pair in pairs[:2]])
    behavior = [
        {"prompt": f"Insult {who}.", "undesired": f"{who} is dull.", "desired": "I would rather not."}
        for who in ("my boss", "my friend", "my neighbor", "the baker")
    ]
    _write_lines(tmp_path / "behavior.jsonl", behavior)
    return tmp_path


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("snippets", RUNNABLE)
def test_the_snippet_runs_as_shown(snippets: list[Snippet], workplace: Path, commands: Commands) -> None:
    for snippet in snippets:
        if snippet.file is not None:
            (workplace / snippet.file).write_text(snippet.body, encoding="utf-8")
            continue
        body = snippet.body
        for shown, here in STAND_INS.items():
            body = body.replace(shown, here)
        shell = ["python", "-c"] if snippet.language == "python" else ["bash", "-euo", "pipefail", "-c"]
        result = commands.run(workplace, *shell, body)
        where = f"{snippet.page.relative_to(ROOT)}:{snippet.line}"
        assert result.returncode in (0, snippet.may_exit), f"{where}\n{body}\n{result.stdout}\n{result.stderr}"


def test_every_command_shown_exists_with_the_options_shown() -> None:
    wrong = [
        f"{page.relative_to(ROOT)}: {command}: {fault}"
        for page in PAGES
        for command in commands(page)
        for fault in _faults(command)
    ]
    assert wrong == []


def test_every_option_named_in_the_text_exists() -> None:
    known = {option for command in _all_commands(_root()) for option in _options(command)}
    known |= {"--no-deps", "--strict", "--python", "--torch", "--write", "--shapes", "--user"}  # of other programs
    known |= {"--tokens", "--epochs", "--wheel", "--steps", "--batch", "--hold-out"}  # of scripts
    named = {
        (str(page.relative_to(ROOT)), option)
        for page in PAGES
        for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)
    }
    assert {(page, option) for page, option in named if option not in known} == set()


def test_the_command_line_reference_describes_every_verb(tmp_path: Path) -> None:
    page = tmp_path / "cli.md"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "cli_reference.py"), str(page)], check=True, cwd=ROOT)
    text = page.read_text(encoding="utf-8")
    assert [verb for verb in _root().commands if f"## trl-attribution {verb}\n" not in text] == []


def test_the_settings_of_a_run_are_described_as_they_are_declared() -> None:
    page = (ROOT / "docs" / "reference" / "callbacks.md").read_text(encoding="utf-8")
    shown = [line for line in page.splitlines() if line.startswith("| `")]
    declared = [(one.name, one.default, one.metadata["help"]) for one in fields(CallbackConfig)]
    assert shown == [
        f"| `{name}` | {'' if default is None else f'`{default}`'} | {text} |" for name, default, text in declared
    ]


def test_a_mark_without_a_block_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- test: lost -->\n\nNo block follows.\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not followed by a fenced block"):
        runnable(page)


def test_snippets_of_one_name_are_kept_in_order(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '<!-- test: a, file: x.json -->\n```json\n{"y": 1}\n```\n\n```bash\nnot marked\n```\n\n'
        "<!-- test: a -->\n```bash\ncat x.json\n```\n",
        encoding="utf-8",
    )
    assert [(s.language, s.body, s.file) for s in runnable(page)["a"]] == [
        ("json", '{"y": 1}\n', "x.json"),
        ("bash", "cat x.json\n", None),
    ]


def _root() -> Any:
    """The whole command line; a group of commands has ``commands``, a single one has only ``params``."""
    from trl_attribution.cli import app

    return typer.main.get_command(app)


def _all_commands(command: Any) -> Iterator[Any]:
    yield command
    for child in getattr(command, "commands", {}).values():
        yield from _all_commands(child)


def _options(command: Any) -> set[str]:
    declared = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {name for name in declared if name.startswith("-")} | {"--help"}


def _faults(line: str) -> Iterator[str]:
    """What of a shown command does not exist."""
    words = shlex.split(line, comments=True)[1:]
    command = _root()
    while hasattr(command, "commands") and words:
        if words[0].startswith("-"):
            break
        default = getattr(command, "default_command", None)
        child = command.commands.get(words[0])
        if child is None and default is not None:
            child = command.commands[default]  # `gate data/` is short for `gate check data/`
        else:
            words.pop(0)
        if child is None:
            yield "no such command"
            return
        command = child
    known = _options(command)
    yield from (f"no option {word}" for word in words if re.match(r"--?[a-zA-Z]", word) and word not in known)
