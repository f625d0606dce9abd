"""Names of a package that load their module on first use (PEP 562): importing one costs nothing of the others."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path


def lazy_names(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for ``package``: its names are the imports under ``if TYPE_CHECKING``.

    A package's ``__init__`` lists its names once, as imports that type checkers, the documentation and readers
    understand; here they are read off it::

        if TYPE_CHECKING:
            from package.module import Name
        else:
            __getattr__, __dir__ = lazy_names(__name__)

    A name that is also a submodule's cannot be among them: importing that submodule would put it in the name's place.
    """
    module = sys.modules[package]
    homes = dict(_imports(Path(str(module.__file__)).read_text(encoding="utf-8")))

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; its public names are {sorted(homes)}")
        value = getattr(import_module(homes[name]), name)
        setattr(module, name, value)
        return value

    return load, lambda: sorted({*vars(module), *homes})


def _imports(source: str) -> Iterator[tuple[str, str]]:
    """Name and module of each import under ``if TYPE_CHECKING``."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom):
                    yield from ((alias.name, str(line.module)) for alias in line.names)
