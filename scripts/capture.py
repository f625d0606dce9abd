"""Run a command of this project and save what it prints as an SVG picture: ``capture.py OUT.svg COMMAND...``."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 110


def main(target: Path, command: list[str]) -> None:
    """Write the picture to ``target`` and the bare text beside it."""
    environment = {
        **os.environ,
        "FORCE_COLOR": "1",
        "COLUMNS": str(WIDTH),
        "TERM": "xterm-256color",
        "TTY_INTERACTIVE": "0",
    }
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=True
    )
    shown = done.stdout.decode("utf-8")
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    title = " ".join([Path(command[0]).name, *command[1:]])
    console.print(Text.from_ansi(shown))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Rich asks a font server for its font; the viewer's own monospace font does as well.
    picture = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title=title), flags=re.DOTALL)
    target.write_text(picture, encoding="utf-8")
    target.with_suffix(".txt").write_text(Text.from_ansi(shown).plain + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
