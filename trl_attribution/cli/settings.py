"""Options made from settings: a parameter that is a dataclass stands for one option for each of its fields.

A setting is declared once, with its type, its default and what it is for, in the dataclass that uses it::

    @verb
    def audit(dataset: Dataset, reading: Reading, out: Output) -> None: ...

has ``--prompt-column`` and the other fields of ``Reading`` as options, and is called with a ``Reading``.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_type_hints

import typer
from typer.models import OptionInfo

Command = Callable[..., None]


def with_options(command: Command) -> Command:
    """``command`` with the parameters that are settings replaced by the options of their fields.

    A field may say more of its option in its metadata: ``option`` (a ``typer.Option``), or None in its place for one
    that the command line leaves at its default.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, type] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.annotation, type) and dataclasses.is_dataclass(parameter.annotation)
    }
    parameters = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        for option in (list(_options(groups[name])) if name in groups else [parameter])
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, settings in groups.items():
            values = {option.name: given.pop(option.name) for option in _options(settings)}
            given[name] = settings(**values)
        command(**given)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # what Typer reads
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


@functools.cache
def _documented(settings: type) -> dict[str, str]:
    """Field -> the first paragraph of the text below it."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            words = " ".join(str(text.value.value).split("\n\n")[0].split())
            found[ast.unparse(field.target)] = words.replace("``", "")
    return found


def _options(settings: type) -> Iterator[inspect.Parameter]:
    kinds, texts = get_type_hints(settings, include_extras=True), _documented(settings)
    for field in dataclasses.fields(settings):
        option = field.metadata.get("option", ...)
        if option is None:
            continue
        info: OptionInfo = typer.Option() if option is ... else option
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        info.help = info.help or texts[field.name]
        if info.param_decls is None:
            info.param_decls = (f"--{field.name.replace('_', '-')}",)
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kinds[field.name], info]
        )
