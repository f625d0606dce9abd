"""Options made from settings: a parameter that is a dataclass stands for one option for each of its fields.

A setting is declared once, with its type, its default and what it is for, in the dataclass that uses it::

    @verb
    def audit(dataset: Dataset, *, settings: AuditConfig, out: Output) -> None: ...

has ``--vector-dtype`` and all other fields of ``AuditConfig`` as options, those of the dataclasses in it too, and is
called with an ``AuditConfig``. A field's metadata may say more: ``option``, the option's name where it is not the
field's, or None for a field that the command line leaves at its default; ``typer``, what Typer makes of it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, TypeGuard, get_args, get_origin, get_type_hints

import typer

from trl_attribution.errors import SettingsError
from trl_attribution.utils.declared import field_texts
from trl_attribution.utils.text import printable, whole_number

Command = Callable[..., None]


@dataclasses.dataclass(frozen=True)
class Without:
    """``Annotated[AuditConfig, Without("layers")]``: the settings, some of them left at their defaults."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


def with_options(command: Command) -> Command:
    """``command`` with the parameters that are settings replaced by the options of their fields."""
    signature = inspect.signature(command, eval_str=True)
    groups = {
        name: (kind, without)
        for name, parameter in signature.parameters.items()
        for kind, without in [_settings(parameter.annotation)]
        if kind is not None
    }
    parameters = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        for option in (_options(*groups[name]) if name in groups else [parameter])
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: _made(kind, without, given) for name, (kind, without) in groups.items()}
        command(**given, **made)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # what Typer reads
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _settings(annotation: Any) -> tuple[type | None, tuple[str, ...]]:
    """The dataclass that a parameter is, and the fields that it does without; None for any other parameter."""
    kind, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    without = next((mark.names for mark in marks if isinstance(mark, Without)), ())
    return (kind if _is_settings(kind) else None), without


def _is_settings(kind: Any) -> TypeGuard[type]:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _fields(kind: type, without: tuple[str, ...]) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields that have options, each with its type."""
    kinds = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if field.name not in without and field.metadata.get("option", "") is not None:
            yield field, kinds[field.name]


def _options(kind: type, without: tuple[str, ...]) -> Iterator[inspect.Parameter]:
    texts = field_texts(kind)
    for field, annotation in _fields(kind, without):
        if _is_settings(annotation):
            yield from _options(annotation, without)
            continue
        option = field.metadata.get("typer") or typer.Option(f"--{_named(field).replace('_', '-')}")
        option.help = option.help or texts[field.name].replace("``", "")
        taken, default = annotation, field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if get_origin(annotation) is UnionType and get_origin(get_args(annotation)[0]) is tuple:
            taken = list[get_args(get_args(annotation)[0])[0]] | None  # type: ignore[misc]  # tuple[int, ...] | None
        elif annotation == int | None and default is not None:
            taken, default, option.metavar = str, str(default), "N|none"  # read by _made: a user's error is one message
        yield inspect.Parameter(
            _named(field), inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[taken, option]
        )


def _made(kind: type, without: tuple[str, ...], given: dict[str, Any]) -> Any:
    """The settings, from the options that were ``given``; each is taken out."""
    values = {}
    for field, annotation in _fields(kind, without):
        if _is_settings(annotation):
            values[field.name] = _made(annotation, without, given)
            continue
        value = given.pop(_named(field))
        if annotation == int | None and field.default is not None:
            value = _number_or_none(f"--{_named(field).replace('_', '-')}", value)
        values[field.name] = (tuple(value) or None) if isinstance(value, list) else value
    return kind(**values)


def _named(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("option", field.name))


def _number_or_none(option: str, text: str) -> int | None:
    """``none``, or a positive whole number."""
    if text.lower() == "none":
        return None
    number = whole_number(text)
    if number is None or number < 1:
        raise SettingsError(f"{option}: {printable(text, 40)!r} is neither a positive whole number nor none")
    return number
