"""What every kind of row may have beside its responses: a source, tools, arguments of the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trl_attribution.pairs.faults import RowFault
from trl_attribution.utils.text import json_fault


def source_of(values: Mapping[str, Any], column: str, default: str) -> str:
    """Where a row comes from."""
    value = values.get(column)
    source = default if value is None or value == "" else str(value)
    try:
        source.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault(
            "invalid_text",
            column,
            f"holds the lone surrogate \\u{ord(source[error.start]):04x}, which is no character and cannot be stored. "
            "Remove it or write the character it was part of.",
        ) from error
    return source


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """The tool schemas of a row, which may be written as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None  # an empty CSV cell
        except (ValueError, RecursionError) as error:
            raise RowFault(
                "broken_tools", "tools", f"broken JSON ({json_fault(error)}). Write a JSON list of schemas."
            ) from error
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowFault(
            "broken_tools",
            "tools",
            f"is a {type(value).__name__}, not a list of schemas. Write a list of JSON objects.",
        )
    return list(value)


def template_kwargs_of(value: Any) -> dict[str, Any]:
    """What the template gets besides."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RowFault(
            "bad_template_kwargs",
            "chat_template_kwargs",
            f"is a {type(value).__name__}, not an object. Write the template's arguments as an object, or drop the "
            "column.",
        )
    return {str(key): entry for key, entry in value.items()}
