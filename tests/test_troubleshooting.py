"""The page that people search for a message has the messages that the package prints."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from trl_attribution.gate.policy.rules import PLACEHOLDER

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
HEADING = re.compile(r"^### `(.+)`$", re.MULTILINE)


def texts() -> Iterator[str]:
    """Every text in the package's code; of an f-string the parts between its values."""
    for folder in (ROOT / "trl_attribution", ROOT / "callbacks"):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (one.value if isinstance(one, ast.Constant) else "…" for one in node.values)
                    yield "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_every_message_on_the_page_is_one_that_the_package_prints() -> None:
    printed = "\n".join(texts()).lower()
    shown = HEADING.findall(PAGE.read_text(encoding="utf-8").replace(PLACEHOLDER, "…").lower())
    lost = [
        message
        for message in shown
        for part in message.split("…")
        if len(part.strip(" :")) > 2 and part.strip(" :") not in printed
    ]
    assert len(shown) >= 15
    assert lost == []
