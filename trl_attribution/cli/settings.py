"""Options made from settings: a parameter that is a dataclass stands for one option for each of its fields.

A setting is declared once, with its type, its default and what it is for, in the dataclass that uses it::

    @verb
    def audit(dataset: Dataset, *, settings: AuditConfig, out: Output) -> None: ...

has ``--vector-dtype`` and all other fields of ``AuditConfig`` as options, those of the dataclasses in it too, and is
called with an ``AuditConfig``. Where the parameter has a default, its values are the options'; where it may be None, it
is None if no option of it is given. A field's metadata may say more: ``option``, the option's name where it is not the
field's, or None for a field without one; ``typer``, what Typer makes of it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, TypeGuard, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from trl_attribution.errors import SettingsError
from trl_attribution.utils.declared import field_texts
from trl_attribution.utils.text import printable, whole_number

Command = Callable[..., None]
_METAVARS = {bool: "", int: "N", float: "X", str: "TEXT", Path: "PATH"}


class Without(tuple[str, ...]):
    """``Annotated[AuditConfig, Without("layers")]``: the settings, some of them left at their defaults."""

    def __new__(cls, *names: str) -> Self:
        """Without the fields ``names``."""
        return super().__new__(cls, names)

    def has(self, name: str) -> bool:
        """Whether the field has an option."""
        return name not in self


class Only(Without):
    """``Annotated[AuditConfig, Only("layers")]``: the settings, all others of them left at their defaults."""

    def has(self, name: str) -> bool:
        """Whether the field has an option."""
        return name in self


@dataclasses.dataclass(frozen=True)
class _Group:
    """The settings that a parameter stands for."""

    kind: type
    shown: Without
    default: Any = None
    """Settings with the options' defaults; None for those of the fields."""
    optional: bool = False

    @classmethod
    def of(cls, parameter: inspect.Parameter) -> _Group | None:
        """None for a parameter that is no settings."""
        marked = get_origin(parameter.annotation) is Annotated
        annotation, *marks = get_args(parameter.annotation) if marked else (parameter.annotation,)
        shown = next((mark for mark in marks if isinstance(mark, Without)), Without())
        optional = get_origin(annotation) is UnionType and type(None) in get_args(annotation)
        kind = get_args(annotation)[0] if optional else annotation
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        return cls(kind, shown, default, optional) if _is_settings(kind) else None

    def fields(self) -> Iterator[tuple[dataclasses.Field[Any], Any, _Group | None]]:
        """The fields that have options, each with its type; with their group those that are settings themselves."""
        kinds = get_type_hints(self.kind, include_extras=True)
        for field in dataclasses.fields(self.kind):
            if _is_settings(kinds[field.name]):
                yield field, kinds[field.name], _Group(kinds[field.name], self.shown, self.default_of(field))
            elif self.shown.has(field.name) and field.metadata.get("option", "") is not None:
                yield field, kinds[field.name], None

    def default_of(self, field: dataclasses.Field[Any]) -> Any:
        """The value where the option is not given."""
        if self.default is not None:
            return getattr(self.default, field.name)
        return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()

    def options(self) -> Iterator[inspect.Parameter]:
        """A parameter for each option."""
        texts = field_texts(self.kind)
        for field, annotation, inner in self.fields():
            if inner is not None:
                yield from inner.options()
                continue
            taken, default = annotation, self.default_of(field)
            dashed = _named(field).replace("_", "-")
            words = f"--{dashed}/--no-{dashed}" if default is True else f"--{dashed}"
            option = copy.copy(field.metadata.get("typer")) or typer.Option(words)
            option.help = option.help or texts[field.name].replace("``", "")
            if get_origin(taken) is UnionType and get_origin(get_args(taken)[0]) is tuple:
                taken = list[get_args(get_args(taken)[0])[0]] | None  # type: ignore[misc]  # tuple[int, ...] | None
            elif get_origin(taken) is Literal:
                taken, option.metavar = str, "|".join(get_args(taken))  # checked by the settings, as in Python
            elif get_origin(taken) is tuple:
                taken, default, option.metavar = str, ",".join(f"{one:g}" for one in default), "N,N..."
            elif taken == int | None and default is not None:
                taken, default, option.metavar = str, str(default), "N|none"  # read by made: an error is one message
            yield inspect.Parameter(
                _named(field), inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[taken, option]
            )

    def made(self, given: dict[str, Any]) -> Any:
        """The settings, from the options that were ``given``; each is taken out."""
        values: dict[str, Any] = {}
        for field, annotation, inner in self.fields():
            if inner is not None:
                values[field.name] = inner.made(given)
                continue
            value = given.pop(_named(field))
            if annotation == int | None and self.default_of(field) is not None:
                value = _number_or_none(f"--{_named(field).replace('_', '-')}", value)
            elif get_origin(annotation) is tuple:
                value = _numbers(f"--{_named(field).replace('_', '-')}", value)
            values[field.name] = (tuple(value) or None) if isinstance(value, list) else value
        if self.optional and all(value is None for value in values.values()):
            return None
        return self.kind(**values) if self.default is None else dataclasses.replace(self.default, **values)


def with_options(command: Command) -> Command:
    """``command`` with the parameters that are settings replaced by the options of their fields."""
    signature = inspect.signature(command, eval_str=True)
    found = {name: _Group.of(parameter) for name, parameter in signature.parameters.items()}
    groups = {name: group for name, group in found.items() if group is not None}
    parameters = [
        _with_metavar(option).replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        for option in (groups[name].options() if name in groups else [parameter])
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: group.made(given) for name, group in groups.items()}
        command(**given, **made)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # what Typer reads
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _with_metavar(parameter: inspect.Parameter) -> inspect.Parameter:
    """Says in the help what is to be given: nothing for a flag, ``N`` for a number, an argument's own name."""
    if get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, *marks = get_args(parameter.annotation)
    said = [copy.copy(mark) if isinstance(mark, OptionInfo | ArgumentInfo) else mark for mark in marks]
    for mark in said:
        if isinstance(mark, ArgumentInfo):
            mark.metavar = mark.metavar or parameter.name.strip("_").upper()
        elif isinstance(mark, OptionInfo) and mark.metavar is None:
            mark.metavar = _metavar(kind)
    return parameter.replace(annotation=Annotated[kind, *said])


def _metavar(kind: Any) -> str | None:
    kinds = [one for one in get_args(kind) or (kind,) if one is not type(None)]
    if get_origin(kind) is Literal:
        return "|".join(map(str, kinds))
    if len(kinds) == 1 and get_origin(kinds[0]) is not None:
        return _metavar(kinds[0])
    return _METAVARS.get(kinds[0]) if len(set(kinds)) == 1 else None


def _is_settings(kind: Any) -> TypeGuard[type]:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


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


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingsError(f"{option}: {printable(text, 40)!r} is not a list of numbers such as 0.5,1,2") from error
