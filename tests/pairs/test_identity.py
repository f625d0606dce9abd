"""Pair ids: what is computed quickly is the definition, for any content."""

from __future__ import annotations

import hashlib
import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trl_attribution.pairs import RowFault
from trl_attribution.pairs.identity import content_ids, same_content, without_none

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(["null", '"', "\\u2028"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
)
_TOOLS = st.none() | st.lists(st.dictionaries(_TEXT, _VALUES, max_size=2), max_size=2)
_OPTIONS = st.none() | st.dictionaries(_TEXT, _VALUES, max_size=2)


def defined_id(prompt: Any, chosen: Any, rejected: Any, tools: Any, extra: Any) -> str:
    document = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    document |= {"tools": tools} if tools else {}
    document |= {"chat_template_kwargs": without_none(extra)} if without_none(extra) else {}
    text = json.dumps(without_none(document), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


@settings(max_examples=200, deadline=None)
@given(_TEXT, *[_VALUES.filter(lambda value: value is not None)] * 2, _TOOLS, _OPTIONS)
@example("", [{"role": "user", "content": "null", "name": None}], [None], [{"a": None}], {"b": None, "c": [None]})
def test_ids_are_digests_of_the_canonical_json_both_ways_round(
    prompt: str, chosen: Any, rejected: Any, tools: Any, extra: Any
) -> None:
    found = content_ids(prompt, chosen, rejected, tools, extra)
    assert found.own == defined_id(prompt, chosen, rejected, tools, extra)
    assert found.flipped == defined_id(prompt, rejected, chosen, tools, extra)
    assert content_ids(prompt, rejected, chosen, tools, extra).own == found.flipped


def with_none(value: Any) -> Any:
    """The same content with an empty entry in every object."""
    if isinstance(value, dict):
        return {**{key: with_none(entry) for key, entry in value.items() if entry is not None}, "an empty entry": None}
    return [with_none(entry) for entry in value] if isinstance(value, list) else value


@settings(max_examples=200, deadline=None)
@given(_VALUES, _VALUES)
@example([{"a": None}], [{}])
@example([None], [])
def test_content_is_the_same_where_it_is_so_without_its_empty_entries(one: Any, other: Any) -> None:
    assert same_content(one, other) is (without_none(one) == without_none(other))
    assert same_content(one, with_none(one)) and same_content(with_none(one), one)
    assert same_content([one, other], [with_none(one), one]) is (without_none(one) == without_none(other))


def test_any_mapping_has_the_id_of_the_dict_with_its_entries() -> None:
    message = {"role": "user", "content": "Hello.", "name": None}
    assert content_ids("a", [MappingProxyType(message)], "b") == content_ids("a", [message], "b")


@pytest.mark.parametrize(("value", "reason"), [("\ud800", "invalid_text"), ({1, 2}, "not_text")])
def test_what_has_no_json_form_is_named_with_its_field(value: Any, reason: str) -> None:
    with pytest.raises(RowFault) as caught:
        content_ids("a", "b", [value])
    assert (caught.value.field, caught.value.reason) == ("rejected", reason)
