"""What a dataclass of settings says of its fields: they are explained once, where they are declared."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from dataclasses import field, fields, is_dataclass
from typing import Any


@functools.cache
def field_texts(settings: type) -> dict[str, str]:
    """Field -> the first paragraph of the text below it, here or in what the settings extend."""
    found = {
        name: text for base in settings.__bases__ if is_dataclass(base) for name, text in field_texts(base).items()
    }
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    assert isinstance(body, ast.ClassDef)
    for line, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(line.target)] = first_paragraph(str(text.value.value))
    return found


def first_paragraph(text: str) -> str:
    """It, on one line."""
    return " ".join(text.split("\n\n", maxsplit=1)[0].split())


def taken(settings: type, name: str) -> Any:
    """A field as ``settings`` declares it, default and explanation, for settings that a flat parser fills.

    transformers' parsers show a field's ``help``.
    """
    (one,) = (each for each in fields(settings) if each.name == name)
    return field(default=one.default, metadata={"help": field_texts(settings)[name].replace("``", "")})
