"""Runs the core suite (tests/core.txt) with other versions, each set in an environment of its own; may note the result.

`python scripts/try_versions.py oldest newest` is what `make test-versions` does. With `--write` the row of each set is
put into the table of docs/reference/versions.md. Other interpreters: `--python python3.13`; other builds of torch:
`--torch 2.6.0`. The environments stay in the folder that `--folder` names, so that a second run installs nothing anew;
`--prepare` makes them and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "versions.md"
TOOLS = ["pip", "pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "pillow", "gguf"]
SHOWN = ["torch", "trl", "transformers", "datasets", "huggingface-hub", "accelerate", "peft"]


@dataclass(frozen=True)
class VersionSet:
    """Versions that are tried together."""

    constraints: str
    """The file that holds them."""
    instead: dict[str, str] = field(default_factory=dict)
    """Those that differ from it."""


SETS = {
    "oldest": VersionSet("constraints-oldest.txt"),
    "TRL 1.0": VersionSet("constraints-oldest.txt", {"trl": "1.0.0", "datasets": "4.7.0"}),
    "newest": VersionSet("constraints.txt", {"transformers": "5.24.0"}),
}


def pins(path: Path) -> dict[str, str]:
    """Package and version of each line of a file of constraints."""
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if "==" in line and line[0] != "#")
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


def environment(name: str, python: str, torch: str, folder: Path) -> Path:
    """The interpreter of an environment with the set ``name``, made where it is missing."""
    chosen, tools = SETS[name], pins(ROOT / "constraints.txt")
    wanted = pins(ROOT / chosen.constraints) | chosen.instead | {"torch": torch}
    wanted |= {tool: tools[tool] for tool in TOOLS if tool in tools}
    home = folder / re.sub(r"\W+", "-", f"{name} {Path(python).name} {torch}")
    home.mkdir(parents=True, exist_ok=True)
    constraints = home / "constraints.txt"
    written = "".join(f"{package}=={version}\n" for package, version in sorted(wanted.items()))
    interpreter, ready = home / "bin" / "python", home / "ready"
    if ready.exists() and constraints.read_text() == written:
        return interpreter
    ready.unlink(missing_ok=True)
    constraints.write_text(written)
    subprocess.run([python, "-m", "venv", str(home)], check=True)
    # Compiling takes as long as all the rest, and most modules are never imported.
    pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "install", "-qq", "--no-compile"]
    pip += ["--constraint", str(constraints)]
    subprocess.run([*pip, "pip"], check=True)  # the one that comes with Python 3.11 is slow to choose versions
    subprocess.run([*pip, "--editable", f"{ROOT}[peft]", *TOOLS], check=True)
    ready.touch()
    return interpreter


def versions_in(interpreter: Path) -> dict[str, str]:
    """What is installed, by package, and the Python."""
    script = (
        "import json, platform; from importlib.metadata import version; "
        f"print(json.dumps({{name: version(name) for name in {SHOWN}}} | {{'python': platform.python_version()}}))"
    )
    found: dict[str, str] = json.loads(subprocess.check_output([str(interpreter), "-c", script], text=True))
    return found


def run_core(interpreter: Path, arguments: list[str]) -> tuple[int, str]:
    """The exit code of the core suite and its closing line, which goes to the screen with all the rest."""
    command = [str(interpreter), "-m", "pytest", "-q", "-p", "no:cacheprovider", "@tests/core.txt", *arguments]
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""}
    last = ""
    with subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode, re.sub(r" in .*", "", last.strip("= "))


def note(name: str, versions: dict[str, str], result: str) -> None:
    """Put the row of a set into the table of the page, in the place of an older one with the same Python and torch."""
    cells = [name, versions["python"], *(versions[package] for package in SHOWN), result]
    row = f"| {' | '.join(cells)} |"
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("|---"))
    python = ".".join(versions["python"].split(".")[:2])
    same = re.compile(rf"\| {re.escape(name)} \| {re.escape(python)}\.\d+ \| {re.escape(versions['torch'])} ")
    end = next(place for place in range(start + 1, len(lines)) if not lines[place].startswith("|"))
    kept = [line for line in lines[start + 1 : end] if not same.match(line)]
    PAGE.write_text("\n".join([*lines[: start + 1], *sorted([*kept, row]), *lines[end:]]) + "\n", encoding="utf-8")


def main() -> int:
    """Try the sets that the command line names; 1 where one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--torch", default=pins(ROOT / "constraints.txt")["torch"])
    parser.add_argument("--folder", type=Path, default=ROOT / ".versions")
    parser.add_argument("--prepare", action="store_true", help="make the environments, run nothing")
    parser.add_argument("--write", action="store_true", help="note the results in docs/reference/versions.md")
    asked, further = parser.parse_known_args()
    failed = 0
    for name in asked.sets:
        interpreter = environment(name, asked.python, asked.torch, asked.folder)
        if asked.prepare:
            continue
        versions = versions_in(interpreter)
        print(f"== {name}: " + ", ".join(f"{package} {version}" for package, version in versions.items()), flush=True)
        code, result = run_core(interpreter, further)
        failed |= code != 0
        if asked.write:
            note(name, versions, result)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
