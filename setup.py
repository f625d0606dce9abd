"""Mends what a zip archive of the repository loses, and what a README loses on an index; all else: pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = ROOT / "trl_attribution" / "callbacks"

if (ROOT / "callbacks").is_dir() and not LINK.is_dir():
    # The link to ../callbacks has become a file that says so, or nothing: without it the package would lack a part.
    LINK.unlink(missing_ok=True)
    LINK.symlink_to(Path("..") / "callbacks", target_is_directory=True)

readme = (ROOT / "README.md").read_text(encoding="utf-8")
# What lies beside the README is not on an index: no picture can be shown, no link followed.
readme = re.sub(r"^!\[[^]]*\]\((?!https?:)[^)]*\)\n+", "", readme, flags=re.MULTILINE)
readme = re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", readme)

setup(long_description=readme, long_description_content_type="text/markdown")
