"""Which versions of other packages are taken, and which are refused by name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trl_attribution import AttributionCallback, AttributionTracker, DataAuditor
from trl_attribution.errors import SettingsError
from trl_attribution.utils import compat

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """``installed(package, version)`` makes it look as if that version were."""
    kept = compat.installed_version

    def pretend(package: str, version: str) -> None:
        monkeypatch.setattr(compat, "installed_version", lambda name: version if name == package else kept(name))
        compat.version_of.cache_clear()
        compat.check_versions.cache_clear()

    yield pretend
    monkeypatch.undo()
    compat.version_of.cache_clear()
    compat.check_versions.cache_clear()


@pytest.mark.parametrize(
    "build", [AttributionCallback, lambda: DataAuditor("model"), lambda: AttributionTracker(*"abc")]
)
def test_an_unsupported_version_is_refused_by_name_before_anything_else(
    build: Callable[[], Any], installed: Callable[[str, str], None]
) -> None:
    for package, version, wanted in [
        ("trl", "0.28.0", "trl>=0.29,<2"),
        ("trl", "2.0.0", "trl>=0.29,<2"),
        ("transformers", "4.55.4", "transformers>=4.56.2,<6"),
        ("peft", "0.17.1", "peft>=0.18"),
    ]:
        installed(package, version)
        with pytest.raises(SettingsError, match=re.escape(f"{package} {version} is installed")) as caught:
            build()
        assert f"pip install '{wanted}'" in str(caught.value)


def test_what_is_supported_is_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["peft"]]
    for package, (first, beyond) in compat.SUPPORTED.items():
        assert f"{package}>={first}" + (f",<{beyond}" if beyond else "") in lines


def requirements() -> list[str]:
    """All that the package needs, with the lowest version that it asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [line.partition(",")[0] for line in (*project["dependencies"], *project["optional-dependencies"]["peft"])]


def test_the_oldest_set_is_made_of_the_lowest_versions_that_are_asked_for() -> None:
    pins = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    found = {plain_name(pin.split("==")[0]): pin.split("==")[1] for pin in pins if not pin.startswith("#")}
    for requirement in requirements():
        package, lowest = requirement.split(">=")
        assert package == "torch" or found[package] == lowest or found[package].startswith(f"{lowest}."), package


def asked(*arguments: str, path: Path | None = None) -> dict[str, Any]:
    """What pip would install, name and version; packages in ``path`` are there already."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--dry-run",
        "--report",
        "-",
        "-q",
    ]
    environment = {**os.environ} if path is None else {**os.environ, "PYTHONPATH": str(path)}
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=280)
    if "No matching distribution found" in result.stderr:
        pytest.skip("no package registry answers")
    assert result.returncode == 0, result.stderr
    return {plain_name(one["metadata"]["name"]): one["metadata"] for one in json.loads(result.stdout)["install"]}


def plain_name(package: str) -> str:
    return package.lower().replace("_", "-")


@pytest.mark.slow
def test_installing_beside_an_existing_run_changes_none_of_what_it_runs_on(tmp_path: Path) -> None:
    run = ["trl==0.29.1", "transformers==4.56.2", "datasets==4.4.2", "huggingface-hub==0.36.2", "accelerate==1.10.1"]
    torch = f"torch=={compat.version_of('torch')}"
    there = asked("--ignore-installed", *run, torch, "peft==0.18.1")
    for name, metadata in there.items():
        folder = tmp_path / f"{name.replace('-', '_')}-{metadata['version']}.dist-info"
        folder.mkdir()
        needs = "".join(f"Requires-Dist: {line}\n" for line in metadata.get("requires_dist", ()))
        head = f"Metadata-Version: 2.1\nName: {metadata['name']}\nVersion: {metadata['version']}\n"
        (folder / "METADATA").write_text(head + needs)
        (folder / "INSTALLER").write_text("pip\n")
        (folder / "RECORD").write_text("")
    changed = asked(str(ROOT), path=tmp_path).keys()
    assert "trl-attribution" in changed
    assert not changed & (compat.SUPPORTED.keys() | there.keys())
