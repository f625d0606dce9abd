"""Pages under docs/benchmarks: the machine, the command and the tables, shown in the terminal as well."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from trl_attribution.utils.atomic import atomic_path

_VERSIONS = ("torch", "transformers", "trl")


@dataclass(frozen=True)
class Results:
    """One table of a page."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """A paragraph below the table."""

    def markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return "\n\n".join(part for part in (f"## {self.title}", table, self.note) if part)

    def show(self, console: Console) -> None:
        table = Table(*self.columns, title=self.title, title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        console.print(self.note, style="dim", markup=False)


def machine() -> str:
    """The machine in words, without its name."""
    return f"{_processor()}, {torch.get_num_threads()} threads"


def write_page(path: Path, title: str, lead: str, command: str, tables: Sequence[Results]) -> None:
    """Write a page of results, atomically."""
    packages = ", ".join(f"{package} {version(package)}" for package in _VERSIONS)
    today = datetime.datetime.now(tz=datetime.UTC).date()
    made = f"{today} · {machine()} · Python {platform.python_version()}, {packages}"
    parts = [f"# {title}", lead, f"```bash\n{command}\n```", made, *(table.markdown() for table in tables)]
    with atomic_path(path) as part:
        part.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _processor() -> str:
    """What the system calls the processor: ``platform`` alone knows little more than ``x86_64``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in flags]
    return f"{names[0] if names else platform.machine()} ({', '.join(wide)})" if wide else (names or ["CPU"])[0]
