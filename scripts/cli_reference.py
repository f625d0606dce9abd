"""Writes the page of the command line from the commands themselves: ``python scripts/cli_reference.py PAGE.md``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from trl_attribution.cli import app

NAME = "trl-attribution"


def main(page: str) -> None:
    """Write the page; its folder is made where it is missing."""
    path = Path(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# Command line", "", *describe(typer.main.get_command(app), NAME, 2)]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def describe(command: Any, name: str, level: int) -> Iterator[str]:
    """The Markdown lines of one command, then of the commands below it, one heading deeper than their parent's."""
    if name != NAME:
        yield from ("#" * level + f" {name}", "")
    yield from (paragraphs(command.help or ""), "")
    children = getattr(command, "commands", {})
    context = command.context_class(command, info_name=name)
    if not children:
        yield from ("```text", " ".join([name, *command.collect_usage_pieces(context)]), "```", "")
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [row(*record) for record in records if record is not None]
    if rows:
        yield from ("| | |", "|---|---|", *rows, "")
    for verb, child in children.items():
        if not child.hidden:
            yield from describe(child, f"{name} {verb}", level + (name != NAME))


def row(names: str, text: str) -> str:
    """One line of the table: names and kind of value, and what it means with its default."""
    names = re.sub(r"\s+", " ", names).strip()
    text = paragraphs(text).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
    return f"| `{names.replace('|', chr(92) + '|')}` | {text} |"


def paragraphs(text: str) -> str:
    """Help text without rich markup and click's control characters."""
    plain = re.sub(r"\[/?(?:bold|dim|italic|underline|red|green|yellow|blue|cyan)[a-z ]*\]", "", inspect.cleandoc(text))
    return plain.replace("\b", "").replace("\f", "").strip()


if __name__ == "__main__":
    main(sys.argv[1])
