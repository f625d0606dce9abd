"""Reads a JSON file that this package wrote, and refuses what is none of its kind by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trl_attribution.errors import AttributionError, StoreError
from trl_attribution.utils.format_version import check_format_version
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def read_json(
    path: str | Path, expected: str, newest: int, error: type[AttributionError] = StoreError, advice: str = ""
) -> dict[str, Any]:
    """The object in the file ``path``.

    Args:
        path: the file.
        expected: what its ``format`` has to be, such as ``trl-attribution drift``.
        newest: the newest ``format_version`` (in a verdict, ``version``) that is read.
        error: class of the error.
        advice: what to do where the file is no good, a sentence.

    Raises:
        AttributionError: it cannot be read, is of another format, or of a newer version.
    """
    where = printable(path)
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise error(f"cannot read {where}: {printable(fault, 120)}. {advice}".rstrip()) from fault
    return checked_json(values, expected, newest, where, error, advice)


def checked_json(
    values: object, expected: str, newest: int, where: str, error: type[AttributionError] = StoreError, advice: str = ""
) -> dict[str, Any]:
    """``values``, once it is sure that they are of the ``expected`` format; ``where`` they are begins the message.

    Raises:
        AttributionError: as for :func:`read_json`.
    """
    if not isinstance(values, dict) or values.get("format") != expected:
        kind = expected.removeprefix("trl-attribution ")
        raise error(f"{where} holds no {kind}: its `format` is not {expected!r}. {advice}".rstrip())
    check_format_version(values.get("format_version", values.get("version")), newest, where, error)
    return values


def validated(
    kind: TypeAdapter[T], values: object, where: object, error: type[AttributionError] = StoreError, advice: str = ""
) -> T:
    """``values``, found at ``where``, as the type that the file's format is declared by.

    Raises:
        AttributionError: a value is missing or of another type; the message names it.
    """
    from pydantic import ValidationError

    try:
        return kind.validate_python(values)
    except ValidationError as faults:
        fault = faults.errors(include_url=False)[0]
        field = printable(".".join(map(str, fault["loc"])), 120)
        raise error(f"{where} is broken (field '{field}': {fault['msg']}). {advice}".rstrip()) from None
