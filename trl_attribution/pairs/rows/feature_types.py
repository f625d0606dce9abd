"""Column types learned from the values that a column holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from datasets import Features, Json, List, Value

from trl_attribution.errors import DataError

NULL = Value("null")
_INT64 = range(-(2**63), 2**63)


def feature_of(value: Any) -> Any:
    """The type of one JSON value; objects that Arrow cannot hold as they are become ``Json``.

    Raises:
        DataError: the value is none that JSON knows.
    """
    if value is None:
        return NULL
    if isinstance(value, bool):
        return Value("bool")
    if isinstance(value, int):
        return Value("int64") if value in _INT64 else Json()
    if isinstance(value, float):
        return Value("float64")
    if isinstance(value, str):
        return Value("string")
    if isinstance(value, Mapping):
        return {str(key): feature_of(entry) for key, entry in value.items()} or Json()
    if isinstance(value, list | tuple):
        return List(reduce(feature_union, map(feature_of, value), NULL))
    raise DataError(
        f"a {type(value).__name__} has no JSON form. "
        "Write it as text, or give a datasets.Dataset, whose columns have types."
    )


def feature_union(first: Any, second: Any) -> Any:
    """The narrowest type that holds the values of both.

    Objects with different keys become ``Json``, as ``datasets`` itself does it: a struct would fill every key that a
    row lacks with None, and chat templates print that.
    """
    if first == second or second == NULL:
        return first
    if first == NULL:
        return second
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return {name: feature_union(first[name], second[name]) for name in first}
    if isinstance(first, List) and isinstance(second, List):
        return List(feature_union(first.feature, second.feature))
    if isinstance(first, Value) and isinstance(second, Value) and {first.dtype, second.dtype} == {"int64", "float64"}:
        return Value("float64")
    return Json()


def features_of(columns: Mapping[str, Any]) -> Features:
    """``Features`` of columns with these types."""
    return Features(dict(columns))
