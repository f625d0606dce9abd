"""A scratch git repository: the real git, without the settings of whoever runs the tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

_IDENTITY = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]


class Repository:
    """A new repository at ``path``, on its branch ``main``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        command = ["git", *_IDENTITY, *arguments]
        return subprocess.run(command, cwd=self.path, check=True, capture_output=True, text=True).stdout.strip()

    def write(self, name: str, *lines: str | bytes) -> Path:
        """A file of these lines; its folders are made."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
        return file

    def commit(self) -> None:
        """All there is, also if nothing changed."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "work")

    def branch(self, name: str = "work") -> None:
        """Commit, and go on on a new branch."""
        self.commit()
        self.git("switch", "--quiet", "--create", name)
